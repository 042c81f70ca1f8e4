"""Demonstrations as typed: a policy is recorded, and another one learns to do as it did."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import datasets, evaluation, spaces
from ssmrl.cli import main
from ssmrl.frames import Frames
from ssmrl.imitation import imitation_loss
from ssmrl.nn.distributions import make_distribution

pytestmark = pytest.mark.usefixtures("shared_folder")

TINY = ["env=popgym/RepeatPreviousEasy", "agent.num_envs=4", "agent.num_steps=8", "agent.epochs=1", "agent.heads=[8]"]
TINY += ["agent.num_minibatches=2", "model=gru", "model.d_model=8", "wandb=off", "--quiet"]


@pytest.fixture(scope="module")
def demos(shared_folder):
    assert main(["train", *TINY, "total_steps=32", "run.dir=teacher"]) == 0
    assert main(["record", "--policy=teacher", "--sequences=6", "--output=demos.npz", "--quiet"]) == 0
    return datasets.load("demos.npz")


def test_what_is_recorded_is_what_the_policy_does(demos):
    assert (demos.sequences, demos.length) == (6, 52)  # an episode of 51 steps, and the frame after the last
    policy = evaluation.load("teacher")
    frames = Frames(*(jnp.asarray(demos.arrays[k]) for k in ("obs", "action", "reward", "reset", "terminated")))
    assert frames.reset[0].all()
    assert not frames.reset[1:].any()

    @jax.jit
    def both(policy, frames):
        memory = policy.network.initialize_carry((6,))
        dist = policy.sequence(memory, frames.obs, frames.reset, frames.action, frames.reward)[1]
        return imitation_loss(policy, frames), dist.entropy()[:-1].mean()

    # a policy that has hardly learned anything chooses evenly, and its own choices are as likely as it says
    loss, entropy = both(policy, frames)
    assert np.isclose(loss, entropy, atol=0.1)


def test_a_policy_learns_to_imitate(demos):
    words = ["agent.demos=demos.npz", "agent.learning_rate=0.02", "agent.demo_weight=1", "log.every=1", "seed=1"]
    constant = np.full_like(demos.arrays["action"], 2)
    arrays = {**demos.arrays, "action": constant}
    facts = {k: v for k, v in demos.facts.items() if k != "sha256"}
    always = datasets.DataSet(arrays, {**facts, "sha256": datasets._hash(arrays, facts)})
    datasets.save(always, "always.npz")
    words[0] = "agent.demos=always.npz"
    assert main(["train", *TINY, *words, "total_steps=960", "run.dir=pupil"]) == 0
    lines = [json.loads(line) for line in Path("pupil/metrics.jsonl").read_text().splitlines()]
    losses = [line["imitation_loss"][0] for line in lines if "imitation_loss" in line]
    assert losses[0] > 1.2  # about log 4
    assert losses[-1] < 0.2
    assert json.loads(Path("pupil/inputs.json").read_text())["demos_sha256"] == always.sha256


def test_frames_after_an_end_are_no_demonstrations():
    class Half:
        """Action 1 with probability 1/2 of two, after a reset; with 9/10 else."""

        class network:
            @staticmethod
            def initialize_carry(shape):
                return ()

        def sequence(self, memory, obs, reset, prev_action, prev_reward):
            p = jnp.where(reset, 0.5, 0.9)
            return memory, make_distribution(spaces.Discrete(2), jnp.log(jnp.stack([1 - p, p], -1))), None

    reset = jnp.array([True, False, False, True, False])[:, None]
    action = jnp.array([0, 1, 1, 0, 1])[:, None]
    none = jnp.zeros((5, 1))
    loss = imitation_loss(Half(), Frames(none, action, none, reset, none.astype(bool)))
    assert np.isclose(loss, -(np.log(0.5) + np.log(0.9) + np.log(0.5)) / 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.demos=no.npz"], "no data set 'no.npz': make one with `ssmrl record"),
        (["agent.demos=demos.npz", "env.k=2"], "agent.demos=demos.npz: it was recorded in popgym/RepeatPreviousEasy"),
    ],
)
def test_wrong_files_are_refused_before_anything_is_written(demos, capsys, words, message):
    assert main(["train", *TINY, *words, "run.dir=never"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy=nobody"], "'nobody' is no run"),
        (["env=gymnax/CartPole-v1", "--policy=teacher"], "the policy was trained with observations in Discrete"),
    ],
)
def test_what_cannot_be_recorded(demos, capsys, words, message):
    assert main(["record", *words, "--output=x.npz"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.npz").exists()


def test_raw_actions_are_found_again():
    space = spaces.Box(-2.0, 4.0, (3,))
    dist = make_distribution(space, jnp.zeros((5, 3)), jnp.zeros(3)[None])
    raw = dist.sample(jax.random.key(0))
    np.testing.assert_allclose(dist.from_env(dist.to_env(raw)), raw, atol=1e-3)
    assert np.isfinite(dist.from_env(jnp.full((5, 3), 4.0))).all()
