"""The control pool: its physics against MuJoCo, conservation laws and closed forms; its rewards; players that score."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmrl import envs
from ssmrl.envs.control import ball_in_cup, finger
from ssmrl.envs.control.control import SIZE, TASKS
from ssmrl.envs.control.physics import near
from ssmrl.envs.control.point_mass import draw_mixing
from ssmrl.registry import envs as registry

SIZES = {  # observations and actions, as in the suite
    "AcrobotSwingup": (6, 1),
    "BallInCupCatch": (8, 2),
    "CartpoleBalance": (5, 1),
    "CartpoleSwingup": (5, 1),
    "FingerSpin": (9, 2),
    "FingerTurnEasy": (12, 2),
    "FingerTurnHard": (12, 2),
    "PendulumSwingup": (3, 1),
    "PointMassEasy": (4, 2),
    "PointMassHard": (4, 2),
    "ReacherEasy": (6, 2),
    "ReacherHard": (6, 2),
}


def test_the_pool_is_what_is_registered_and_has_the_suites_sizes():
    ids = [e.name for e in registry.entries() if e.family == "control/"]
    assert ids == [f"control/{id}" for id in TASKS] == [f"control/{id}" for id in SIZES]
    for id, (num_obs, num_actions) in SIZES.items():
        env, params = envs.make(f"control/{id}")
        assert env.observation_space(params).shape == (num_obs,)
        assert env.action_space(params).shape == (num_actions,)
        state = jax.eval_shape(env.reset_env, jax.random.key(0), params)[1]
        assert (state.x.shape, params.max_steps_in_episode) == ((SIZE,), 200)
    with pytest.raises(ValueError, match="unknown control task 'Pendulum': there are Acro"):
        envs.control.control.Control("Pendulum")


# The suite's models, as far as they move. MuJoCo computes inertias and equations of motion by itself.
MODELS = {
    "PendulumSwingup": """
        <body><joint axis="0 1 0" damping="0.1"/><geom type="sphere" pos="0 0 .5" size=".05" mass="1"/></body>""",
    "CartpoleSwingup": """
        <body><joint type="slide" axis="1 0 0" damping="5e-4"/><geom type="box" size=".2 .15 .1" mass="1"/>
        <body><joint axis="0 1 0" damping="2e-6"/><geom type="capsule" fromto="0 0 0 0 0 1" size=".045" mass=".1"/>
        </body></body>""",
    "AcrobotSwingup": """
        <body><joint axis="0 1 0" damping=".05"/><geom type="capsule" fromto="0 0 0 0 0 1" size=".05" mass="1"/>
        <body pos="0 0 1"><joint axis="0 1 0" damping=".05"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size=".049" mass="1"/></body></body>""",
    "ReacherEasy": """
        <body><joint axis="0 0 1" damping=".01"/><geom type="capsule" fromto="0 0 0 .12 0 0" size=".01"/>
        <body pos=".12 0 0"><joint axis="0 0 1" damping=".01"/>
        <geom type="capsule" fromto="0 0 0 .1 0 0" size=".01"/><geom type="sphere" pos=".12 0 0" size=".01"/>
        </body></body>""",
}
MOTORS = {
    "PendulumSwingup": [[1.0]],
    "CartpoleSwingup": [[10.0, 0.0]],
    "AcrobotSwingup": [[0.0, 2.0]],
    "ReacherEasy": [[0.05, 0.0], [0.0, 0.05]],
}


@pytest.mark.parametrize("id", MODELS)
def test_motion_is_mujocos(id):
    import mujoco

    task, motors = TASKS[id], np.array(MOTORS[id])
    # The arm's stiff damping is integrated by MuJoCo's own implicit steps, the others by small steps of high order.
    integrator, step = ("Euler", task.time_step / 8) if "Reacher" in id else ("RK4", task.time_step / 20)
    option = f'<option timestep="{step}" integrator="{integrator}"><flag contact="disable"/></option>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{option}<worldbody>{MODELS[id]}</worldbody></mujoco>")
    data, n = mujoco.MjData(model), model.nq
    generator = np.random.default_rng(0)
    data.qpos[:], data.qvel[:] = generator.uniform(-1, 1, n), generator.uniform(-1, 1, n)
    x = np.zeros(task.size, np.float32)
    x[: 2 * n] = np.concatenate([data.qpos, data.qvel])
    move, places = jax.jit(task.dynamics), []
    for _ in range(25):  # a second
        action = generator.uniform(-1, 1, len(motors))
        data.qfrc_applied[:] = action @ motors
        for _ in range(round(task.time_step / step)):
            mujoco.mj_step(model, data)
        x = np.asarray(move(x, action.astype(np.float32)))
        places.append(x[: 2 * n])
        np.testing.assert_allclose(x[: 2 * n], np.concatenate([data.qpos, data.qvel]), rtol=1e-3, atol=1e-3)
    assert np.ptp(places, 0).min() > 0.1


def _energy(id, x):
    """Kinetic and potential energy in float64, with masses and moments written out."""
    x = np.asarray(x, np.float64)
    capsule = functools.partial(_capsule_moment, length=1.0)
    if id == "PendulumSwingup":
        return 0.5 * 0.251 * x[1] ** 2 + 9.81 * 0.5 * np.cos(x[0])
    if id == "CartpoleSwingup":
        vx, vz = x[2] + 0.5 * x[3] * np.cos(x[1]), -0.5 * x[3] * np.sin(x[1])
        moment = 0.1 * capsule(radius=0.045)
        return 0.5 * x[2] ** 2 + 0.05 * (vx**2 + vz**2) + 0.5 * moment * x[3] ** 2 + 0.981 * 0.5 * np.cos(x[1])
    one, both, turn, speed = x[0], x[0] + x[1], x[2], x[2] + x[3]
    vx = turn * np.cos(one) + 0.5 * speed * np.cos(both)
    vz = -turn * np.sin(one) - 0.5 * speed * np.sin(both)
    kinetic = 0.5 * (0.25 + capsule(radius=0.05)) * turn**2 + 0.5 * (vx**2 + vz**2)
    kinetic += 0.5 * capsule(radius=0.049) * speed**2
    return kinetic + 9.81 * (1.5 * np.cos(one) + 0.5 * np.cos(both))


def _capsule_moment(length, radius, n=200_000):
    """Of a capsule of mass 1 about its middle, by slices across it."""
    z = (np.arange(n) + 0.5) / n * (length / 2 + radius)
    r2 = np.where(z < length / 2, radius**2, radius**2 - (z - length / 2) ** 2)
    return float((r2 * (r2 / 4 + z**2)).sum() / r2.sum())


@pytest.mark.parametrize(("id", "free"), [
    ("PendulumSwingup", {"damping": 0.0}),
    ("CartpoleSwingup", {"friction": 0.0, "damping": 0.0}),
    ("AcrobotSwingup", {"damping": 0.0}),
])  # fmt: skip
def test_energy_is_kept_without_motor_and_friction(id, free):
    start = {"PendulumSwingup": [2.0, 1.0], "CartpoleSwingup": [0, 2.0, 0, 0], "AcrobotSwingup": [1.5, 1.0, 0, 0]}[id]
    xs = _coast(dataclasses.replace(TASKS[id], **free), start, 200)
    energy = np.array([_energy(id, x) for x in xs])
    assert np.abs(energy - energy[0]).max() < 2e-3 * np.ptp([9.81 * 0.05, energy[0]])
    lossy = _coast(TASKS[id], start, 200)
    if id != "CartpoleSwingup":  # which hardly has friction
        assert _energy(id, lossy[-1]) < energy[0] - 0.1


def _coast(task, start, steps):
    action = jnp.zeros(task.num_actions)
    moves = jax.jit(lambda x: jax.lax.scan(lambda x, _: (task.dynamics(x, action), x), x, None, steps)[1])
    return np.asarray(moves(jnp.asarray(start, jnp.float32)))


@pytest.mark.parametrize("id", ["ReacherEasy", "FingerSpin"])
def test_angular_momentum_is_kept_without_motors_and_friction(id):
    task = dataclasses.replace(TASKS[id], damping=0.0)
    start = [0.3, 0.8, 0.0, 0.0, 0.1, 0.1] if id == "ReacherEasy" else [1.8, 0.4, 0, 0, 0, 0, 0, 0, 0]
    speeds = slice(2, 4) if id == "ReacherEasy" else slice(3, 5)
    start[speeds] = (1.0, -2.0) if id == "ReacherEasy" else (0.2, -0.5)
    xs = np.asarray(_coast(task, start, 15), np.float64)
    cos, (turn, bend) = np.cos(xs[:, 1]), xs[:, speeds].T
    first, second, coupling = task.links
    momentum = (first + second + 2 * coupling * cos) * turn + (second + coupling * cos) * bend
    kinetic = 0.5 * (momentum * turn + (second + coupling * cos) * turn * bend + second * bend**2)
    assert np.ptp(xs[:, 1]) > 0.15
    assert np.ptp(momentum) < 0.02 * np.abs(second * bend).max()
    assert np.ptp(kinetic) < 0.03 * kinetic.max()


def test_what_stands_or_hangs_stays():
    assert np.ptp(_coast(TASKS["PendulumSwingup"], [math.pi, 0], 100), 0).max() < 1e-4
    assert np.ptp(_coast(TASKS["CartpoleBalance"], [0, math.pi, 0, 0], 100), 0).max() < 1e-4
    assert np.ptp(_coast(TASKS["AcrobotSwingup"], [math.pi, 0, 0, 0], 100), 0).max() < 1e-4
    away = _coast(TASKS["CartpoleBalance"], [0, 0.001, 0, 0], 100)  # upright is a fixed point too, but not a stable one
    assert np.abs(away[-1, 1]) > 0.5
    assert np.abs(away[:, 0]).max() < 2


def test_the_carts_rail_ends():
    task = TASKS["CartpoleSwingup"]
    moves = jax.jit(lambda x: jax.lax.scan(lambda x, _: (task.dynamics(x, jnp.ones(1)), x[0]), x, None, 100)[1])
    places = np.asarray(moves(jnp.array([0.0, math.pi, 0.0, 0.0])))
    assert 1.8 < places.max() < 2.1
    assert abs(places[-1] - 1.85) < 0.03  # 10 N against 200 N/m


def test_the_point_mass_moves_as_in_small_steps_and_stops_at_walls():
    task, action = TASKS["PointMassHard"], np.array([0.7, -0.4])
    mixing = np.array([[0.6, -0.28], [0.8, 0.96]])
    x = np.concatenate([[0.1, -0.2], [0.03, 0.05], mixing.ravel()])
    place, speed = x[:2].copy(), x[2:4].copy()
    moved = jnp.asarray(x, jnp.float32)
    move = jax.jit(task.dynamics)
    for _ in range(10):
        for _ in range(2000):
            speed += task.time_step / 2000 * (0.1 * (mixing @ action) - speed) / 0.3
            place += task.time_step / 2000 * speed
        moved = move(moved, jnp.asarray(action, jnp.float32))
    np.testing.assert_allclose(moved[:4], [*place, *speed], atol=1e-4)
    for _ in range(600):
        moved = move(moved, jnp.asarray(action, jnp.float32))
    np.testing.assert_allclose(moved[:2], 0.29 * np.sign(mixing @ action), atol=1e-6)
    np.testing.assert_array_equal(moved[2:4], 0)


def test_motors_of_the_hard_point_mass():
    mixings = np.asarray(jax.jit(jax.vmap(draw_mixing))(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_allclose(np.linalg.norm(mixings, axis=1), 1, atol=1e-5)
    cosines = (mixings[:, :, 0] * mixings[:, :, 1]).sum(1)
    assert np.abs(cosines).max() <= 0.9001
    assert np.abs(cosines).max() > 0.89
    assert np.abs(mixings.mean(0)).max() < 0.05
    assert abs(np.mean(np.linalg.det(mixings) > 0) - 0.5) < 0.05
    env, params = envs.make("control/PointMassHard")
    resets = jax.jit(lambda p: jax.vmap(env.reset_env, in_axes=(0, None))(jax.random.split(jax.random.key(1), 3), p)[1])
    assert len(np.unique(np.asarray(resets(params).x[:, 4:8]), axis=0)) == 3
    task = env.sample_task(jax.random.key(2), params)
    np.testing.assert_array_equal(resets(task).x[:, 4:8], np.tile(np.asarray(task.mixing).ravel(), (3, 1)))


def _potential(x):
    """Elastic energy of string and contacts of ball and cup, from the geometry alone; the cup in both halves."""
    cup, ball = x[:2], x[2:4] - jnp.array([0.0, 0.4])
    corners = [(-a, b) for a, b in reversed(ball_in_cup.PROFILE)] + list(ball_in_cup.PROFILE)
    depths = [jnp.linalg.norm(ball - cup - jnp.array([0.0, ball_in_cup.KNOT])) - ball_in_cup.STRING]
    walls = []
    for a, b in itertools.pairwise(corners):
        if a != b:
            a, b = jnp.array(a), jnp.array(b)
            share = jnp.clip(jnp.dot(ball - cup - a, b - a) / jnp.dot(b - a, b - a), 0, 1)
            walls.append(0.033 - jnp.linalg.norm(ball - cup - a - share * (b - a)))
    middle = walls[2], walls[3]  # the two halves of the bottom are one segment
    walls = [*walls[:2], jnp.maximum(*middle), *walls[4:]]
    return sum(0.5 * 1000.0 * jnp.maximum(depth, 0) ** 2 for depth in depths + walls)


def test_forces_on_ball_and_cup_are_slopes_of_a_potential():
    task = TASKS["BallInCupCatch"]
    places = [(-0.3, 0.0), (0.3, -0.3), (0.0, -0.07), (0.021, -0.065), (-0.022, -0.05), (0.055, 0.02), (-0.08, -0.04)]
    places += [(0.03, -0.13), (0.1, 0.1)]
    starts = jnp.array([[0.05, -0.1, 0.05 + x, -0.1 + 0.4 + z, 0, 0, 0, 0] for x, z in places])
    forces = jnp.stack(jax.jit(jax.vmap(lambda x: task.forces(tuple(x))))(starts), -1)
    slopes = jax.jit(jax.vmap(jax.grad(_potential)))(starts)
    np.testing.assert_allclose(forces, -slopes[:, 2:4], atol=1e-2)
    np.testing.assert_allclose(forces, slopes[:, :2], atol=1e-2)
    felt = np.linalg.norm(forces, axis=1)
    assert (felt[:-1] > 0.5).all()
    assert felt[-1] == 0


def test_the_ball_falls_hangs_and_lies_in_the_cup():
    task = TASKS["BallInCupCatch"]
    sag = -task.cup_mass * 9.81 / 20
    fall = _coast(task, [0, sag, 0.01, sag + 0.4 + 0.1, 0, 0, 0, 0], 5)
    step = 0.004
    np.testing.assert_allclose(
        fall[:, 3] - fall[0, 3], [-9.81 * (t := 0.04 * k) * (t + step) / 2 for k in range(5)], atol=1e-4
    )
    hung = _coast(task, [0, 0, 0, 0.05, 0, 0, 0, 0], 200)[-1]
    weight = task.ball_mass * 9.81
    np.testing.assert_allclose(
        hung[:4], [0, sag - weight / 20, 0, hung[1] + 0.4 - 0.108 - 0.3 - weight / 1000], atol=2e-3
    )
    inside = _coast(task, [0, 0, 0.01, 0.4 - 0.05, 0, 0, 0, 0], 60)
    rewards = jax.jit(jax.vmap(task.reward, in_axes=(0, None)))(jnp.asarray(inside), jnp.zeros(2))
    np.testing.assert_array_equal(rewards[10:], 1)
    assert task.reward(jnp.asarray(hung), jnp.zeros(2)) == 0
    starts = jax.jit(jax.vmap(task.reset, in_axes=(0, None)))(
        jax.random.split(jax.random.key(0), 100), jnp.zeros((2, 2))
    )
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda x: jnp.stack(task.forces(tuple(x)))))(starts), 0)


def _gap(angles):
    """Distance of the fingertip from the spinner, which is sampled along its length."""
    one, two, turn = angles
    tip = jnp.stack(
        [0.18 * jnp.cos(one) + 0.16 * jnp.cos(one + two) - 0.4, 0.18 * jnp.sin(one) + 0.16 * jnp.sin(one + two)]
    )
    along = jnp.linspace(-0.09, 0.09, 4001)[:, None] * jnp.stack([-jnp.sin(turn), jnp.cos(turn)])[None]
    return jnp.min(jnp.linalg.norm(tip[None] - along, axis=1)) - 0.03 - 0.05


TOUCHING = [
    (0.2, -0.3, 0.3),
    (0.1, 0.1, 1.4),
    (-0.3, 0.5, -0.4),
    (0.3, -0.5, 2.9),
    (0.0, 0.3, 1.57),
    (0.15, 0.35, 0.6),
]


def test_the_finger_pushes_along_the_gap_and_rubs_against_the_slip():
    task, angles = TASKS["FingerSpin"], jnp.array(TOUCHING)
    gaps, slopes = jax.jit(jax.vmap(jax.value_and_grad(_gap)))(angles)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda a: task.contact(tuple(a))[0]))(angles), gaps, atol=1e-5)
    assert (np.asarray(gaps) < 0).all()

    @jax.jit
    @jax.vmap
    def torques(angles, speeds):
        joints, twist, touch = task.forces((*angles, *speeds, *jnp.zeros(2)))
        return jnp.stack([*joints, twist]), jnp.stack(touch)

    still, touch = torques(angles, jnp.zeros_like(angles))
    np.testing.assert_allclose(still, -finger.STIFFNESS * (gaps[:, None] * slopes), rtol=0.02, atol=0.05)
    np.testing.assert_allclose(touch.sum(1), -finger.STIFFNESS * gaps, rtol=1e-3)
    speeds = jax.random.normal(jax.random.key(0), angles.shape)
    moving, touch = torques(angles, speeds)
    closing = (slopes * speeds).sum(1)
    push = np.maximum(-finger.STIFFNESS * gaps - finger.DAMPING * closing, 0)
    np.testing.assert_allclose(touch.sum(1), push, rtol=0.02, atol=0.1)
    lost = (moving * speeds).sum(1) - push * closing  # what rubbing does
    assert (np.asarray(lost) < 1e-2).all()
    assert np.asarray(lost).min() < -0.5


def test_the_spinner_slows_down_by_itself():
    task = TASKS["FingerSpin"]
    xs = _coast(task, [1.8, 0, 0, 0, 0, -20.0, 0, 0, 0], 30)
    rate, moment = 0.05, finger._paddle()
    assert moment == pytest.approx(2 * (_capsule_moment(0.18, 0.04) + 0.02**2) * 1172.86e-3, rel=1e-3)
    t = 0.04 * np.arange(30)
    speed = np.maximum((20 + finger.COG / rate) * np.exp(-rate * t / moment) - finger.COG / rate, 0)
    np.testing.assert_allclose(-xs[:, 5], speed, atol=0.25)
    assert xs[-1, 5] == 0
    starts = jax.jit(jax.vmap(task.reset, in_axes=(0, None)))(
        jax.random.split(jax.random.key(0), 200), jnp.zeros((2, 2))
    )
    assert jax.jit(jax.vmap(_gap))(starts[:, :3]).min() > 0


def test_rewards():
    assert [round(float(near(jnp.float32(d), 1.0, 2.0)), 4) for d in (0.5, 1.0, 3.0, 2.0)] == [1, 1, 0.1, 0.5623]
    rest, full = jnp.zeros(2), jnp.ones(2)

    def reward(id, x, action=rest):
        return float(TASKS[id].reward(jnp.asarray(x, jnp.float32), action[: SIZES[id][1]]))

    assert [reward("PendulumSwingup", [math.radians(a), 5.0]) for a in (7.9, -7.9, 8.1, 180)] == [1, 1, 0, 0]
    assert reward("CartpoleBalance", [0, 0, 0, 0]) == 1
    assert reward("CartpoleBalance", [0, 0, 0, 0], full) == pytest.approx(0.8)
    assert reward("CartpoleBalance", [0, math.pi, 0, 0]) == pytest.approx(0, abs=1e-6)
    assert reward("CartpoleSwingup", [2.0, math.pi / 2, 3.0, -5.0]) == pytest.approx(0.5 * 0.55 * 0.55)
    assert reward("AcrobotSwingup", [0, 0, 0, 0]) == 1
    assert reward("AcrobotSwingup", [math.pi, 0, 0, 0]) == pytest.approx(0.1 ** (3.8**2), abs=1e-9)
    assert reward("AcrobotSwingup", [0, 1.0, 0, 0]) == pytest.approx(0.1 ** ((2 * math.sin(0.5) - 0.2) ** 2), rel=1e-4)
    mixing = [1, 0, 0, 1]
    assert reward("PointMassEasy", [0.01, 0.01, 0, 0, *mixing]) == 1
    assert reward("PointMassHard", [0.03, 0, 0, 0, *mixing], full) == pytest.approx(0.08)
    for id, touching in (("ReacherEasy", 0.059), ("ReacherHard", 0.024)):
        assert reward(id, [0, 0, 0, 0, 0.24 - touching, 0]) == 1
        assert reward(id, [0, 0, 0, 0, 0.24 - touching - 0.002, 0]) == 0
    assert [reward("FingerSpin", [0, 0, 0, 0, 0, v, 0, 0, 0]) for v in (-15.1, -14.9, 20)] == [1, 0, 0]
    for id, radius in (("FingerTurnEasy", 0.07), ("FingerTurnHard", 0.03)):
        rim = 2 * math.asin(radius / 2 / 0.13)
        assert [reward(id, [0, 0, 1.0, 0, 0, 9, 1.0 + a, 0, 0]) for a in (0.99 * rim, 1.01 * rim)] == [1, 0]


def _swing_up(x):
    """Pump energy, then hold (Astrom and Furuta 2000)."""
    energy = 0.5 * 0.251 * x[1] ** 2 + 9.81 * 0.5 * (jnp.cos(x[0]) - 1)
    angle = (x[0] + jnp.pi) % (2 * jnp.pi) - jnp.pi
    pump = jnp.sign(-energy * x[1]) * (jnp.abs(energy) > 0.05)
    return jnp.where((jnp.abs(angle) < 0.25) & (jnp.abs(x[1]) < 1.5), -12 * angle - 3 * x[1], pump)[None]


def _push_back(x):
    return jnp.linalg.solve(x[4:8].reshape(2, 2), -20 * x[:2] - 4 * x[2:4])


def _reach(x):
    """Follow the inverse of the arm's Jacobian."""
    away = jnp.stack(TASKS["ReacherEasy"].to_target(x))
    a, b = (
        0.12 * jnp.stack([jnp.cos(x[0]), jnp.sin(x[0])]),
        0.12 * jnp.stack([jnp.cos(x[0] + x[1]), jnp.sin(x[0] + x[1])]),
    )
    jacobian = jnp.stack([jnp.stack([-a[1] - b[1], -b[1]]), jnp.stack([a[0] + b[0], b[0]])])
    turn = jacobian.T @ jnp.linalg.solve(jacobian @ jacobian.T + 1e-4 * jnp.eye(2), away)
    return 2 * turn - 0.3 * x[2:4]


