"""The host loop: compile once, run chunks of updates, log, evaluate, checkpoint; and resume where it stopped.

One loop trains one run or a *population*: trials that differ in floats of the agent alone (learning rate, gamma, ...)
and in their seeds share one compiled program, vmapped over its slots. A slot whose trial ends takes the next one.
"""

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmrl import spaces
from ssmrl.agents import num_updates
from ssmrl.config import Config, check_resumable, resolve, to_yaml
from ssmrl.evaluation import read_config
from ssmrl.program import NEVER, Program, build_agent, start_from
from ssmrl.recording import Recorder, create_run_dir
from ssmrl.registry import UserError
from ssmrl.tracking import check_sinks

Judge = Callable[[Mapping[int, Mapping[str, Any]]], Collection[int]]
Trial = tuple[int, Recorder, Any]  # its number, its books, and the state it goes on from (None: from the start)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run left behind."""

    dir: Path
    config: Config
    status: str  # "done", "interrupted" (Ctrl-C), "terminated" (SIGTERM); of a population also "failed" and "stopped"
    state: Any  # the agent's State, with a leading seed axis
    summary: dict[str, Any]  # the numbers of eval/final.json; empty if the run did not come to its end
    error: Exception | None = None  # why it failed

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Logged metrics by name: arrays ``[log points]``, or ``[log points, seeds]`` for those of the agent."""
        lines = [json.loads(line) for line in (self.dir / "metrics.jsonl").read_text().splitlines()]
        names = {k: np.shape(v) for line in lines for k, v in line.items()}
        missing = {k: np.full(shape, np.nan) for k, shape in names.items()}  # evaluations are not in every line
        return {k: np.array([line.get(k, missing[k]) for line in lines], float) for k in names}


def make_train(config: Config) -> tuple[Callable, Callable]:
    """The experiment as two pure functions: ``init(key) -> state`` and ``step(state) -> (state, metrics)``.

    Both can be jitted, scanned, sharded, and vmapped over seeds. Raises ``UserError`` if the configuration cannot work,
    or asks for what another run has learned.
    """
    if config.init_from is not None:
        raise UserError(f"init_from={config.init_from}: make_train starts anew: use train, or replace those parts")
    agent = build_agent(config)
    return agent.init, agent.update


def train(
    config: Config | str = "demo", *presets: str, quiet: bool = False, command: str = "", **overrides: Any
) -> Run:
    """Train an agent in a new run directory: ``train("demo", seeds=4, **{"agent.learning_rate": 1e-3})``.

    ``config`` is a resolved configuration, or the first of some presets (names, or paths of YAML files) that
    ``overrides`` change. Raises ``UserError`` before anything is compiled or written if the configuration or the folder
    cannot work.
    """
    if isinstance(config, str):
        config = resolve([config, *presets], overrides)
    elif presets or overrides:
        raise TypeError("a resolved configuration takes no presets and overrides: give them to ssmrl.resolve")
    check_sinks(config)
    program = Program([config], [build_agent(config)])
    recorder = _recorder(program, config, program.agent, _new_run_dir(program, config, program.agent, command), quiet)
    return _only(_Loop(program, [(0, recorder, None)]).run())


def resume(run_dir: str | Path, overrides: dict[str, Any] | None = None, *, quiet: bool = False) -> Run:
    """Go on from the latest intact checkpoint of a run, bit for bit as if it had never stopped.

    ``overrides`` may change how long and how it is observed, not what is trained (``ssmrl.config.check_resumable``).
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    if overrides:
        config = resolve([str(run_dir / "config.yaml")], check_resumable(config, overrides))
    check_sinks(config)
    program = Program([config], [build_agent(config)])
    recorder = _recorder(program, config, program.agent, run_dir, quiet)
    state = recorder.restore(program.like)
    if recorder.updates >= recorder.total and (run_dir / "eval" / "final.json").exists():
        raise UserError(
            f"{run_dir} is finished ({recorder.env_steps:,} steps): to go on, raise total_steps"
            f" (ssmrl resume {run_dir} total_steps={2 * recorder.env_steps})"
        )
    (run_dir / "config.yaml").write_text(to_yaml(config))
    return _only(_Loop(program, [(0, recorder, state)]).run())


