"""Pictures of gymnax's environments, by id; those that are not here show their observation as a coloured board."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ssmrl.envs import scenes

_PAYS = "bars: what the arms pay, hidden"


def draw(id: str, env: Any, state: Any, params: Any) -> np.ndarray:
    """Draw a state of gymnax's environment ``id``, uint8 ``[240, 320, 3]``; its leaves are numpy arrays.

    Raises ``NotImplementedError`` where the state does not tell what there is to see.
    """
    if id in _PICTURES:
        return _PICTURES[id](env, state, params)
    if not hasattr(env, "get_obs"):
        raise NotImplementedError(f"{id} has no picture: its state does not hold the image that is seen")
    return scenes.channels(env.get_obs(state), id)


def _cart_pole(env: Any, s: Any, p: Any) -> np.ndarray:
    return scenes.cart_pole(s.x, s.theta, p.x_threshold, p.theta_threshold_radians)


def _mountain_car(env: Any, s: Any, p: Any) -> np.ndarray:
    return scenes.mountain_car(s.position, p.min_position, p.max_position, p.goal_position)


def _room(env: Any, s: Any, p: Any) -> np.ndarray:
    return scenes.maze(env.occupied_map, s.pos, s.goal, "Go to the goal")


def _lake(env: Any, s: Any, p: Any) -> np.ndarray:
    desc = np.asarray(env.desc)  # 0 start, 1 ice, 2 hole, 3 goal
    here = divmod(int(s.position), desc.shape[1])
    return scenes.maze(desc < 0, here, np.argwhere(desc == 3)[0], "Cross the ice, past the holes", desc == 2)


def _reacher(env: Any, s: Any, p: Any) -> np.ndarray:
    angles = np.asarray(s.angles)
    joints = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], -1), 0)
    return scenes.plane("Reach the goal with the tip", env.num_joints * 1.45, [(0, 0), *joints], s.goal_xy)


def _swimmer(env: Any, s: Any, p: Any) -> np.ndarray:
    return scenes.plane("Swim to the goal, past the urchins", 2.0, [s.xy], s.goal_xy, obstacles=s.urchin_xys)


def _point(env: Any, s: Any, p: Any) -> np.ndarray:
    task = "Find the goal, hidden on the half circle"
    return scenes.plane(task, 1.4, [s.pos], s.goal, p.goal_radius, arc=p.circle_radius)


_PICTURES: dict[str, Callable[[Any, Any, Any], np.ndarray]] = {
    "CartPole-v1": _cart_pole,
    "Pendulum-v1": lambda env, s, p: scenes.pendulum(s.theta),
    "Acrobot-v1": lambda env, s, p: scenes.acrobot(s.joint_angle1, s.joint_angle2),
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "FourRooms-misc": _room,
    "MetaMaze-misc": _room,
    "FrozenLake-misc": _lake,
    "Reacher-misc": _reacher,
    "Swimmer-misc": _swimmer,
    "PointRobot-misc": _point,
    "BernoulliBandit-misc": lambda env, s, p: scenes.arms(s.reward_probs, "Find the better arm", _PAYS),
    "GaussianBandit-misc": lambda env, s, p: scenes.arms([0, s.mu], "Find the better arm", _PAYS),
    "SimpleBandit-bsuite": lambda env, s, p: scenes.arms(s.rewards, "Find the best arm", _PAYS),
    "MemoryChain-bsuite": lambda env, s, p: scenes.memory(s.context, s.query, s.time, p.memory_length),
    "UmbrellaChain-bsuite": lambda env, s, p: scenes.umbrella(s.need_umbrella, s.has_umbrella, s.time, p.chain_length),
    "DiscountingChain-bsuite": lambda env, s, p: scenes.delays(
        np.asarray(p.reward_timestep).tolist(), int(np.argmax(s.rewards)), int(s.context), s.time
    ),
}
