"""Runs the trials of a sweep, those that can share a program as one vmapped population, and keeps the ledger."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmrl.config import Config
from ssmrl.fields import UserError, show
from ssmrl.program import Program, build_agent, program_key
from ssmrl.registry import suggest
from ssmrl.sweep.hyperband import Hyperband
from ssmrl.sweep.ledger import Ledger, Trial
from ssmrl.sweep.search import known_trials, suggest_trials
from ssmrl.sweep.spec import Sweep
from ssmrl.tracking import check_sinks, read_metrics, scalars
from ssmrl.training import Run, Stop, continue_population, stop_signals

_DIGITS = 4  # of trial numbers in folder names


class _WrongMetricError(UserError):
    pass


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that share a program: ``(trial, configuration, agent)``."""

    key: Hashable
    members: list[tuple[Trial, Config, Any]]

    def describe(self) -> str:
        """One line: how many of what."""
        _, config, agent = self.members[0]
        seeds = f" x {config.seeds} seeds" if config.seeds > 1 else ""
        shape = f"{agent.num_envs} envs x {agent.steps_per_update // agent.num_envs} steps"
        return f"{len(self.members)} trials{seeds}, {config.env}, {config.model}, {shape}"


@dataclasses.dataclass
class SweepRun:
    """A sweep in its folder, and what came of it so far."""

    sweep: Sweep
    folder: Path
    trials: dict[int, Trial]
    count: int
    status: str = "done"  # or "interrupted" (Ctrl-C), "terminated" (SIGTERM)
    programs: int = 0  # compiled by this process
    seconds: float = 0.0  # that this process took

    @property
    def succeeded(self) -> bool:
        """Whether any trial has a value."""
        return any(t.value is not None for t in self.trials.values())

    def dir(self, trial: Trial) -> Path:
        """The run directory of a trial."""
        return self.folder / f"{trial.number:0{_DIGITS}d}"

    def ranked(self) -> list[Trial]:
        """All trials that ended, the best first, those without a value last."""
        score = self.sweep.metric.score
        ended = [t for t in self.trials.values() if t.ended]
        return sorted(ended, key=lambda t: -math.inf if t.value is None else score(t.value), reverse=True)

    def best(self) -> Trial | None:
        """The trial with the best value."""
        return next((t for t in self.ranked() if t.value is not None), None)

    def reached(self) -> bool:
        """Whether a trial has reached ``metric.target``."""
        target, score = self.sweep.metric.target, self.sweep.metric.score
        values = [t.value for t in self.trials.values() if t.value is not None]
        return target is not None and any(score(v) >= score(target) for v in values)


def make_groups(
    sweep: Sweep, trials: Sequence[Trial], dir_of: Callable[[Trial], Path], failed: Callable[[Trial, Exception], None]
) -> list[Group]:
    """Sort trials by the program that they need; ``failed`` is told of those that no program can train."""
    groups: dict[Hashable, Group] = {}
    for trial in trials:
        try:
            config = sweep.resolve(trial.parameters, dir_of(trial))
            agent = build_agent(config)
        except UserError as error:
            failed(trial, error)
            continue
        key = program_key(config, agent)
        groups.setdefault(key, Group(key, [])).members.append((trial, config, agent))
    return list(groups.values())


def run_sweep(
    sweep: Sweep,
    count: int,
    *,
    seed: int,
    root: Path,
    population: int,
    batch: int,
    quiet: bool = False,
    command: str = "",
) -> SweepRun:
    """Run what is left of ``count`` trials, up to ``population`` members (trials x seeds) at once.

    A bayes search asks for ``batch`` trials at a time. Ctrl-C and SIGTERM end the chunk in progress, which is saved.
    Raises ``UserError`` if the folder ``root/<name>`` holds another sweep, or cannot be written.
    """
    ledger = Ledger(root / sweep.name, {**sweep.header(), "seed": seed})
    state = SweepRun(sweep, root / sweep.name, ledger.trials, count)
    (state.folder / "command.txt").write_text(command + "\n")
    start = time.perf_counter()
    try:
        with stop_signals() as stop:
            _Runner(state, ledger, population, quiet, stop).run(seed, batch)
        state.status = stop.status if stop.is_set() else "done"
    finally:
        state.seconds = time.perf_counter() - start
        ledger.close()
    return state