def train_population(configs: Sequence[Config], *, slots: int | None = None, command: str = "") -> list[Run]:
    """Train several configurations in one compiled program, ``slots`` at a time (default: all).

    Each becomes an ordinary run, as if made by :func:`train`. They may differ in floats of the agent, in seed and in
    length (:func:`ssmrl.program.program_key`). One that fails does not stop the others: its ``status`` is ``"failed"``.
    Raises ``UserError`` before anything is compiled or written if they cannot share a program.
    """
    for config in configs:
        check_sinks(config)
    agents = [build_agent(config) for config in configs]
    program = Program(configs, agents, min(slots or len(configs), len(configs)))
    trials = (
        (i, _recorder(program, config, agent, _new_run_dir(program, config, agent, command)), None)
        for i, (config, agent) in enumerate(zip(configs, agents, strict=True))
    )
    runs = dict(_Loop(program, trials).run())
    return [runs[i] for i in sorted(runs)]  # a signal leaves some that never began


def continue_population(
    program: Program,
    trials: Iterable[tuple[int, Config, Any, Path]],
    judge: Judge | None = None,
    stop: "Stop | None" = None,
) -> Iterator[tuple[int, Run]]:
    """Train the numbered configurations of a sweep, with their agents, in their folders; yield each run as it ends.

    Those that have begun go on from their checkpoints. ``trials`` is asked for the next one when a slot is free.
    ``judge`` is given the metrics of the trials just evaluated, by number, and returns the numbers of those to stop.
    ``stop`` is that of :func:`stop_signals` if the caller catches signals itself.
    """

    def begin() -> Iterator[Trial]:
        for number, config, agent, run_dir in trials:
            begun = (run_dir / "config.yaml").is_file()
            run_dir = run_dir if begun else _new_run_dir(program, config, agent)
            recorder = _recorder(program, config, agent, run_dir)
            (run_dir / "config.yaml").write_text(to_yaml(config))  # a kill may have torn it
            yield number, recorder, recorder.restore(program.like) if begun else None

    yield from _Loop(program, begin(), judge, stop).run()


