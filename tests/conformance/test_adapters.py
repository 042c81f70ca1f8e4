"""Adapters of packages that need not be installed: named without them, and tested where they are."""

import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs
from ssmrl.cli import main
from ssmrl.envs import check_env
from ssmrl.registry import UserError
from ssmrl.registry import envs as registry
from ssmrl.rollout import reset_batch, step_batch
from ssmrl.spaces import Box, Discrete, MultiDiscrete

PACKAGES = {
    "craftax": "craftax",
    "dmc": "mujoco_playground",
    "jumanji": "jumanji",
    "navix": "navix",
    "xminigrid": "xminigrid",
}
# Observations, actions and time limit; one or two of each family, those that compile fast.
EXAMPLES = {
    "craftax/ClassicSymbolic": (Box(0.0, 1.0, (1345,)), Discrete(17), 10_000),
    "dmc/PendulumSwingup": (Box(-np.inf, np.inf, (3,)), Box((-1.0,), (1.0,), (1,)), 1_000),
    "jumanji/Tetris-v0": (Box(0.0, 1.0, (157,)), MultiDiscrete((4, 10)), 400),
    "jumanji/Snake-v1": (Box(0.0, 1.0, (725,)), Discrete(4), 4_000),
    "navix/MemoryS7": (Box(0.0, 1.0, (7, 7, 21)), Discrete(7), 245),
    "xminigrid/MiniGrid-MemoryS8": (Box(0.0, 1.0, (3, 3, 25)), Discrete(6), 320),
    "xminigrid/XLand-MiniGrid-R1-9x9": (Box(0.0, 1.0, (5, 5, 25)), Discrete(6), 243),
}


def needs(name):
    pytest.importorskip(PACKAGES[name.split("/")[0]])


@pytest.mark.parametrize("family", PACKAGES)
def test_families_are_listed_without_their_package(family, capsys):
    names = [e.name for e in registry.entries() if e.name.startswith(f"{family}/")]
    assert len(names) == {"craftax": 2, "dmc": 25, "jumanji": 26, "navix": 83, "xminigrid": 44}[family]
    assert main(["list", "envs", f"{family}/", "--json"]) == 0
    assert [fact["name"] for fact in json.loads(capsys.readouterr().out)] == names


@pytest.mark.parametrize("family", PACKAGES)
def test_a_missing_package_is_named(family, monkeypatch, capsys, tmp_path):
    find_spec = importlib.util.find_spec
    missing = PACKAGES[family]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find_spec(name, *rest) if name != missing else None
    )
    entry = next(e for e in registry.entries() if e.name.startswith(f"{family}/"))
    name = entry.name
    importlib.import_module(entry.module)._upstream.cache_clear()
    extra = f"pip install '{'navix>=4' if family == 'navix' else f'ssmrl[{family}]'}'"
    with pytest.raises(
        UserError, match=f"{name} needs the package {PACKAGES[family]}, which is not installed: "
    ) as error:
        envs.make(name)
    assert extra in str(error.value)
    assert main(["train", f"env={name}", f"run.dir={tmp_path}/run", "wandb=off"]) == 2
    assert extra in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_contract(name):
    needs(name)
    env, params = envs.make(name)
    observation, action, limit = EXAMPLES[name]
    assert env.observation_space(params) == observation
    assert env.action_space(params) == action
    assert params.max_steps_in_episode == limit
    assert check_env(env, steps=40, eager=False) == []


def play(name, steps, num_envs=4, **parameters):
    """Random steps with auto-reset: the outcomes and the batches after them, ``[T, B]``."""
    env, params = envs.make(name, **parameters)
    space = env.action_space(params)

    def step(batch, key):
        key_action, key_step = jax.random.split(key)
        action = jax.vmap(space.sample)(jax.random.split(key_action, num_envs))
        batch, outcome = step_batch(env, params, batch, action, key_step)
        return batch, (outcome, batch)

    start = reset_batch(env, params, num_envs, jax.random.key(0))
    return start, *jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), steps))[1])(start)


