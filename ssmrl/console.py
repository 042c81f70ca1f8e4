"""What a training run shows: a live panel on a terminal, plain lines elsewhere, nothing if quiet."""

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from ssmrl.agents import num_updates, score_of
from ssmrl.config import Config
from ssmrl.vector import MAX_STEPS

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = {  # where an agent has it: its name here, and decimals
    **{"entropy": ("entropy", 3), "approx_kl": ("kl", 4), "value_loss": ("value loss", 4)},
    **{"obs_loss": ("observation loss", 4), "reward_loss": ("reward loss", 4), "kl": ("kl", 4)},
}


class Console:
    """Prints the header, the progress and the end of one run; a context manager, so that the terminal is left whole."""

    def __init__(self, run_dir: Path, config: Config, agent: Any, quiet: bool, parameters: int):
        self.dir, self.config, self.agent, self.quiet, self.parameters = run_dir, config, agent, quiet, parameters
        self.total = num_updates(config, agent)
        self.curve: list[float] = []
        self.rich = RichConsole(file=sys.stderr, highlight=False, quiet=quiet)
        self.live: Live | None = None
        self.began = time.perf_counter()

    def __enter__(self) -> "Console":
        self._header()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_live()

    def note(self, text: str) -> None:
        """Print one line that the user should know."""
        self.rich.print(f"note: {text}", markup=False, soft_wrap=True)

    def _header(self) -> None:
        env, agent = self.agent.env, self.agent
        spaces = f"{env.observation_space(agent.env_params)} -> {env.action_space(agent.env_params)}"
        settings = (f"{k}={v}" for k, v in self.config.env_changes.items())
        steps = self.total * agent.steps_per_update
        for name, value in {
            "run": self.dir,
            "env": f"{' '.join([self.config.env, *settings])}  {spaces}",
            "model": f"{self.config.model}, {self.parameters:,} parameters, {self.config.seeds} seed(s)",
            "steps": f"{steps:,} = {self.total:,} updates of {agent.steps_per_update:,} ({agent.num_envs} envs)",
            "device": ", ".join(str(d) for d in jax.devices()),
        }.items():
            self.rich.print(f"{name:>7}  {value}", markup=False, soft_wrap=True)
        limit = env.longest_episode(agent.env_params)
        if limit is None or limit > MAX_STEPS:
            self.note(
                f"{self.config.env} has no time limit, and an episode that does not end has no return:"
                " env.max_steps=1000 cuts episodes off"
            )
        self.rich.print("compiling ...", markup=False, soft_wrap=True)

    def compiled(self, seconds: float) -> None:
        """Say how long compilation took."""
        self.rich.print(f"compiled in {seconds:.1f} s", markup=False, soft_wrap=True)

    def start(self, updates: int) -> None:
        """Begin the live panel, if there is a terminal to show it on."""
        self.first, self.began = updates, time.perf_counter()
        if self.rich.is_terminal and not self.quiet:
            self.live = Live(console=self.rich, auto_refresh=False)
            self.live.start()

    def log(self, updates: int, metrics: dict[str, Any], steps_per_s: float) -> None:
        """Show a log point."""
        name = score_of(self.agent)
        scores = np.asarray(metrics.get(name, metrics.get(f"eval/{name}", np.nan)), float)
        self.curve.append(float(np.mean(scores)))
        done, elapsed = updates - self.first, time.perf_counter() - self.began
        left = elapsed / max(done, 1) * (self.total - updates)
        steps = updates * self.agent.steps_per_update
        spread = f" ± {scores.std():.3f}" if scores.size > 1 else ""
        fields = {
            "steps": f"{steps:,}",
            **({_label(name): f"{scores.mean():.3f}{spread}"} if np.isfinite(scores).any() or name in metrics else {}),
            **{name: f"{np.mean(metrics[k]):.{n}f}" for k, (name, n) in _SHOWN.items() if k in metrics},
            "steps/s": f"{steps_per_s:,.0f}",
            "left": f"{left:.0f} s",
        }
        if self.live is None:
            self.rich.print("  ".join(f"{k} {v}" for k, v in fields.items()), markup=False, soft_wrap=True)
            return
        table = Table.grid(padding=(0, 2))
        for name, value in fields.items():
            table.add_row(name, value)
        table.add_row("curve", sparkline(self.curve))
        filled = 40 * updates // self.total
        table.add_row("progress", "█" * filled + "░" * (40 - filled) + f" {updates}/{self.total} updates")
        self.live.update(table, refresh=True)

    def stopped(self, status: str, env_steps: int) -> None:
        """Say that the run was stopped early and how to go on."""
        self._end_live()
        self.rich.print(f"{status} at {env_steps:,} steps, saved. Go on with:", markup=False, soft_wrap=True)
        self.rich.print(f"  ssmrl resume {shlex.quote(str(self.dir))}", markup=False, soft_wrap=True)

    def done(self, summary: dict[str, Any], plot: Path) -> None:
        """Show the final evaluation and what to type next."""
        self._end_live()
        name, seeds = score_of(self.agent), summary["seeds"]
        of_seeds = [summary[f"{name}/seed_{i}"] for i in range(seeds)]
        spread = f" ± {np.std(of_seeds):.3f} over seeds" if seeds > 1 else ""
        final = f"final {_label(name)} {summary[name]:.3f}{spread} ({summary['episodes']} episodes)"
        if not summary["episodes"]:
            final = f"no final return: no episode ended within {MAX_STEPS:,} steps, train with env.max_steps=1000"
        self.rich.print(
            f"{final}; trained {summary['env_steps']:,} steps in {summary['wall_s']:.1f} s"
            f" after {summary['compile_s']:.1f} s of compilation ({summary['steps_per_s']:,.0f} steps/s)\n"
            f"curve: {sparkline(self.curve)}  {plot}\nnext:",
            markup=False,
            soft_wrap=True,
        )
        run = shlex.quote(str(self.dir))
        prefix, look = ("", "play") if hasattr(self.agent, "policy") else ("worldmodel ", "imagine")
        commands = [
            f"{prefix}eval {run}",
            f"resume {run} total_steps={2 * self.config.total_steps}",
            f"{prefix}{look} {run}",
        ]
        if not prefix and hasattr(self.agent, "world_model"):
            commands.append(f"play {run} --dream")
        for command in commands:
            self.rich.print(f"  ssmrl {command}", markup=False, soft_wrap=True)

    def _end_live(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def _label(score: str) -> str:
    return "return" if score == "return_mean" else score


def sparkline(values: list[float], width: int = 40) -> str:
    """Draw finite values as a line of bars, the latest ``width`` bins of the whole history."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    bins = [float(np.mean(part)) for part in np.array_split(finite, min(width, len(finite)))]
    low, high = min(bins), max(bins)
    return "".join(_BARS[round((b - low) / (high - low or 1) * (len(_BARS) - 1))] for b in bins)