class _Runner:
    def __init__(self, state: SweepRun, ledger: Ledger, population: int, quiet: bool, stop: Stop):
        self.state, self.sweep, self.ledger = state, state.sweep, ledger
        self.population, self.quiet, self.stop = population, quiet, stop
        self.programs: list[Program] = []

    def run(self, seed: int, batch: int) -> None:
        for trial in known_trials(self.sweep, self.state.count, seed):
            if trial.number not in self.ledger.trials:
                self.ledger.draw(trial)
        self._round()
        while not self._over() and (left := self.state.count - len(self.ledger.trials)) > 0:
            for trial in suggest_trials(self.sweep, self.ledger.trials, min(left, batch), seed):
                self.ledger.draw(trial)
            self._round()

    def _over(self) -> bool:
        return self.stop.is_set() or self.state.reached()

    def _round(self) -> None:
        """Train all trials that have not ended, group by group."""
        open_trials = [t for t in self.ledger.trials.values() if not t.ended and t.number < self.state.count]
        for group in make_groups(self.sweep, open_trials, self.state.dir, self._failed):
            if not self._over():
                self._train(group)

    def _train(self, group: Group) -> None:
        try:
            program = self._program(group)
            self._check_metric(program)
            for number, run in continue_population(program, self._queue(group), self._judge(group), self.stop):
                self._ended(self.ledger.trials[number], run)
        except (OSError, _WrongMetricError):
            raise
        except Exception as error:  # of the program, say out of memory: its trials fail, others may not
            for trial, _, _ in group.members:
                if not trial.ended:
                    self._failed(trial, error)

    def _check_metric(self, program: Program) -> None:
        evaluated = [f"eval/{k}" for k in program.evaluated]
        name, logged = self.sweep.metric.name, [*evaluated, "updates", "steps_per_s", *program.metrics]
        if name not in logged:
            close = suggest(name, logged)
            hint = f"did you mean {close[0]}?" if close else f"it logs {', '.join(logged)}"
            raise _WrongMetricError(f"metric.name: no run logs '{name}': {hint}")

    def _program(self, group: Group) -> Program:
        agents = [agent for _, _, agent in group.members]
        for program in self.programs:
            if program.key == group.key and all(map(program.fits, agents)):
                return program
        configs = [config for _, config, _ in group.members]
        slots = min(len(agents), max(1, self.population // configs[0].seeds))
        self._say(f"program {len(self.programs) + 1}: {group.describe()}, {slots} at a time; compiling ...")
        check_sinks(configs[0])
        self.programs.append(Program(configs, agents, slots))
        self.state.programs = len(self.programs)
        return self.programs[-1]

    def _queue(self, group: Group) -> Iterator[tuple[int, Config, Any, Path]]:
        for trial, config, agent in group.members:
            if self.state.reached():
                return
            yield trial.number, config, agent, self.state.dir(trial)

    def _judge(self, group: Group) -> Callable[[Mapping[int, Mapping[str, Any]]], Collection[int]] | None:
        hyperband = self.sweep.hyperband
        if hyperband is None:
            return None
        every = {trial.number: config.eval.every for trial, config, _ in group.members}

        def judge(evaluated: Mapping[int, Mapping[str, Any]]) -> Collection[int]:
            due: dict[int, int] = {}
            for number, metrics in evaluated.items():
                band, odd = divmod(metrics["chunks"], every[number])
                value = self._value(metrics)
                if not odd and band in hyperband.bands and value is not None:
                    value = value if hyperband.strict else self._best(number, value)
                    self.ledger.record({"trial": number, "band": band, "value": value})
                    due[number] = band
            return [number for number, band in due.items() if self._stops(hyperband, number, band)]

        return judge

    def _stops(self, hyperband: Hyperband, number: int, band: int) -> bool:
        score = self.sweep.metric.score
        at_band = [score(t.bands[band]) for t in self.ledger.trials.values() if band in t.bands]
        return hyperband.stops(score(self.ledger.trials[number].bands[band]), at_band)

    def _best(self, number: int, value: float) -> float:
        metrics = read_metrics(self.state.dir(self.ledger.trials[number]) / "metrics.jsonl")
        logged = [v for line in metrics if (v := self._value(line)) is not None]
        return max([*logged, value], key=self.sweep.metric.score)

    def _value(self, metrics: Mapping[str, Any]) -> float | None:
        given = metrics.get(self.sweep.metric.name)
        numbers = [v for v in (given if isinstance(given, list) else [given]) if v is not None]
        if not numbers or (isinstance(given, list) and len(numbers) < len(given)):
            return None
        value = scalars({"": numbers})[""]
        return value if math.isfinite(value) else None

    def _ended(self, trial: Trial, run: Run) -> None:
        if run.status in ("interrupted", "terminated"):
            return
        if run.error is not None:
            self._failed(trial, run.error)
            return
        values = [self._value(line) for line in read_metrics(run.dir / "metrics.jsonl")]
        known = [v for v in values if v is not None]
        reason = "" if known else f"{self.sweep.metric.name} was never a number: no episode ended; raise eval.episodes?"
        self._record(trial, run.status if known else "failed", known[-1] if known else None, reason)

    def _failed(self, trial: Trial, error: Exception) -> None:
        first = (str(error).strip().splitlines() or [""])[0]
        hint = "; lower --population" if "RESOURCE_EXHAUSTED" in first else ""
        self._record(trial, "failed", None, f"{type(error).__name__}: {first}{hint}")

    def _record(self, trial: Trial, status: str, value: float | None, reason: str) -> None:
        self.ledger.record({"trial": trial.number, "status": status, "value": value, "reason": reason})
        ended = sum(t.ended for t in self.ledger.trials.values())
        text = "" if value is None else f"  {self.sweep.metric.name} {value:.4g}"
        drawn = " ".join(f"{k}={show(v)}" for k, v in trial.parameters.items())
        self._say(f"{ended}/{self.state.count}  trial {trial.number} {status}{text}  {drawn}  {reason}".rstrip())

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