def dry_run(config: Config) -> dict[str, Any]:
    """Build everything and trace its shapes without compiling: flat facts about what would run."""
    program = Program([config], [build_agent(config)])
    start_from(config, program.agent, program.like)
    agent, state = program.agent, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), program.like)
    updates = num_updates(config, agent)
    obs_space, action_space = agent.env.observation_space(agent.env_params), agent.env.action_space(agent.env_params)
    length, num_envs = agent.steps_per_update // agent.num_envs, agent.num_envs
    rollout = _bytes(jax.eval_shape(lambda: spaces.zeros(obs_space, (num_envs, length))))
    minibatch = [length, num_envs // getattr(agent, "num_minibatches", 1)]
    frames, more = math.prod(minibatch), {}
    if hasattr(state, "learner"):  # learns from replay, and from what it imagines
        minibatch = [agent.batch_length, agent.batch_size]
        replayed = math.prod(minibatch)
        frames = replayed + replayed // agent.dream_every * agent.horizon
        more = {"gradient_steps": agent.gradient_steps, "replay_bytes": config.seeds * _bytes(state.learner.replay)}
    width = getattr(agent.model, "d_model", 1)
    activations = 4 * frames * width * 12 * config.model_parameters["num_layers"]
    return {
        "env": config.env,
        "observation_space": str(obs_space),
        "action_space": str(action_space),
        "agent": config.agent,
        "model": config.model,
        "parameters": _size(state.params),
        "seeds": config.seeds,
        "updates": updates,
        "env_steps": updates * agent.steps_per_update,
        "steps_per_update": agent.steps_per_update,
        "minibatch": str(minibatch),
        "state_bytes": config.seeds * _bytes(state),
        "rollout_bytes": config.seeds * rollout,
        "activation_bytes_estimate": config.seeds * activations,
        **more,
    }


class _Loop:
    """Runs trials in the slots of one program until none is left, or until the first signal."""

    def __init__(
        self, program: Program, trials: Iterable[Trial], judge: Judge | None = None, stop: "Stop | None" = None
    ):
        self.program, self.trials, self.judge, self.stop = program, iter(trials), judge, stop
        self.slots: list[tuple[int, Recorder] | None] = [None] * program.slots
        self.values = [program.values(program.agent)] * program.slots
        self.keys: list[Any] = [None] * program.slots
        self.state: Any = None
        self.stopping = False

    def run(self) -> Iterator[tuple[int, Run]]:
        """Train; yields each trial as it ends."""
        with nullcontext(self.stop) if self.stop else stop_signals() as stop, ExitStack() as self.stack:
            while self._fill_slots():
                yield from self._advance(stop)
                if self.stopping:
                    break
            for slot, (number, recorder) in self._live():
                recorder.end(stop.status, 128 + stop.signal)
                yield number, self._leave(slot)

    def _live(self) -> list[tuple[int, tuple[int, Recorder]]]:
        return [(slot, trial) for slot, trial in enumerate(self.slots) if trial is not None]

    def _fill_slots(self) -> bool:
        """Give free slots the next trials; False if none runs any more."""
        for slot in range(self.program.slots):
            trial = next(self.trials, None) if self.slots[slot] is None else None
            if trial is not None:
                self._enter(slot, *trial)
        return bool(self._live())

    def _enter(self, slot: int, number: int, recorder: Recorder, state: Any) -> None:
        self.stack.enter_context(recorder)
        start = time.perf_counter()
        self.program.compile()
        self.slots[slot] = number, recorder
        self.values[slot], self.keys[slot] = self.program.values(recorder.agent), recorder.keys
        if state is None:
            state = self.program.init(self.values[slot], recorder.keys)
            state = start_from(recorder.config, recorder.agent, state)
        self.program.wait()
        recorder.compile_s = time.perf_counter() - start
        recorder.console.compiled(recorder.compile_s)
        if self.state is None:
            self.keys = [recorder.keys] * self.program.slots
        self.state = self.program.put(self.state, slot, state)
        recorder.console.start(recorder.updates)

    def _leave(self, slot: int, error: Exception | None = None) -> Run:
        trial, self.slots[slot] = self.slots[slot], None
        assert trial is not None
        recorder = trial[1]
        state = self.program.take(self.state, slot)
        return Run(recorder.dir, recorder.config, recorder.status, state, recorder.summary, error)

    def _advance(self, stop: "Stop") -> Iterator[tuple[int, Run]]:
        """One chunk of all trials, and what it leads to."""
        program, ns = self.program, [0] * self.program.slots
        for slot, (_, recorder) in self._live():
            ns[slot] = min(recorder.config.log.every, recorder.total - recorder.updates)
        values, before, start = program.stack(self.values), self.state, time.perf_counter()
        n = program.stack([np.int32(n) for n in ns])
        self.state, metrics, bad = jax.block_until_ready(program.chunk(values, before, n))
        seconds = time.perf_counter() - start
        metrics, bad = program.unstack(metrics), program.unstack(bad)
        logged = {slot: {k: v[slot].tolist() for k, v in metrics.items()} for slot, _ in self._live()}
        for slot, (number, recorder) in self._live():
            recorder.wall_s += seconds
            if bad[slot].min() != NEVER:
                yield number, self._fail(slot, recorder, recorder.failure(logged[slot], bad[slot].min()), before, bad)
            else:
                recorder.updates += ns[slot]
        results = self._evaluate(values)
        self.stopping = stop.is_set()  # asked once: what ends the loop is saved
        for slot, (_, recorder) in self._live():
            if slot in results:
                logged[slot] |= _log_points(results[slot])
            if ns[slot]:
                rate = ns[slot] * recorder.agent.steps_per_update * recorder.config.seeds / seconds
                recorder.log(logged[slot], rate)
                last = self.stopping or recorder.updates >= recorder.total
                if last or recorder.chunks % recorder.config.checkpoint.every == 0:
                    recorder.checkpoint(program.take(self.state, slot), logged[slot])
        yield from self._conclude(results, logged)

    def _evaluate(self, values: Any) -> dict[int, dict[str, Any]]:
        """Evaluate the trials that are due, with randomness that depends on their seeds and steps alone."""
        due = [slot for slot, (_, recorder) in self._live() if recorder.evaluates]
        if not due:
            return {}
        for slot, (_, recorder) in self._live():
            self.keys[slot] = _evaluation_keys(recorder.keys, recorder.updates)
        results = self.program.unstack(self.program.episodes(values, self.state, self.program.stack(self.keys)))
        by_slot = dict(self._live())
        return {slot: by_slot[slot][1].evaluation({k: v[slot] for k, v in results.items()}) for slot in due}

    def _conclude(
        self, results: Mapping[int, dict[str, Any]], logged: Mapping[int, dict[str, Any]]
    ) -> Iterator[tuple[int, Run]]:
        """End the trials that are done, and those that the judge stops."""
        live = dict(self._live())
        judged = {live[slot][0]: {"chunks": live[slot][1].chunks, **logged[slot]} for slot in results}
        condemned = self.judge(judged) if self.judge and judged else ()
        for slot in results:
            number, recorder = live[slot]
            if recorder.updates >= recorder.total:
                recorder.finish(results[slot])
                yield number, self._leave(slot)
            elif number in condemned:
                recorder.checkpoint(self.program.take(self.state, slot), logged[slot])
                recorder.end("stopped", 0, reason="early_terminate")
                yield number, self._leave(slot)

    def _fail(self, slot: int, recorder: Recorder, error: Exception, before: Any, bad: np.ndarray) -> Run:
        if recorder.config.debug.nans:
            seed, first = int(bad[slot].argmin()), np.zeros(self.program.slots, np.int32)
            first[slot] = bad[slot].min()
            state = self.program.chunk(self.program.stack(self.values), before, self.program.stack(list(first)))[0]
            member = jax.tree.map(lambda x: x[seed], self.program.take(state, slot))
            try:  # repeat the update operation by operation, to fail at the one that makes a NaN
                with jax.disable_jit(), jax.debug_nans(True):
                    recorder.agent.update(member)
            except FloatingPointError as found:
                error = found
        recorder.end("failed", 1, reason=f"{type(error).__name__}: {error}")
        return self._leave(slot, error)


def _only(runs: Iterator[tuple[int, Run]]) -> Run:
    [(_, run)] = runs
    if run.error is not None:
        raise run.error
    return run


def _new_run_dir(program: Program, config: Config, agent: Any, command: str = "") -> Path:
    """Made when it is sure that there is what the run starts from; who resumes does not need it any more."""
    start_from(config, agent, program.like)
    return create_run_dir(config, command)


def _recorder(program: Program, config: Config, agent: Any, run_dir: Path, quiet: bool = True) -> Recorder:
    size = _size(program.like.params) // config.seeds
    return Recorder(config, agent, run_dir, parameters=size, quiet=quiet)


def _log_points(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluation goes to the log: of returns their moments, of other metrics the values of all seeds."""
    if "return_std" in result:
        return {f"eval/{k}": result[k] for k in ("return_mean", "return_std", "length_mean")}
    names = [k.removesuffix("/seed_0") for k in result if k.endswith("/seed_0")]
    return {f"eval/{k}": [result[f"{k}/seed_{i}"] for i in range(result["seeds"])] for k in names}


@jax.jit
def _evaluation_keys(keys: jax.Array, updates: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), updates))(keys)


class Stop(threading.Event):
    """Set by the first SIGINT or SIGTERM, which ends the run after the chunk in progress."""

    signal: int = 0

    @property
    def status(self) -> str:
        """What a run is called that this ended."""
        return "interrupted" if self.signal == signal.SIGINT else "terminated"


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch Ctrl-C and SIGTERM; a second one of either takes effect at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: Any) -> None:
        stop.signal = signum
        stop.set()
        for s, handler in previous.items():
            signal.signal(s, handler)
        print("\nstopping after this chunk, which will be saved (again to stop at once)", file=sys.stderr)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


__all__ = [
    "Judge",
    "Run",
    "Stop",
    "continue_population",
    "dry_run",
    "make_train",
    "resume",
    "stop_signals",
    "train",
    "train_population",
]
