"""The actor-critic network: encoder, memory, and a head each for the policy and the value."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssmrl import spaces
from ssmrl.nn.base import Carry, SequenceModel
from ssmrl.nn.convolution import Conv
from ssmrl.nn.distributions import Distribution, make_distribution, num_parameters
from ssmrl.nn.initializers import orthogonal

ACTIVATIONS = {"relu": nn.relu, "tanh": jnp.tanh, "gelu": nn.gelu, "silu": nn.silu}


class MLP(nn.Module):
    """Dense layers of the given widths, each followed by the activation."""

    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[..., D]`` to ``[..., widths[-1]]``."""
        for width in self.widths:
            x = ACTIVATIONS[self.activation](nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)))(x))
        return x


class CNN(nn.Module):
    """Convolutions over images ``[..., H, W, C]``: unstrided for small grids, the DQN stack (Mnih et al. 2015) else."""

    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return flat features ``[..., F]``."""
        lead, act = x.shape[:-3], ACTIVATIONS[self.activation]
        small = min(x.shape[-3:-1]) < 32
        x = jnp.asarray(x, jnp.float32).reshape(-1, *x.shape[-3:])
        for features, size, stride in ((16, 3, 1), (32, 3, 2)) if small else ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = act(Conv(features, size, stride)(x))
        return x.reshape(*lead, -1)


class ActorCritic(nn.Module):
    """A recurrent policy and value function of observation, previous action, previous reward and start flag.

    ``inputs`` names which of ``obs``, ``action``, ``reward`` and ``start`` are read. With ``shared=False`` actor and
    critic have an encoder and a memory each, and the carry is the pair of theirs.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    memory: SequenceModel
    inputs: tuple[str, ...]
    encoder: tuple[int, ...]
    heads: tuple[int, ...]
    activation: str
    shared: bool

    def initialize_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """The carry of a policy that has seen nothing; leaves ``[*B, ...]``."""
        carry = self.memory.initialize_carry(batch_shape)
        return carry if self.shared else (carry, carry)

    @nn.compact
    def __call__(
        self, carry: Carry, obs: Any, reset: jax.Array, prev_action: Any, prev_reward: jax.Array
    ) -> tuple[Carry, Distribution, jax.Array]:
        """Read a sequence: ``obs`` and ``prev_action`` ``[T, B, ...]``, bool ``reset`` and ``prev_reward`` ``[T, B]``.

        Where ``reset``, the previous action and reward are another episode's, and are read as zeros. Returns the new
        carry, the action distribution ``[T, B]`` and the value ``[T, B]``.
        """
        features: dict[str, jax.Array] = {
            "action": spaces.flatten(self.action_space, prev_action) * ~reset[..., None],
            "reward": (prev_reward * ~reset)[..., None],
            "start": reset[..., None].astype(jnp.float32),
        }

        def trunk(name: str, carry: Carry) -> tuple[Carry, jax.Array]:
            read = dict(features)
            if "obs" in self.inputs:
                image = spaces.is_image(self.observation_space)
                read["obs"] = (
                    CNN(self.activation, name=f"{name}cnn")(obs)
                    if image
                    else spaces.flatten(self.observation_space, obs)
                )
            x = jnp.concatenate([read[k] for k in self.inputs], -1)
            x = MLP((*self.encoder, self.memory.d_model), self.activation, name=f"{name}encoder")(x)
            memory = self.memory if self.shared else self.memory.copy(name=f"{name}memory")
            return memory(carry, x, reset)

        if self.shared:
            carry, x = trunk("", carry)
            for_actor = for_critic = x
        else:
            actor_carry, for_actor = trunk("actor_", carry[0])
            critic_carry, for_critic = trunk("critic_", carry[1])
            carry = (actor_carry, critic_carry)

        n = num_parameters(self.action_space)
        x = MLP(self.heads, self.activation, name="actor")(for_actor)
        parameters = nn.Dense(n, kernel_init=orthogonal(0.01), name="policy")(x)
        log_std = None
        if isinstance(self.action_space, spaces.Box):
            log_std = self.param("log_std", nn.initializers.zeros, (n,)).reshape((1,) * reset.ndim + (n,))
        x = MLP(self.heads, self.activation, name="critic")(for_critic)
        value = nn.Dense(1, kernel_init=orthogonal(1.0), name="value")(x)[..., 0]
        return carry, make_distribution(self.action_space, parameters, log_std), value
