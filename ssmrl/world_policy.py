"""An actor and a critic that read the state of a world model, and learn in what it imagines (Hafner et al. 2023).

Legend: H imagination horizon, N states that imagination starts from, D width of the memory, Z latent size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ssmrl import spaces
from ssmrl.frames import Frames
from ssmrl.nn import observations
from ssmrl.nn.base import Carry, flat_carry
from ssmrl.nn.distributions import Distribution, make_distribution, num_parameters
from ssmrl.nn.observations import Hidden, TwoHot
from ssmrl.spaces import Box
from ssmrl.world_model import Latents, Predictions, WorldModel, WorldState, scan_time

_MIN_STD, _MAX_STD, _MAX_MEAN = 0.1, 1.0, 5.0  # of continuous actions before the squashing


class Dream(struct.PyTreeNode):
    """Imagined futures: what the actor reads at H + 1 steps, what it does at H, and what that leads to."""

    inputs: jax.Array  # [H + 1, N, F]
    raw_action: Any  # [H, N, ...]
    predictions: Predictions  # of the H steps that the actions lead to, without observations


class WorldActorCritic(nn.Module):
    """A policy and a value function of the state of a world model; acts as :class:`ssmrl.nn.actor_critic.ActorCritic`.

    ``inputs`` names what they read: ``z``, the latent of the frame, ``h``, what the memory made of the past, and ``x``,
    all that the memory holds, its carry (R2I, Samsami et al. 2024). In acting, latents are the posterior's mode.
    """

    world: WorldModel
    inputs: tuple[str, ...] = ("z", "h")
    heads: tuple[int, ...] = (128,)
    unimix: float = 0.01
    bins: int = 81

    @property
    def observation_space(self) -> spaces.Space:
        """Of the world model."""
        return self.world.observation_space

    @property
    def action_space(self) -> spaces.Space:
        """Of the world model."""
        return self.world.action_space

    def setup(self) -> None:
        """Make the parts."""
        n = num_parameters(self.action_space) * (2 if isinstance(self.action_space, Box) else 1)
        last = nn.Dense(n, kernel_init=nn.initializers.zeros)
        self.actor = nn.Sequential([Hidden(self.heads), last]) if self.heads else last
        self.critic = TwoHot(self.heads, self.bins)

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> WorldState:
        """The state of a model that has seen nothing."""
        return self.world.initial_state(batch_shape)

    def __call__(
        self, carry: WorldState, obs: Any, reset: jax.Array, prev_action: Any, prev_reward: jax.Array
    ) -> tuple[WorldState, Distribution, jax.Array]:
        """See ``ActorCritic``; rewards are read by a world model with ``read_reward``."""
        frames = Frames(obs, prev_action, prev_reward, reset, jnp.zeros_like(reset))
        if self.is_initializing():  # acting needs no decoder and no heads
            self.world.loss(carry, frames, jax.random.key(0))
        if reset.shape[0] == 1 or "x" not in self.inputs:
            carry, seen = self.world.observe(carry, frames, jax.random.key(0), "mode")
            inputs = self.read(seen.h, seen.z, jax.tree.map(lambda x: x[None], carry.memory))
        else:

            def step(module: WorldActorCritic, carry: WorldState, frame: Frames) -> tuple[WorldState, jax.Array]:
                one = jax.tree.map(lambda x: x[None], frame)
                carry, seen = module.world.observe(carry, one, jax.random.key(0), "mode")
                return carry, module.read(seen.h[0], seen.z[0], carry.memory)

            carry, inputs = scan_time(step)(self, carry, frames)
        return carry, self.act(inputs), self.value(inputs)

    def read(self, h: jax.Array, z: jax.Array, memory: Carry) -> jax.Array:
        """What actor and critic read: ``h`` ``[..., D]``, ``z`` ``[..., Z]``, carry leaves ``[..., *any]``."""
        parts = {"z": z, "h": h}
        if "x" in self.inputs:
            parts["x"] = flat_carry(memory, h.shape[:-1])
        return jnp.concatenate([parts[k] for k in self.inputs], -1)

    def act(self, inputs: jax.Array) -> Distribution:
        """The distribution of actions, given :meth:`read` ``[..., F]``."""
        parameters, log_std = self.actor(inputs), None
        if isinstance(self.action_space, Box):
            mean, raw = jnp.split(parameters, 2, axis=-1)
            parameters = _MAX_MEAN * jnp.tanh(mean / _MAX_MEAN)
            log_std = jnp.log(_MIN_STD + (_MAX_STD - _MIN_STD) * nn.sigmoid(raw + 2.0))
        return make_distribution(self.action_space, parameters, log_std).mix_uniform(self.unimix)

    def value(self, inputs: jax.Array) -> jax.Array:
        """The value ``[...]``, given :meth:`read` ``[..., F]``."""
        return observations.two_hot_mean(self.critic(inputs))

    def value_logits(self, inputs: jax.Array) -> jax.Array:
        """The critic's distribution of returns, ``[..., bins]``."""
        return self.critic(inputs)

    def dream(self, state: WorldState, h: jax.Array, horizon: int, key: jax.Array) -> Dream:
        """Act in imagination for ``horizon`` steps, from states ``[N, ...]`` and their ``h`` ``[N, D]``.

        Differentiable by actions, which pass their gradient on; ``key`` is consumed.
        """

        def step(module: WorldActorCritic, carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
            state, h = carry
            key_act, key_latent = jax.random.split(key)
            inputs = module.read(h, state.z, state.memory)
            dist = module.act(inputs)
            raw = dist.sample(key_act)
            state, h, prior = module.world.step(state, dist.flatten(raw))
            state = state.replace(z=module.world.make_latent(prior).sharp().sample(key_latent))
            return (state, h), (inputs, raw, h, state.z)

        keys = jax.random.split(key, horizon)
        (state, h), (inputs, raw, hs, zs) = scan_time(step)(self, (state, h), keys)
        inputs = jnp.concatenate([inputs, self.read(h, state.z, state.memory)[None]])
        features = Latents(hs, zs, None).features
        return Dream(inputs, raw, self.world.predict_outcome(features))
