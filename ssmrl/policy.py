"""A trained policy: parameters, input features and normaliser in one pytree that acts."""

from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import struct

from ssmrl import spaces, vector
from ssmrl.fields import UserError
from ssmrl.nn.base import Carry
from ssmrl.nn.distributions import Distribution


class RunningStats(struct.PyTreeNode):
    """Running mean and variance of a stream of values (Chan et al. 1983), for normalising."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @classmethod
    def create(cls, shape: tuple[int, ...] = ()) -> "RunningStats":
        """Statistics of nothing yet: mean 0, variance 1."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))

    def update(self, x: jax.Array) -> "RunningStats":
        """Add values ``[..., *shape]``."""
        axes = tuple(range(x.ndim - self.mean.ndim))
        n = jnp.float32(x.size // max(self.mean.size, 1))
        mean, var, total = x.mean(axes), x.var(axes), self.count + n
        delta = mean - self.mean
        m2 = self.var * self.count + var * n + delta**2 * self.count * n / total
        return RunningStats(self.mean + delta * n / total, m2 / total, total)

    def normalize(self, x: jax.Array) -> jax.Array:
        """Shift and scale ``[..., *shape]`` to mean 0 and variance 1, clipped to +-10."""
        lead = (1,) * (x.ndim - self.mean.ndim)
        mean, var = self.mean.reshape(*lead, *self.mean.shape), self.var.reshape(*lead, *self.var.shape)
        return jnp.clip((x - mean) * jax.lax.rsqrt(var + 1e-8), -10.0, 10.0)


class Network(Protocol):
    """The flax module in a policy: :class:`ssmrl.nn.actor_critic.ActorCritic`, or another that is called alike."""

    @property
    def observation_space(self) -> spaces.Space:
        """What it reads."""

    @property
    def action_space(self) -> spaces.Space:
        """What it does."""

    def initialize_carry(self, batch_shape: tuple[int, ...]) -> Carry:
        """The carry of a policy that has seen nothing; leaves ``[*B, ...]``."""

    def apply(self, variables: Any, *args: Any) -> Any:
        """Of carry, observations, resets, previous actions and rewards: carry, distributions and values."""


class PolicyCarry(struct.PyTreeNode):
    """What a policy remembers between two actions: its memory and the action it took last, leaves ``[B, ...]``."""

    memory: Carry
    action: Any


class Policy(struct.PyTreeNode):
    """A recurrent policy, pure and safe under ``jit``, ``vmap`` and ``scan``.

    ::

        carry = policy.initial_carry(batch=64)
        action, carry = policy.act(carry, obs, reset, reward=reward, key=key)

    ``reset`` is True with the first observation of an episode, also with the very first one.
    """

    params: Any
    obs_stats: RunningStats | None
    reward_scale: Any
    network: Network = struct.field(pytree_node=False)

    def initial_carry(self, batch: int) -> PolicyCarry:
        """The carry before anything was seen, for ``batch`` parallel environments."""
        return PolicyCarry(self.network.initialize_carry((batch,)), spaces.zeros(self.network.action_space, (batch,)))

    def act(
        self,
        carry: PolicyCarry,
        obs: Any,
        reset: jax.Array,
        *,
        reward: jax.Array | float = 0.0,
        key: jax.Array | None = None,
        greedy: bool = False,
    ) -> tuple[Any, PolicyCarry]:
        """Choose actions for observations ``obs`` ``[B, ...]``.

        ``reset`` bool ``[B]`` marks first observations, ``reward`` ``[B]`` is what the last action earned, ``key`` is
        consumed (not needed if ``greedy``). Returns the environment's actions ``[B, ...]`` and the new carry.
        Raises ``ValueError`` without a key to sample with.
        """
        if key is None and not greedy:
            raise ValueError("a stochastic policy needs randomness: pass key=jax.random.key(...) or greedy=True")
        reset = jnp.asarray(reset)
        reward = jnp.broadcast_to(jnp.asarray(reward, jnp.float32), reset.shape)
        memory, dist, _ = self.step(carry, obs, reset, reward)
        action = dist.to_env(dist.mode() if greedy or key is None else dist.sample(key))
        return action, PolicyCarry(memory, action)

    def run(self, venv: Any, episodes: int = 256, *, seed: int = 0, greedy: bool = False) -> dict[str, float]:
        """Run at least ``episodes`` whole episodes in a ``gymnasium.vector.VectorEnv``, of any auto-reset mode.

        Each sub-environment runs the same number of episodes, so that short ones do not count more often; one without
        an end within 100,000 steps does not count. Returns a flat dict: ``return_mean``, ``return_std`` and
        ``return_se`` over episodes, ``length_mean``, ``episodes``. Raises ``UserError`` if ``venv`` does not say how it
        starts new episodes, or has other spaces than the policy.
        """
        return vector.run(self, venv, episodes, seed=seed, greedy=greedy)

    def step(
        self, carry: PolicyCarry, obs: Any, reset: jax.Array, reward: jax.Array
    ) -> tuple[Carry, Distribution, jax.Array]:
        """One time step of :meth:`sequence`, without the time axis."""
        inputs = jax.tree.map(lambda x: x[None], (obs, reset, carry.action, reward))
        memory, dist, value = self.sequence(carry.memory, *inputs)
        return memory, jax.tree.map(lambda x: x[0], dist), value[0]

    def sequence(
        self, memory: Carry, obs: Any, reset: jax.Array, prev_action: Any, prev_reward: jax.Array
    ) -> tuple[Carry, Distribution, jax.Array]:
        """Apply the network to time-major sequences ``[T, B, ...]``: new memory, distributions and (raw) values."""
        if self.obs_stats is not None:
            obs = self.obs_stats.normalize(jnp.asarray(obs, jnp.float32))
        inputs = (memory, obs, reset, prev_action, prev_reward * self.reward_scale)
        return cast(tuple[Carry, Distribution, jax.Array], self.network.apply({"params": self.params}, *inputs))


def check_spaces(policy: Policy, env: Any, env_params: Any) -> None:
    """Raise ``UserError`` unless the policy reads what ``env`` shows and does what it takes."""
    network = policy.network
    for name, own, there in (
        ("observations", network.observation_space, env.observation_space(env_params)),
        ("actions", network.action_space, env.action_space(env_params)),
    ):
        if own != there:
            raise UserError(f"the policy was trained with {name} in {own}, but {env.name} has {there}")
