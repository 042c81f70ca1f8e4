"""The environments of gymnax 1.x under their own ids, as ``gymnax/CartPole-v1``.

``-P`` shows the positions of a control task only, ``-V`` the velocities only: what is hidden must be remembered.
The physics can be changed through gymnax's own parameters: ``params.replace(gravity=5.0)``. gymnax takes 2 s to import,
hence it is imported when the first of these environments is built.

Source: Lange 2022, "gymnax: A JAX-based Reinforcement Learning Environment Library".
"""

import dataclasses
import functools
import socket
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmrl import spaces
from ssmrl.envs.base import Environment
from ssmrl.registry import UserError, envs, hp

# What each entry of an observation is: P for a position (or the sine or cosine of an angle), V for a velocity.
KINDS = {
    "CartPole-v1": "PVPV",
    "Pendulum-v1": "PPV",
    "Acrobot-v1": "PPPPVV",
    "MountainCar-v0": "PV",
    "MountainCarContinuous-v0": "PV",
}


@envs.register(
    "gymnax/",
    field="id",
    variants=(
        "CartPole-v1",
        "CartPole-v1-P",
        "CartPole-v1-V",
        "Pendulum-v1",
        "Pendulum-v1-P",
        "Pendulum-v1-V",
        "Acrobot-v1",
        "Acrobot-v1-P",
        "Acrobot-v1-V",
        "MountainCar-v0",
        "MountainCar-v0-P",
        "MountainCar-v0-V",
        "MountainCarContinuous-v0",
        "MountainCarContinuous-v0-P",
        "MountainCarContinuous-v0-V",
        "Asterix-MinAtar",
        "Breakout-MinAtar",
        "Freeway-MinAtar",
        "Seaquest-MinAtar",
        "SpaceInvaders-MinAtar",
        "Catch-bsuite",
        "DeepSea-bsuite",
        "MemoryChain-bsuite",
        "UmbrellaChain-bsuite",
        "DiscountingChain-bsuite",
        "MNISTBandit-bsuite",
        "SimpleBandit-bsuite",
        "FourRooms-misc",
        "MetaMaze-misc",
        "PointRobot-misc",
        "BernoulliBandit-misc",
        "GaussianBandit-misc",
        "Reacher-misc",
        "Swimmer-misc",
        "Pong-misc",
        "FrozenLake-misc",
    ),
)
@dataclasses.dataclass(frozen=True)
class Gymnax(Environment):
    """An environment of gymnax, with the types that its spaces promise.

    Raises ``UserError`` where a fork has overwritten gymnax and where an environment's data cannot be had.
    """

    id: str = hp("CartPole-v1", "gymnax's own id, with -P or -V where only positions or velocities are seen")

    def __post_init__(self) -> None:
        _upstream(self._split[0])  # its errors belong here, not inside somebody's jit

    @property
    def name(self) -> str:
        """The id."""
        return self.id

    @property
    def _split(self) -> tuple[str, str]:
        base, _, kind = self.id.rpartition("-")
        return (base, kind) if base in KINDS else (self.id, "")

    @property
    def _env(self) -> Any:
        return _upstream(self._split[0])[0]

    @functools.cached_property
    def _seen(self) -> np.ndarray | None:
        base, kind = self._split
        return np.flatnonzero([k == kind for k in KINDS[base]]) if kind else None

    @functools.cached_property
    def _space(self) -> spaces.Space:
        return self.observation_space(self.default_params)

    @functools.cached_property
    def _clock(self) -> Any:  # some of gymnax's environments count their steps in float32, and insist
        with jax.numpy_rank_promotion("allow"):
            _, state = jax.eval_shape(self._env.reset_env, jax.random.key(0), self.default_params)
        return state.time.dtype

    @property
    def default_params(self) -> Any:
        """gymnax's own parameters."""
        return _upstream(self._split[0])[1]

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """See ``Environment``."""
        with jax.numpy_rank_promotion("allow"):
            obs, state = self._env.reset_env(key, params)
        return self._observe(obs), _typed(state)

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        state = state.replace(time=state.time.astype(self._clock))
        with jax.numpy_rank_promotion("allow"):
            obs, state, reward, terminated, _ = self._env.step_env(key, state, action, params)
        reward, terminated = jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool)
        return self._observe(obs), _typed(state), reward, terminated, {}

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        """See ``Environment``."""
        return self._env.is_truncated(state, params)

    def render(self, state: Any, params: Any) -> np.ndarray:
        """Draw a state, see ``gymnax_pictures``."""
        from ssmrl.envs.gymnax_pictures import draw

        with jax.numpy_rank_promotion("allow"):
            return draw(self._split[0], self._env, jax.device_get(state), jax.device_get(params))

    def _observe(self, obs: Any) -> Any:
        return spaces.cast(self._space, obs if self._seen is None else obs[self._seen])

    def observation_space(self, params: Any) -> spaces.Space:
        """Space of one observation, as gymnax declares it; not all its environments stay within theirs."""
        with jax.ensure_compile_time_eval():
            space = from_gymnax_space(self._env.observation_space(params))
        if self._seen is None:
            return space
        assert isinstance(space, spaces.Box)
        low, high = space.bounds()
        return spaces.Box(low[self._seen], high[self._seen], (len(self._seen),))

    def action_space(self, params: Any) -> spaces.Space:
        """Space of one action."""
        with jax.ensure_compile_time_eval():
            return from_gymnax_space(self._env.action_space(params))


def from_gymnax_space(space: Any) -> spaces.Space:
    """Convert a gymnax space to the space of ours that describes the same elements."""
    match type(space).__name__:
        case "Discrete":
            return spaces.Discrete(int(space.n))
        case "Box":
            low, high = (np.asarray(bound, np.float32) for bound in (space.low, space.high))
            limit = np.finfo(np.float32).max  # gymnax's "unbounded"
            return spaces.Box(
                np.where(low <= -limit, -np.inf, low), np.where(high >= limit, np.inf, high), space.shape, space.dtype
            )
        case "Tuple":
            return spaces.Tuple(tuple(from_gymnax_space(s) for s in space.spaces))
        case "Dict":
            return spaces.Dict({name: from_gymnax_space(s) for name, s in space.spaces.items()})
    raise TypeError(f"unknown gymnax space {space!r}: use Discrete, Box, Tuple or Dict")


@functools.cache
def _upstream(id: str) -> tuple[Any, Any]:
    """Build gymnax's environment and its default parameters, once."""
    import gymnax

    if not hasattr(gymnax.environments.environment.Environment, "is_truncated"):
        raise UserError(
            f"gymnax at {gymnax.__path__[0]} is not gymnax 1.x: probably stable-gymnax overwrote it; "
            "pip uninstall stable-gymnax, then pip install --force-reinstall 'gymnax>=1.0.1,<2'"
        )
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # MNISTBandit downloads its images when it is built, with no limit of its own
    try:
        with jax.ensure_compile_time_eval():
            return gymnax.make(id)
    except (OSError, EOFError) as error:
        raise UserError(
            f"gymnax/{id} could not get its data: {error}; it needs the network once, or the four MNIST archives in "
            "/tmp/mnist (delete them if they are damaged)"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _typed(state: Any) -> Any:
    """Make every leaf strongly typed, so that nothing compiles twice, and the clock int32."""
    state = jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
    return state.replace(time=state.time.astype(jnp.int32))
