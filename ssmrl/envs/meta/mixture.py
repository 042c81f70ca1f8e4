"""Environments of several kinds as one: a row of a batch has its kind, and a batch is stepped kind by kind.

A ``lax.switch`` over the kinds under ``vmap`` would step every row as every kind. Here, row ``i`` of ``B`` is always of
kind ``i * n // B``, so that the rows of one kind are a static slice. Batches smaller than ``n`` draw their kinds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ssmrl.envs.base import Environment, EnvParams, EnvState
from ssmrl.registry import check, envs
from ssmrl.spaces import Box, Space


@struct.dataclass
class MixtureState(EnvState):
    """``words`` uint32 ``[n]``: the leaves of the member's own state, bit by bit, then zeros."""

    words: jax.Array


@struct.dataclass
class MixtureParams(EnvParams):
    """``task`` int32: which member; ``members``: the parameters of each."""

    task: Any = 0
    members: Any = ()


class Mixture(Environment):
    """One of several environments, ``tasks`` by their ids, in observations and actions as long as the longest of any.

    Observations end in zeros, and actions in numbers that nobody reads. The policy is not told which task it plays.
    Raises ``ValueError`` for members whose observations are no vectors, whose actions are not in ``[-1, 1]``, or whose
    time limits differ.
    """

    tasks: tuple[str, ...]

    requires: ClassVar[dict[str, str]] = {
        "trial_episodes + trial_steps > 0": "which of the tasks it is is drawn with a trial",
    }

    def __post_init__(self) -> None:
        check(self)
        if not self.tasks:
            raise ValueError("tasks=(): a mixture has at least one; name environments, as control/PendulumSwingup")
        for id, member in zip(self.tasks, self.members, strict=True):
            params = member.default_params
            seen, done = member.observation_space(params), member.action_space(params)
            if not (isinstance(seen, Box) and len(seen.shape) == 1):
                raise ValueError(
                    f"tasks: {id} has observations in {seen}; use environments whose observations are vectors"
                )
            if not (isinstance(done, Box) and np.all(np.abs(done.bounds()) == 1)):
                raise ValueError(f"tasks: {id} has actions in {done}; use environments whose actions are in [-1, 1]")
        limits = {id: m.default_params.max_steps_in_episode for id, m in zip(self.tasks, self.members, strict=True)}
        if len({*limits.values()}) > 1:
            raise ValueError(f"tasks have different time limits: {limits}; use environments of one length")

    @functools.cached_property
    def members(self) -> tuple[Environment, ...]:
        """The environments."""
        return tuple(self.member(id) for id in self.tasks)

    def member(self, id: str) -> Environment:
        """The environment that ``id`` names."""
        env: Environment = envs.create(id)[0]
        return env

    @functools.cached_property
    def _forms(self) -> tuple[Any, ...]:
        """The state of each member, as shapes and types."""
        with jax.ensure_compile_time_eval():
            key = jax.random.key(0)
            return tuple(jax.eval_shape(m.reset_env, key, m.default_params)[1] for m in self.members)

    @functools.cached_property
    def _longest(self) -> int:
        return max(sum(word_count(leaf) for leaf in jax.tree.leaves(form)) for form in self._forms)

    @property
    def default_params(self) -> MixtureParams:
        """The first task."""
        members = tuple(m.default_params for m in self.members)
        return MixtureParams(members[0].max_steps_in_episode, jnp.int32(0), members)

    def sample_task(self, key: jax.Array, params: MixtureParams) -> MixtureParams:
        """Draw a member, and a task of each; ``key`` is consumed."""
        key, *keys = jax.random.split(key, len(self.members) + 1)
        members = tuple(m.sample_task(k, p) for m, k, p in zip(self.members, keys, params.members, strict=True))
        task = jax.random.randint(key, (), 0, len(members), jnp.int32)
        return dataclasses.replace(params, task=task, members=members)

    def sample_tasks(self, keys: jax.Array, params: MixtureParams, axis: int | None = None) -> MixtureParams:
        """See ``Environment``; the members do not change: row ``i`` of ``B`` is of kind ``i * n // B``."""
        drawn = super().sample_tasks(keys, params, axis)
        kinds = self.kinds(len(keys))
        return drawn if kinds is None else dataclasses.replace(drawn, task=jnp.asarray(kinds, jnp.int32))

    def kinds(self, batch: int) -> np.ndarray | None:
        """Which member each row of a batch is, int ``[batch]``; None for one so small that they are drawn."""
        n = len(self.members)
        return None if batch < n else np.arange(batch) * n // batch

    def reset_env(self, key: jax.Array, params: MixtureParams) -> tuple[jax.Array, MixtureState]:
        """See ``Environment``."""

        def branch(i: int) -> Callable[[], tuple[Any, ...]]:
            return lambda: self._told(i, *self.members[i].reset_env(key, params.members[i]))

        return lax.switch(params.task, [branch(i) for i in range(len(self.members))])

    def step_env(
        self, key: jax.Array, state: MixtureState, action: jax.Array, params: MixtureParams
    ) -> tuple[jax.Array, MixtureState, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""

        def branch(i: int) -> Callable[[], tuple[Any, ...]]:
            return lambda: self._told(
                i,
                *self.members[i].step_env(
                    key, unpack(state.words, self._forms[i]), action[: self._sizes[i]], params.members[i]
                ),
            )

        return lax.switch(params.task, [branch(i) for i in range(len(self.members))])

    def reset_envs(self, keys: jax.Array, params: MixtureParams, axis: int | None = None) -> tuple[Any, Any]:
        """See ``Environment``."""
        if axis is None or len(keys) < len(self.members):
            return super().reset_envs(keys, params, axis)
        return self._by_kind(
            len(keys), lambda i, rows: self.members[i].reset_envs(keys[rows], _rows(params.members[i], rows), 0)
        )

    def step_envs(
        self, keys: jax.Array, states: MixtureState, actions: jax.Array, params: MixtureParams, axis: int | None = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        """See ``Environment``."""
        if axis is None or len(keys) < len(self.members):
            return super().step_envs(keys, states, actions, params, axis)

        def step(i: int, rows: slice) -> tuple[Any, ...]:
            own = jax.vmap(lambda words: unpack(words, self._forms[i]))(states.words[rows])
            return self.members[i].step_envs(
                keys[rows], own, actions[rows, : self._sizes[i]], _rows(params.members[i], rows), 0
            )

        return self._by_kind(len(keys), step)

    def _by_kind(self, batch: int, function: Callable[[int, slice], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What ``function(member, rows)`` returns for the rows of each member, one below the other."""
        n = len(self.members)
        starts = [math.ceil(i * batch / n) for i in range(n + 1)]
        parts = []
        for i in range(n):
            told = functools.partial(self._told, i)
            parts.append(jax.vmap(told)(*function(i, slice(starts[i], starts[i + 1]))))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def _told(self, i: int, obs: jax.Array, state: Any, *rest: Any) -> tuple[Any, ...]:
        """What a reset or a step of member ``i`` returns, in the form that all have in common."""
        obs = jnp.pad(obs, (0, self.observation_space(None).shape[0] - len(obs)))
        state = MixtureState(state.time, pack(state, self._longest))
        return obs, state, *((rest[0], rest[1], {}) if rest else ())

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(_length(m.action_space(m.default_params)) for m in self.members)

    def render(self, state: MixtureState, params: MixtureParams) -> np.ndarray:
        """Draw the member that it is."""
        i = int(params.task)
        return self.members[i].render(
            jax.device_get(unpack(jnp.asarray(state.words), self._forms[i])), params.members[i]
        )

    def observation_space(self, params: Any) -> Box:
        """Float32 ``[O]``, unbounded; ``O`` is that of the member that sees most."""
        sizes = [_length(m.observation_space(m.default_params)) for m in self.members]
        return Box(-np.inf, np.inf, (max(sizes),))

    def action_space(self, params: Any) -> Box:
        """Float32 ``[A]`` in ``[-1, 1]``; ``A`` is that of the member that has most motors."""
        return Box(-1.0, 1.0, (max(self._sizes),))


def _length(space: Space) -> int:
    assert isinstance(space, Box)
    return space.shape[0]


def _rows(params: Any, rows: slice) -> Any:
    return jax.tree.map(lambda x: x[rows], params)


def pack(state: Any, size: int) -> jax.Array:
    """The leaves of a state as words, uint32 ``[size]``, zeros behind them."""
    words = [_words(x).ravel() for x in jax.tree.leaves(state)]
    flat = jnp.concatenate(words)
    return jnp.pad(flat, (0, size - len(flat)))


def unpack(words: jax.Array, form: Any) -> Any:
    """The state, of shapes and types ``form``, that :func:`pack` made ``words`` of."""
    leaves, tree = jax.tree.flatten(form)
    states, start = [], 0
    for leaf in leaves:
        count = word_count(leaf)
        states.append(_leaf(words[start : start + count], leaf))
        start += count
    return jax.tree.unflatten(tree, states)


def word_count(form: Any) -> int:
    """How many words a leaf takes."""
    if jnp.issubdtype(form.dtype, jax.dtypes.prng_key):
        form = jax.eval_shape(jax.random.key_data, form)
    return math.prod(form.shape)


def _words(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x.astype(jnp.uint32)


def _leaf(words: jax.Array, form: Any) -> jax.Array:
    if jnp.issubdtype(form.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(words.reshape(*form.shape, -1))
    words = words.reshape(form.shape)
    return lax.bitcast_convert_type(words, form.dtype) if form.dtype.itemsize == 4 else words.astype(form.dtype)