@pytest.mark.parametrize(("id", "player", "score", "idle"), [
    ("PendulumSwingup", _swing_up, 120, 20),
    ("PointMassHard", _push_back, 130, 10),
    ("ReacherHard", _reach, 150, 20),
])  # fmt: skip
def test_players_score(id, player, score, idle):
    env, params = envs.make(f"control/{id}")

    def play(policy, key):
        def step(state, _):
            _, state, reward, _, _ = env.step_env(key, state, jnp.clip(policy(state.x), -1, 1), params)
            return state, reward

        return jax.lax.scan(step, env.reset_env(key, params)[1], None, 200)[1].sum()

    keys = jax.random.split(jax.random.key(0), 32)
    assert jax.jit(jax.vmap(functools.partial(play, player)))(keys).mean() > score
    assert jax.jit(jax.vmap(functools.partial(play, lambda x: jnp.zeros(env.task.num_actions))))(keys).mean() < idle


@pytest.mark.parametrize("id", TASKS)
def test_scaled_observations_are_as_large_as_they_usually_are(id):
    (env, params), (scaled, _) = envs.make(f"control/{id}"), envs.make(f"control/{id}", scaled=True)
    usual = jnp.array(env.task.usual)

    def episode(key):
        _, state = env.reset_env(key, params)
        key_first, key = jax.random.split(key)
        push = env.action_space(params).sample

        def step(carry, key):
            state, action = carry
            anew, draw = jax.random.split(key)
            action = jnp.where(jax.random.bernoulli(anew, 0.2), push(draw), action)
            obs, state, *_ = env.step_env(key, state, action, params)
            return (state, action), (obs, scaled.step_env(key, carry[0], action, params)[0])

        return jax.lax.scan(step, (state, push(key_first)), jax.random.split(key, 200))[1]

    obs, in_units = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 64))
    np.testing.assert_allclose(in_units, obs / usual[None, None], rtol=1e-5, atol=1e-6)
    size = jnp.sqrt((in_units**2).mean((0, 1)))
    assert ((size > 0.5) & (size < 2)).all(), size
