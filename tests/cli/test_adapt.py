"""``ssmrl adapt`` as typed: returns within trials, beside a wiped memory and the references."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import adaptation, commands, envs
from ssmrl.cli import main
from ssmrl.config import resolve, to_yaml
from ssmrl.envs.meta.control import ControlMixture
from ssmrl.nn.distributions import make_distribution

pytestmark = pytest.mark.usefixtures("shared_folder")

BANDIT = ["env=meta/Bandit", "env.trial_episodes=6", "agent.num_envs=4", "agent.num_steps=12", "agent.epochs=1"]
BANDIT += ["agent.num_minibatches=1", "agent.heads=[4]", "model=gru", "model.d_model=4", "total_steps=96", "wandb=off"]


@pytest.fixture(scope="module")
def run(shared_folder):
    assert main(["train", *BANDIT, "seeds=2", "run.dir=run", "--quiet"]) == 0
    return Path("run")


def typed(capsys, *words):
    code = main(["adapt", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


class Switch:
    """A policy whose memory says whether it has just been reset: it pulls arm 0 then, arm 1 else, and its network."""

    def initial_carry(self, batch):
        return Carry(jnp.zeros(batch), jnp.zeros(batch, jnp.int32))

    def step(self, carry, obs, reset, reward):
        logits = jnp.where(reset[:, None], jnp.array([[9.0, 0.0]]), jnp.array([[0.0, 9.0]]))
        return carry.memory, make_distribution(envs.make("meta/Bandit", num_arms=2)[0].action_space(None), logits), None


Carry = adaptation.PolicyCarry
jax.tree_util.register_pytree_node(Switch, lambda s: ((), None), lambda _, __: Switch())


@pytest.mark.parametrize(("wiped", "expected"), [(False, [0, 1, 1, 1, 1]), (True, [0, 0, 0, 0, 0])])
def test_rewards_are_those_of_each_episode_and_a_wiped_memory_starts_each_anew(wiped, expected):
    env, params = envs.make("meta/Bandit", num_arms=2, reward="gaussian", trial_episodes=5)
    found = adaptation.run_trials(
        Switch(), env, params, jax.random.key(0), trials=300, greedy=True, wiped=wiped
    )  # two batches
    assert found.shape == (300, 5)
    assert np.isfinite(found).all()
    best = adaptation.run_trials(Switch(), env, params, jax.random.key(0), trials=300, greedy=True, wiped=True)
    same = np.isclose(found, best).all(axis=0)
    assert same.tolist() == [arm == 0 for arm in expected]


def test_a_curve_over_steps_has_parts_of_equal_length():
    env, params = envs.make("popgym/RepeatPreviousEasy", trial_steps=110)
    policy = Constant(env.action_space(params))
    found = adaptation.run_trials(policy, env, params, jax.random.key(0), trials=3, greedy=True, wiped=False)
    assert found.shape == (3, 50)
    # an episode of 51 steps earns +-1/48 in all but its first 4, of which trials have three, the last one cut short
    earned = np.round(found * 48).astype(int)
    assert (np.abs(earned) <= 3).all()
    assert (earned[:, 0] == 0).all()
    parity = np.bincount(np.arange(110) * 50 // 110, minlength=50)
    assert set(parity) == {2, 3}
    assert (np.abs(earned).sum(1) > 0).all()


class Constant(Switch):
    """Always action 0."""

    def __init__(self, space):
        self.space = space

    def step(self, carry, obs, reset, reward):
        logits = jnp.zeros((*reset.shape, self.space.n)).at[:, 0].set(9.0)
        return carry.memory, make_distribution(self.space, logits), None


jax.tree_util.register_pytree_node(Constant, lambda s: ((), s.space), lambda space, _: Constant(space))


def test_adapt(run, capsys):
    code, facts, _ = typed(capsys, run, "--trials=8")
    assert code == 0
    assert (facts["by"], facts["trials"], facts["seeds"], facts["env"]) == ("episode", 8, 2, "meta/Bandit")
    players = [k.removesuffix("/curve") for k in facts if k.endswith("/curve")]
    assert players == ["policy", "memory wiped", "optimal", "Gittins index", "Thompson sampling", "random"]
    for player in players:
        assert len(facts[f"{player}/curve"]) == 6
        assert facts[f"{player}/first"] == facts[f"{player}/curve"][0]
        assert facts[f"{player}/last"] == facts[f"{player}/curve"][-1]
        assert np.isclose(sum(facts[f"{player}/curve"]), facts[f"{player}/return"])
        assert facts[f"{player}/return/low"] <= facts[f"{player}/return"] <= facts[f"{player}/return/high"]
    assert json.loads((run / "eval" / "adapt.json").read_text()) == facts
    with Path(facts["plot"]).with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["episode"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(row["policy"]) for row in rows] == pytest.approx(facts["policy/curve"], abs=1e-6)
    assert main(["adapt", str(run), "--trials=4"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "meta/Bandit: 2 seed(s), 4 trials each, sampled actions, 96 steps trained"
    assert [line.split("  ")[0] for line in table[2:-1]] == players


def test_another_environment_has_results_of_its_own(run, capsys):
    code, facts, _ = typed(capsys, run, "--env=meta/Bandit-k5-n10", "--trials=4", "--greedy")
    assert code == 0
    assert len(facts["policy/curve"]) == 10
    assert (run / "eval" / "adapt_meta_Bandit-k5-n10.json").is_file()


def test_other_settings_have_results_of_their_own(run, capsys):
    code, facts, _ = typed(capsys, run, "env.reward=gaussian", "env.trial_steps=4", "--trials=4", "--greedy")
    assert code == 0
    assert (facts["env.reward"], facts["env.trial_steps"]) == ("gaussian", "4")
    assert facts["random/curve"][4:] == [None, None]  # of the trial's steps nothing is left for these
    assert facts["policy/curve"][4:] == [None, None]
    assert (run / "eval" / "adapt_trial_steps=4_reward=gaussian.json").is_file()
    known = {k: np.nan if v is None else v for k, v in facts.items()}
    assert "meta/Bandit env.trial_steps=4 env.reward=gaussian: 2 seed" in adaptation.render(known)


@pytest.mark.parametrize(
    ("typed_settings", "tasks"),
    [
        ([], "held_out"),
        (["--env=meta/DarkRoom"], "held_out"),
        (["env.size=7"], "held_out"),
        (["env.tasks=train"], "train"),
        (["env.tasks=all"], "all"),
    ],
)
def test_what_was_trained_on_train_is_tested_on_held_out(tmp_path, monkeypatch, typed_settings, tasks):
    config = resolve([], {"env": "meta/DarkRoom", "env.tasks": "train"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    monkeypatch.setattr(commands, "_run", lambda word: (tmp_path, config))
    found = []
    monkeypatch.setattr(adaptation, "adapt", lambda run_dir, test, **_: found.append(test) or {})
    assert main(["adapt", str(tmp_path), *typed_settings, "--json"]) == 0
    assert found[0].env_parameters["tasks"] == tasks


def test_the_name_of_a_file_is_not_too_long():
    assert adaptation._suffix(["meta/Control", "tasks=[a/B, c/D]"]) == "_meta_Control_tasks=_a_B_c_D_"
    long = [adaptation._suffix([f"tasks={name * 200}"]) for name in "ab"]
    assert len(long[0]) < 20
    assert long[0] != long[1]


@pytest.mark.parametrize("trials", [384, 300, 7])
def test_kinds_of_a_mixture_count_alike(monkeypatch, trials):
    def kinds(*_, size, **__):
        return np.arange(size)[:, None] * 6 // size

    monkeypatch.setattr(adaptation, "_run_batch", kinds)
    found = adaptation.run_trials(None, None, None, jax.random.key(0), trials=trials, greedy=True, wiped=False)
    counts = np.bincount(found[:, 0], minlength=6)
    assert (found.shape, np.ptp(counts)) == ((trials, 1), trials % 6 > 0)


def test_each_task_of_a_mixture_has_a_curve(monkeypatch):
    env = SimpleNamespace(
        tasks=("a", "b"), kinds=ControlMixture(("control/PendulumSwingup", "control/ReacherEasy")).kinds
    )
    monkeypatch.setattr(adaptation, "_run_batch", lambda *_, size, **__: env.kinds(size)[:, None] * np.ones((1, 3)))
    rewards = adaptation.run_trials(None, env, None, jax.random.key(0), trials=300, greedy=True, wiped=False)
    curves = adaptation._by_kind(env, dict.fromkeys(("policy", "memory wiped", "random"), rewards[None]))
    assert list(curves) == ["policy, a", "memory wiped, a", "policy, b", "memory wiped, b"]
    for name, found in curves.items():
        assert found.shape == (1, 150, 3)
        assert (found == name.endswith("b")).all()
    twice = SimpleNamespace(tasks=("a", "a"), kinds=env.kinds)
    curves = adaptation._by_kind(twice, dict.fromkeys(("policy", "memory wiped"), rewards[None]))
    assert [(name, found.shape) for name, found in curves.items()] == [
        ("policy, a", (1, 300, 3)),
        ("memory wiped, a", (1, 300, 3)),
    ]
    assert adaptation._by_kind(env, {"policy": rewards[None, :1]}) == {}  # too few to have every task
    assert adaptation._by_kind(SimpleNamespace(), {"policy": rewards[None]}) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "agent.gamma=1"], "agent.gamma: ssmrl adapt takes env and env.KEY only"),
        (["run", "--env=meta/Bandits"], "unknown env 'meta/Bandits': did you mean meta/Bandit"),
        (["run", "env.trial_episodes=0"], "meta/Bandit has no trials to adapt in: add env.trial_episodes=10"),
        (["run", "env.num_arms=3"], "the policy was trained with actions in Discrete(n=5"),
        (["run", "--trials=1"], "--trials=1"),
        (["walk"], "'walk' is no run"),
        ([], "ssmrl adapt needs RUN: 0 given"),
        (["run", "walk"], "ssmrl adapt takes RUN only: 'walk' is too much"),
    ],
)
def test_what_cannot_be_is_refused(run, capsys, words, message):
    code, _, err = typed(capsys, *words)
    assert code == 2
    assert message in err
