"""What the host loop runs: an agent's functions, compiled for one run or for a population of them.

Legend: ``V`` the floats in which the trials differ, ``S`` seeds, ``P`` slots: trials that run at once. Arrays of a
program with one slot have no ``P``: a single trial, like a single seed, is not vmapped, since that would turn
conditionals into selections, and compute every branch.
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssmrl import checkpoint
from ssmrl.agents import learned_of, make_agent, score_of
from ssmrl.config import Config
from ssmrl.evaluation import check_precision, find_checkpoint, member, read_config, run_episodes
from ssmrl.registry import UserError

NEVER = 2**31 - 1  # the first bad update of a chunk without one
_BY_EPISODE = ("return_mean", "length_mean")  # means over episodes, not over updates
_BY_PLACE = "episode_return/"  # means over those updates in which such an episode of a trial ended


def build_agent(config: Config) -> Any:
    """Make the agent; errors of the environment or the model become user errors."""
    check_precision()
    try:
        return make_agent(config)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def start_from(config: Config, agent: Any, state: Any) -> Any:
    """The first state of a run, leaves ``[seeds, ...]``, with what the run in ``init_from`` has learned.

    Raises ``UserError`` if there is no such run, or if what it has learned is not what this one learns.
    """
    if config.init_from is None:
        return state
    path = Path(config.init_from)
    try:
        if not learned_of(agent):
            raise UserError(f"agent={config.agent} cannot start from another run")
        if not (path / "manifest.json").is_file():
            path = find_checkpoint(path, "best", score_of(make_agent(read_config(path))))
        return checkpoint.restore_parts(path, state, learned_of(agent))
    except UserError as error:
        raise UserError(f"init_from={config.init_from}: {error}") from error


def program_key(config: Config, agent: Any) -> Hashable:
    """Equal for configurations that can share a program: they differ in floats of the agent, in seed and in length."""
    leaves, structure = jax.tree.flatten(agent)
    fixed = tuple(type(x) if isinstance(x, float) else _hashable(x) for x in leaves)
    return structure, fixed, config.seeds, config.log.every, config.eval.episodes, config.eval.greedy


class Program:
    """The functions of agents with the same :func:`program_key`, for ``slots`` trials at a time.

    Floats that are the same in all ``agents`` are constants of the program. ``like`` has the shapes of a trial's
    state, leaves ``[S, ...]``. Raises ``UserError`` for what only tracing finds.
    """

    def __init__(self, configs: Sequence[Config], agents: Sequence[Any], slots: int = 1):
        self.key, *others = dict.fromkeys(map(program_key, configs, agents))
        if others:
            raise UserError("these trials cannot share a program: more than floats of the agent and the seed differ")
        self.agent, self._config, self.slots, self.seeds = agents[0], configs[0], slots, configs[0].seeds
        self._leaves, self._structure = jax.tree.flatten(self.agent)
        rows = [jax.tree.leaves(agent) for agent in agents]
        self._varying = [
            i for i, x in enumerate(self._leaves) if isinstance(x, float) and any(row[i] != x for row in rows)
        ]
        # under jit: traced once, whoever asks, since tracing takes a second
        self._init = jax.jit(lambda values, key: self._member(values).init(key))
        self._update = jax.jit(lambda values, state: self._member(values).update(state))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.seeds))
        try:
            self.like = jax.eval_shape(self._init_all, self.values(self.agent), keys)
            self.metrics = jax.eval_shape(self._update, self.values(self.agent), _first(self.like))[1]
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error
        self._keys_like = keys
        self._compiled: dict[str, Any] = {}

    @property
    def evaluated(self) -> list[str]:
        """Names of the numbers that an evaluation brings."""
        found = jax.eval_shape(self._episodes_all, self.values(self.agent), self.like, self._keys_like)
        return ["return_mean", "return_std", "length_mean"] if "returns" in found else list(found)

    def fits(self, agent: Any) -> bool:
        """Whether the program can train this agent, of the same :func:`program_key`."""
        leaves = jax.tree.leaves(agent)
        constant = [i for i, x in enumerate(self._leaves) if isinstance(x, float) and i not in self._varying]
        return all(leaves[i] == self._leaves[i] for i in constant)

    def values(self, agent: Any) -> np.ndarray:
        """The floats ``[V]`` that are an agent's own."""
        leaves = jax.tree.leaves(agent)
        return np.array([leaves[i] for i in self._varying], np.float32)

    def stack(self, parts: Sequence[Any]) -> Any:
        """One array for each slot as arguments of the program: ``[P, ...]``."""
        if self.slots == 1:
            return parts[0]
        return jnp.stack(parts) if isinstance(parts[0], jax.Array) else np.stack(parts)

    def unstack(self, tree: Any) -> Any:
        """Results of the program as numpy arrays that always have their leading ``P``."""
        return jax.tree.map(lambda x: np.asarray(x)[None] if self.slots == 1 else np.asarray(x), tree)

    def compile(self) -> None:
        """Start to compile everything side by side: compilation is what a short run waits for."""
        if self._compiled:
            return
        values, state = self._spread(self.values(self.agent)), self._spread(self.like)
        programs: dict[str, tuple[Callable, tuple]] = {
            "chunk": (self._chunk_all, (values, state, self._spread(np.int32(0)))),
            "episodes": (self._episodes_all, (values, state, self._spread(self._keys_like))),
        }
        pool = ThreadPoolExecutor(2)
        for name, (f, shapes) in programs.items():
            mapped = jax.vmap(f) if self.slots > 1 else f
            self._compiled[name] = pool.submit(jax.jit(mapped).lower(*shapes).compile)
        pool.shutdown(wait=False)

    def init(self, values: np.ndarray, keys: jax.Array) -> Any:
        """The first state of a trial, from ``values`` ``[V]`` and ``keys`` ``[S]``."""
        if "init" not in self._compiled:  # runs once a trial: not worth optimising
            lowered = jax.jit(self._init_all).lower(values, self._keys_like)
            self._compiled["init"] = lowered.compile(compiler_options={"xla_backend_optimization_level": "0"})
        return self._compiled["init"](values, keys)

    def chunk(self, values: Any, state: Any, n: Any) -> tuple[Any, dict[str, jax.Array], jax.Array]:
        """``n`` ``[P]`` updates: the new state, metrics ``[P, S]`` and the first update with a loss not finite."""
        return self._ready("chunk")(values, state, n)

    def episodes(self, values: Any, state: Any, keys: Any) -> dict[str, jax.Array]:
        """Evaluate with ``keys`` ``[P, S]``: the agent's metrics, or see :func:`ssmrl.evaluation.run_episodes`."""
        return self._ready("episodes")(values, state, keys)

    def wait(self) -> None:
        """Return when all is compiled."""
        for name in ("chunk", "episodes"):
            self._ready(name)

    def put(self, state: Any, slot: int, part: Any) -> Any:
        """Give a slot the state ``part``, leaves ``[S, ...]``; ``state`` is None when it is the first."""
        if self.slots == 1:
            return part
        return _fill(part, self.slots) if state is None else _put(state, slot, part)

    def take(self, state: Any, slot: int) -> Any:
        """The state of one slot, leaves ``[S, ...]``."""
        return state if self.slots == 1 else member(state, slot)

    def _ready(self, name: str) -> Callable:
        if isinstance(self._compiled[name], Future):
            self._compiled[name] = self._compiled[name].result()
        return self._compiled[name]

    def _spread(self, tree: Any) -> Any:
        """Shapes with a leading ``P``."""
        lead = (self.slots,) if self.slots > 1 else ()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(lead + x.shape, x.dtype), tree)

    def _member(self, values: jax.Array) -> Any:
        leaves = list(self._leaves)
        for position, i in enumerate(self._varying):
            leaves[i] = values[position]
        return jax.tree.unflatten(self._structure, leaves)

    def _init_all(self, values: jax.Array, keys: jax.Array) -> Any:
        return _over_seeds(lambda key: self._init(values, key), self.seeds, (0,))(keys)

    def _chunk_all(self, values: jax.Array, state: Any, n: jax.Array) -> Any:
        return _over_seeds(lambda s, n: self._chunk(values, s, n), self.seeds, (0, None))(state, n)

    def _episodes_all(self, values: jax.Array, state: Any, keys: jax.Array) -> Any:
        agent, options = self._member(values), self._config.eval

        def one(state: Any, key: jax.Array) -> dict[str, jax.Array]:
            if hasattr(agent, "evaluate"):
                return agent.evaluate(state, key, episodes=options.episodes)
            return run_episodes(
                agent.policy(state),
                agent.env,
                agent.env_params,
                key,
                episodes=options.episodes,
                greedy=options.greedy,
            )

        return _over_seeds(one, self.seeds, (0, 0))(state, keys)

    def _chunk(self, values: jax.Array, state: Any, n: jax.Array) -> tuple[Any, dict[str, jax.Array], jax.Array]:
        """One seed of one trial."""

        def add(i: jax.Array, carry: tuple) -> tuple:
            state, totals, counts, bad = carry
            state, metrics = self._update(values, state)
            weight = metrics.get("episodes", jnp.float32(0))
            metrics |= {k: jnp.where(weight > 0, metrics[k] * weight, 0) for k in _BY_EPISODE if k in metrics}
            known = {k: jnp.isfinite(v) for k, v in metrics.items() if k.startswith(_BY_PLACE)}
            metrics |= {k: jnp.where(known[k], metrics[k], 0) for k in known}
            counts = {k: counts[k] + known[k] for k in known}
            broken = ~jnp.isfinite(jnp.stack([metrics["loss"], metrics["grad_norm"]])).all()
            bad = jnp.where(broken, jnp.minimum(bad, i), bad)
            return state, jax.tree.map(jnp.add, totals, metrics), counts, bad

        zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in self.metrics.items()}
        none = {k: jnp.int32(0) for k in zeros if k.startswith(_BY_PLACE)}
        state, totals, counts, bad = lax.fori_loop(0, n, add, (state, zeros, none, jnp.int32(NEVER)))
        counts |= dict.fromkeys(_BY_EPISODE, totals.get("episodes", n))
        means = {k: v / counts.get(k, n) for k, v in totals.items() if k != "episodes"}
        return state, means | {k: v for k, v in totals.items() if k == "episodes"}, bad


@jax.jit
def _put(state: Any, slot: int, part: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[slot].set(y), state, part)


def _fill(part: Any, slots: int) -> Any:
    return jax.jit(lambda part: jax.tree.map(lambda x: jnp.broadcast_to(x[None], (slots, *x.shape)), part))(part)


def _over_seeds(f: Callable, seeds: int, in_axes: tuple) -> Callable:
    """Map ``f`` over the leading seed axis, unless there is but one."""
    if seeds > 1:
        return jax.vmap(f, in_axes=in_axes)

    def single(*args: Any) -> Any:
        args = tuple(a if axis is None else _first(a) for a, axis in zip(args, in_axes, strict=True))
        return jax.tree.map(lambda x: x[None], f(*args))

    return single


def _first(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x[0], tree
    )


def _hashable(leaf: Any) -> Hashable:
    if isinstance(leaf, bool | int | str):
        return leaf
    array = np.asarray(leaf)
    return array.shape, str(array.dtype), array.tobytes()
