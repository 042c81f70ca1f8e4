"""Behaviour-suite tasks of memory and credit assignment, step for step as in DeepMind's ``bsuite`` 0.3.

``bsuite/MemoryLen/30`` shows a cue once and asks for it 30 steps later; ``bsuite/MemorySize/10`` shows 10 bits and
asks for one; ``bsuite/UmbrellaLength/30`` and ``bsuite/UmbrellaDistract/30`` reward the first action at the end, among
distractors; ``bsuite/DiscountingChain/0`` pays after a delay that the first action chooses. Every episode ends by
itself: no clock interferes, however long the chain. bsuite's leading axis of size one is dropped.

Source: Osband et al. 2020, "Behaviour Suite for Reinforcement Learning", https://github.com/google-deepmind/bsuite.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ssmrl.envs import scenes
from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.registry import envs, hp
from ssmrl.spaces import Box, Discrete


def _signs(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    return 2 * jax.random.bernoulli(key, shape=shape).astype(jnp.float32) - 1


@struct.dataclass
class MemoryState(EnvState):
    """The hidden bits ``context`` ``[num_bits]`` (0 or 1, int32) and the index ``query`` of the bit to recall."""

    context: jax.Array
    query: jax.Array


@envs.register("bsuite/MemoryLen", field="memory_length")
@dataclasses.dataclass(frozen=True)
class MemoryLen(Environment):
    """Recall a cue after a delay: the cue is seen on the first two steps, only the last action is rewarded.

    Observation ``[2 + num_bits]``: share of the time left, the query (last step but one, from 0), the context as
    -1 and 1 (first step). An episode has ``memory_length + 1`` steps, as in bsuite: a step's observation is made
    before the clock advances, hence the first one comes twice.
    """

    memory_length: int = hp(30, "steps between the cue and the question", ge=1)
    num_bits: int = hp(1, "bits in the cue, of which one is asked for", ge=1)

    @property
    def default_params(self) -> EnvParams:
        """A clock that never ends an episode."""
        return EnvParams(max_steps_in_episode=self.memory_length + 2)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, MemoryState]:
        """Draw a context and a query; ``key`` is consumed."""
        key_context, key_query = jax.random.split(key)
        context = jax.random.bernoulli(key_context, shape=(self.num_bits,)).astype(jnp.int32)
        query = jax.random.randint(key_query, (), 0, self.num_bits, jnp.int32)
        state = MemoryState(jnp.int32(0), context, query)
        return self._observe(state), state

    def step_env(
        self, key: jax.Array, state: MemoryState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, MemoryState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; the last action scores 1 if it is the queried bit and -1 if not."""
        terminated = state.time == self.memory_length
        answer = jnp.where(action == state.context[state.query], 1.0, -1.0)
        reward = jnp.where(terminated, answer, 0.0).astype(jnp.float32)
        return self._observe(state), dataclasses.replace(state, time=state.time + 1), reward, terminated, {}

    def render(self, state: MemoryState, params: EnvParams) -> np.ndarray:
        """Draw the cue and the time until the question."""
        return scenes.memory(state.context, state.query, state.time, self.memory_length)

    def _observe(self, state: MemoryState) -> jax.Array:
        query = jnp.where(state.time == self.memory_length - 1, state.query, 0)
        context = jnp.where(state.time == 0, 2 * state.context - 1, 0)
        head = jnp.stack([(self.memory_length - state.time) / self.memory_length, query.astype(jnp.float32)])
        return jnp.concatenate([head, context.astype(jnp.float32)])

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[2 + num_bits]``."""
        bits = self.num_bits
        return Box((0.0, 0.0, *bits * (-1.0,)), (1.0, max(bits - 1.0, 0.0), *bits * (1.0,)), (2 + bits,))

    def action_space(self, params: EnvParams) -> Discrete:
        """The bit: 0 or 1."""
        return Discrete(2)


@envs.register("bsuite/MemorySize", field="num_bits")
@dataclasses.dataclass(frozen=True)
class MemorySize(MemoryLen):
    """Recall one of many bits, two steps after they were shown."""

    memory_length: int = hp(2, "steps between the cue and the question", ge=1)
    num_bits: int = hp(10, "bits in the cue, of which one is asked for", ge=1)


@struct.dataclass
class UmbrellaState(EnvState):
    """Whether an umbrella is needed and whether it was taken: 0 or 1, int32."""

    need: jax.Array
    has: jax.Array


@envs.register("bsuite/UmbrellaLength", field="chain_length")
@dataclasses.dataclass(frozen=True)
class UmbrellaLength(Environment):
    """Take an umbrella if it will rain: the first action decides the last reward; the rewards between are noise.

    Observation ``[3 + n_distractor]``: need, has, share of the time left, and fresh random bits.
    """

    chain_length: int = hp(20, "steps until the first action is paid for", ge=1)
    n_distractor: int = hp(20, "random bits in the observation", ge=0)

    @property
    def default_params(self) -> EnvParams:
        """A clock that never ends an episode."""
        return EnvParams(max_steps_in_episode=self.chain_length + 1)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, UmbrellaState]:
        """Draw the weather; ``key`` is consumed."""
        key_state, key_obs = jax.random.split(key)
        need, has = jax.random.bernoulli(key_state, shape=(2,)).astype(jnp.int32)
        state = UmbrellaState(jnp.int32(0), need, has)
        return self._observe(key_obs, state), state

    def step_env(
        self, key: jax.Array, state: UmbrellaState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, UmbrellaState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``; rewards are 1 or -1: deserved on the last step, random before."""
        key_reward, key_obs = jax.random.split(key)
        has = jnp.where(state.time == 0, action, state.has).astype(jnp.int32)
        state = UmbrellaState(state.time + 1, state.need, has)
        terminated = state.time == self.chain_length
        deserved = jnp.where(has == state.need, 1.0, -1.0).astype(jnp.float32)
        reward = jnp.where(terminated, deserved, _signs(key_reward))
        return self._observe(key_obs, state), state, reward, terminated, {}

    def render(self, state: UmbrellaState, params: EnvParams) -> np.ndarray:
        """Draw the weather, whether there is an umbrella, and the time left."""
        return scenes.umbrella(state.need, state.has, state.time, self.chain_length)

    def _observe(self, key: jax.Array, state: UmbrellaState) -> jax.Array:
        head = jnp.stack([state.need, state.has, (self.chain_length - state.time) / self.chain_length])
        distractors = jax.random.bernoulli(key, shape=(self.n_distractor,))
        return jnp.concatenate([head, distractors]).astype(jnp.float32)

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[3 + n_distractor]`` in ``[0, 1]``."""
        return Box(0.0, 1.0, (3 + self.n_distractor,))

    def action_space(self, params: EnvParams) -> Discrete:
        """Leave it (0) or take it (1)."""
        return Discrete(2)


@envs.register("bsuite/UmbrellaDistract", field="n_distractor")
@dataclasses.dataclass(frozen=True)
class UmbrellaDistract(UmbrellaLength):
    """The umbrella chain of length 20, with any number of distractors."""


@struct.dataclass
class ChainState(EnvState):
    """The chain that the first action chose: int32, -1 before."""

    chain: jax.Array


DELAYS = (1, 3, 10, 30, 100)


@envs.register("bsuite/DiscountingChain", field="mapping_seed")
@dataclasses.dataclass(frozen=True)
class DiscountingChain(Environment):
    """Choose a delay of 1, 3, 10, 30 or 100 steps with the first action: each pays 1 once, one of them pays 1.1.

    Observation ``[2]``: the chosen chain (-1 before), share of the 100 steps gone. The start is always the same.
    """

    mapping_seed: int = hp(0, "which delay pays 1.1, modulo 5", ge=0)

    @property
    def default_params(self) -> EnvParams:
        """A clock that never ends an episode."""
        return EnvParams(max_steps_in_episode=max(DELAYS) + 1)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, ChainState]:
        """Start before the choice; ``key`` is not used."""
        state = ChainState(jnp.int32(0), jnp.int32(-1))
        return self._observe(state), state

    def step_env(
        self, key: jax.Array, state: ChainState, action: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, ChainState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        chain = jnp.where(state.time == 0, action, state.chain).astype(jnp.int32)
        state = ChainState(state.time + 1, chain)
        pay = jnp.where(chain == self.mapping_seed % len(DELAYS), 1.1, 1.0)
        reward = jnp.where(state.time == jnp.asarray(DELAYS)[chain], pay, 0.0).astype(jnp.float32)
        return self._observe(state), state, reward, state.time == max(DELAYS), {}

    def render(self, state: ChainState, params: EnvParams) -> np.ndarray:
        """Draw the delays and the way along the one chosen."""
        return scenes.delays(DELAYS, self.mapping_seed % len(DELAYS), state.chain, state.time)

    def _observe(self, state: ChainState) -> jax.Array:
        return jnp.stack([state.chain, state.time / max(DELAYS)]).astype(jnp.float32)

    def observation_space(self, params: EnvParams) -> Box:
        """Float32 ``[2]``."""
        return Box((-1.0, 0.0), (len(DELAYS) - 1.0, 1.0), (2,))

    def action_space(self, params: EnvParams) -> Discrete:
        """The chain."""
        return Discrete(len(DELAYS))