@pytest.mark.parametrize(
    "name",
    [
        "craftax/ClassicSymbolic",
        "dmc/PendulumSwingup",
        "jumanji/SlidingTilePuzzle-v0",
        "navix/MemoryS7",
        "xminigrid/XLand-MiniGrid-R1-9x9",
    ],
)
def test_the_clock_truncates_and_starts_afresh(name):
    needs(name)
    start, outcome, after = play(name, 10, max_steps=5)
    ended = np.asarray(outcome.truncated)
    assert ended[4].all()
    assert not np.any(np.asarray(outcome.terminated)[:5])
    assert np.all(np.asarray(after.env_state.time)[4] == 0)
    moved = np.asarray(outcome.final_obs)[4] != np.asarray(after.obs)[4]
    assert moved.any()  # the last observation is not the next episode's first
    fresh = np.asarray(after.obs)[4] != np.asarray(start.obs)
    assert fresh.any()  # nor is that the first episode's


def test_goals_terminate_and_the_limit_scales_their_reward():
    needs("xminigrid/")
    _, outcome, _ = play("xminigrid/MiniGrid-MemoryS8", 400, 32)
    ended, won = np.asarray(outcome.terminated), np.asarray(outcome.reward) > 0
    assert np.any(ended & won)
    assert not np.any(won & ~ended)
    lengths = np.asarray(outcome.episode_length)
    np.testing.assert_allclose(np.asarray(outcome.reward)[won], 1 - 0.9 * lengths[won] / 320, rtol=1e-5)


def test_snakes_die():
    needs("jumanji/")
    _, outcome, _ = play("jumanji/Snake-v1", 100)
    assert np.any(outcome.terminated)
    assert not np.any(outcome.truncated)


def test_physics_are_mujocos():
    needs("dmc/")
    import mujoco

    env, params = envs.make("dmc/CartpoleSwingup")
    from mujoco_playground import dm_control_suite

    model = dm_control_suite.load("CartpoleSwingup", config_overrides={"impl": "jax"}).mj_model
    _, state = jax.jit(env.reset_env)(jax.random.key(0), params)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = state.inner.data.qpos, state.inner.data.qvel
    step = jax.jit(env.step_env)
    for _ in range(20):
        data.ctrl[:] = 0.7
        mujoco.mj_step(model, data)
        _, state, reward, terminated, _ = step(jax.random.key(0), state, jnp.array([0.7]), params)
        assert 0 <= reward <= 1
        assert not terminated
    np.testing.assert_allclose(state.inner.data.qpos, data.qpos, atol=1e-4)


def test_models_that_mujoco_warns_of_leave_nothing_behind(tmp_path, monkeypatch, capfd):
    needs("dmc/")
    monkeypatch.chdir(tmp_path)
    envs.make("dmc/CheetahRun")
    assert capfd.readouterr() == ("", "")
    assert not [*tmp_path.iterdir()]


def start(name, seed=0):
    """An environment, its parameters and a start state with numpy leaves."""
    env, params = envs.make(name)
    return env, params, jax.device_get(env.reset(jax.random.key(seed), params)[1])


def middle(picture, red):
    """Where red things are, from 0 to 1: ``(down, right)``; ``red`` picks from int pixels ``[H, W, 3]``."""
    return np.argwhere(red(picture.astype(int))).mean(0) / picture.shape[:2]


