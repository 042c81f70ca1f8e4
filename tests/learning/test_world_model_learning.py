"""A world model remembers what it has to, and the control without memory does not."""

import jax
import pytest

from ssmrl import nn
from ssmrl.agents.s4wm import S4WM
from ssmrl.envs.memory.cue_recall import CueRecall

ENV = CueRecall(delay=16)
MODELS = {"s5": {"d_state": 32, "input_scale": "norm", "norm": "pre", "memories": 2, "mlp": 2}, "none": {}}


def functions(model, **options):
    """Compiled ``init(key)``, ``learn(state, updates)`` and ``evaluate(state, key)``."""
    module = nn.make_model(model, d_model=32, **MODELS[model])
    kernel = {"groups": 2, "classes": 8, "hidden": (32,), "obs_weight": 3.0, "rep_weight": 0.05, "anneal": "none"}
    agent = S4WM(ENV, ENV.default_params, module, num_envs=32, warmup=50.0, **{**kernel, **options})
    learn = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, s: agent.update(s)[0], state))
    evaluate = jax.jit(lambda state, key: agent.evaluate(state, key, episodes=512))
    return jax.jit(agent.init), learn, evaluate


def measure(init, learn, evaluate, updates, seed=0):
    """What it can do after so many updates, on fresh episodes."""
    state = learn(init(jax.random.key(seed)), updates)
    return jax.device_get(evaluate(state, jax.random.key(seed + 100)))


@pytest.fixture(scope="module", params=[("s5", 800), ("none", 300)], ids=["s5", "none"])
def measured(request):
    model, updates = request.param
    return model, measure(*functions(model), updates)


def test_a_cue_is_imagined_after_its_delay_by_a_memory_alone(measured):
    model, metrics = measured
    chance = pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 512) ** 0.5)
    assert metrics["tile_acc_seen_shuffled"] == chance, "it knows the cue without having seen it"
    if model == "s5":
        assert metrics["tile_acc_seen"] > 0.95
        assert metrics["tile_acc_seen_sampled"] > 0.9
        assert metrics["kl_seen"] < 0.3  # of the cue's ln 4 = 1.39 nats
    else:
        assert metrics["tile_acc_seen"] == chance
        assert metrics["kl_seen"] > 1.2
    assert metrics["tile_acc_seen_recon"] > 0.95, "the latent does not hold what is seen"