@pytest.mark.parametrize(
    "name",
    [
        "craftax/ClassicSymbolic",
        "dmc/ReacherEasy",
        "jumanji/Maze-v0",
        "navix/DoorKey-Random-8x8",
        "xminigrid/XLand-MiniGrid-R1-17x17",
    ],
)
def test_pictures_differ_as_states_do_and_are_silent(name, capfd):
    needs(name)
    first, again, other = (env.render(state, params) for env, params, state in map(start, 3 * [name], (0, 0, 1)))
    assert first.dtype == np.uint8
    assert max(first.shape[:2]) <= 400
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["navix/MemoryS7", "xminigrid/MiniGrid-MemoryS16"])
def test_agents_are_drawn_where_they_are(name):
    needs(name)
    for seed in range(3):
        env, params, state = start(name, seed)
        inner = state.inner.state
        position = inner.agent.position if name.startswith("xminigrid") else inner.get_player().position
        agent = middle(env.render(state, params), lambda p: (p[..., 0] > 200) & (p[..., 1:] < 90).all(-1))
        np.testing.assert_allclose(agent * inner.grid.shape[:2], np.asarray(position) + 0.5, atol=0.3)


def test_pendulums_hang_where_they_hang():
    needs("dmc/")
    env, params, state = start("dmc/PendulumSwingup")
    for angle, (down, right) in {0: (-1, 0), np.pi: (1, 0), np.pi / 2: (0, 1)}.items():
        data = state.inner.data.replace(qpos=np.array([angle]))
        picture = env.render(state.replace(inner=state.inner.replace(data=data)), params)
        bob = middle(picture, lambda p: (p[..., 0] > 160) & (p[..., 1] < 110) & (p[..., 2] < 70)) - 0.5
        assert np.sign(np.round(bob, 1)).tolist() == [down, right]


def test_pictures_of_jumanji_are_its_viewers_and_leave_no_figure():
    needs("jumanji/")
    import matplotlib
    from jumanji.environments.routing.snake.viewer import SnakeViewer
    from matplotlib import pyplot

    env, params, state = start("jumanji/Snake-v1")
    backend, ours = matplotlib.get_backend(), env.render(state, params)
    assert pyplot.get_fignums() == []
    assert matplotlib.get_backend() == backend
    theirs = SnakeViewer("", "rgb_array").render(state.inner)[..., :3]
    pyplot.close("all")
    ours, theirs = (p.reshape(20, len(p) // 20, 20, -1, 3).mean((1, 3)) for p in (ours, theirs))
    assert theirs.std() > 10
    assert abs(ours - theirs).mean() < 2


def test_pictures_of_graphs_show_their_nodes():
    needs("jumanji/")
    env, params, state = start("jumanji/MMST-v0")
    picture = env.render(state, params)
    assert (picture.max(-1) < 250).mean() > 0.05
    assert np.ptp(np.argwhere(picture.max(-1) < 250), axis=0).min() > 300


def test_the_map_around_the_player_is_drawn():
    needs("craftax/")
    env, params, state = start("craftax/ClassicSymbolic")
    picture, (row, column) = env.render(state, params).astype(int), state.inner.player_position
    view, side = np.asarray(state.inner.map)[row - 3 : row + 4, column - 4 : column + 5], 32
    tiles = picture[: 7 * side, : 9 * side].reshape(7, side, 9, side, 3).mean((1, 3))
    grass = tiles[view == 2]
    assert len(grass) > 5
    assert np.mean((grass[:, 1] > grass[:, 0]) & (grass[:, 1] > 2 * grass[:, 2])) > 0.8  # a cow may stand there
    assert len(np.unique(view)) > 1
    assert np.abs(tiles[view != 2].mean(0) - grass.mean(0)).max() > 20


@pytest.mark.parametrize(
    "name", ["jumanji/Tetris-v0", "xminigrid/MiniGrid-MemoryS8", "dmc/PendulumSwingup", "navix/MemoryS7"]
)
def test_two_updates(name, tmp_path, capsys):
    needs(name)
    small = ["agent.num_envs=4", "agent.num_steps=8", "model.d_model=8", "log.every=1", "eval.episodes=2", "wandb=off"]
    train = ["train", f"env={name}", "env.max_steps=8", "total_steps=64", f"run.dir={tmp_path}/run", *small, "--json"]
    assert main([*train, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 2
    assert main(train) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["env_steps"]) == ("done", 64)
    assert np.isfinite(result["return_mean"])
