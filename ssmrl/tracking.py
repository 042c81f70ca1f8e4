"""Where metrics go: ``metrics.jsonl`` always, Weights & Biases and TensorBoard on request.

``metrics.jsonl`` is the record of a run: one JSON object per log point, ``env_steps`` and then each metric as a number
or a list of one number per seed. Numbers that are not finite are written as ``null``. The other sinks are copies: when
one of them fails, it is switched off with a warning and training goes on.
"""

import configparser
import importlib.util
import json
import math
import netrc
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from ssmrl.config import Config, to_flat
from ssmrl.fields import UserError

Metrics = Mapping[str, float | Sequence[float]]
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # wandb's default server, under its two names
_INIT_TIMEOUT = 20  # seconds


class Tracker:
    """Writes the metrics of one run to every sink; a context manager.

    ``resume`` continues the files of ``run_dir`` instead of starting anew; call :meth:`truncate` then. Raises
    ``UserError`` before anything is written if a sink that was asked for cannot work (:func:`check_sinks`).
    """

    def __init__(self, run_dir: Path, config: Config, *, resume: bool = False, quiet: bool = False):
        check_sinks(config)
        self._quiet = quiet
        self._file = MetricsFile(Path(run_dir) / "metrics.jsonl")
        self._copies: list[Sink] = []
        if config.tensorboard:
            self._copies.append(TensorBoard(Path(run_dir)))
        mode, reason = wandb_mode(config.wandb.mode)
        if mode != "off":
            try:
                sink = Wandb(Path(run_dir), config, mode, resume)
            except Exception as error:  # wandb's own errors are many, and none is worth a run
                _warn(f"wandb does not start ({_first_line(error)}): this run is not logged to it")
            else:
                self._copies.append(sink)
                self._note(sink.describe(reason))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(0 if kind is None else 1)

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """Write one log point; a sequence has one value per seed, and its mean goes where one number is wanted."""
        metrics = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in metrics.items()}  # arrays
        self._file.log(env_steps, metrics)
        self._each("log", env_steps, metrics)

    def truncate(self, env_steps: int) -> None:
        """Forget the log points after ``env_steps``, to continue from a checkpoint made there."""
        self._file.truncate(env_steps)
        self._each("truncate", env_steps)

    def close(self, exit_code: int = 0) -> None:
        """Finish all sinks; once is enough. A sweep's run that exits with 143 (SIGTERM) is queued again."""
        self._file.close(exit_code)
        self._each("close", exit_code)
        self._copies.clear()

    def _each(self, method: str, *args: Any) -> None:
        for sink in list(self._copies):
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                self._copies.remove(sink)
                _warn(f"{type(sink).__name__} stopped ({_first_line(error)}): training goes on, metrics.jsonl has all")

    def _note(self, text: str) -> None:
        if not self._quiet:
            print(f"note: {text}", file=sys.stderr)


class Sink(Protocol):
    """What a :class:`Tracker` writes to."""

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """Write one log point."""

    def truncate(self, env_steps: int) -> None:
        """Forget the log points after ``env_steps``."""

    def close(self, exit_code: int) -> None:
        """Finish."""


class MetricsFile:
    """One line of JSON per log point, flushed at once; a torn last line is dropped when a run is continued."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size:
            self.truncate(sys.maxsize)

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """Append a line."""
        self._file.write(json.dumps({"env_steps": env_steps, **jsonable(dict(metrics))}) + "\n")
        self._file.flush()

    def truncate(self, env_steps: int) -> None:
        """Rewrite the file, atomically, without the lines after ``env_steps``."""
        self._file.close()
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.path) if line["env_steps"] <= env_steps]
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self, exit_code: int) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in ``<run_dir>/tensorboard``: means over seeds, and each seed's value if there are several."""

    def __init__(self, run_dir: Path):
        self._dir = str(run_dir / "tensorboard")
        self._writer: Any = None
        self._purge_step: int | None = None

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """Write the scalars that are finite."""
        from tensorboardX import SummaryWriter

        if self._writer is None:  # the suffix: file names tell seconds apart, no less
            suffix = f".{secrets.token_hex(4)}"
            self._writer = SummaryWriter(self._dir, purge_step=self._purge_step, filename_suffix=suffix)
        for name, value in scalars(metrics).items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, env_steps)

    def truncate(self, env_steps: int) -> None:
        """Tell TensorBoard to hide what was written after ``env_steps``, once there is more."""
        self.close(0)
        self._purge_step = env_steps + 1

    def close(self, exit_code: int) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Wandb:
    """A wandb run in ``<run_dir>/wandb``, with the flat configuration and ``env_steps`` as its axis."""

    def __init__(self, run_dir: Path, config: Config, mode: Literal["online", "offline"], resume: bool):
        import wandb

        self._dir = run_dir
        id_file = run_dir / "wandb" / "run_id"
        # a sweep decides on project, entity and id of its runs, and allows no resuming
        in_sweep = bool(os.environ.keys() & {"WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"})
        run_id = id_file.read_text().strip() if resume and not in_sweep and id_file.is_file() else None
        place: dict[str, Any] = {} if in_sweep else {"project": config.wandb.project, "entity": config.wandb.entity}

        def start(mode: Literal["online", "offline"]) -> Any:
            # one of its own, also while others log: the trials of a population run side by side
            settings = wandb.Settings(silent=True, console="off", init_timeout=_INIT_TIMEOUT, reinit="create_new")
            wandb.setup(settings)  # silences logging in too
            return wandb.init(
                mode=mode,
                settings=settings,
                dir=str(run_dir),
                group=config.wandb.group,
                tags=list(config.wandb.tags),
                name=config.run.name or run_dir.name,
                config={k: list(v) if isinstance(v, tuple) else v for k, v in to_flat(config).items()},
                id=run_id,
                resume="allow" if run_id else None,
                **place,
            )

        self.mode, self._failure = mode, ""
        try:
            self.run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            self.mode, self._failure = "offline", _first_line(error)
            wandb.teardown()  # frees the id, for a run that is continued
            self.run = start("offline")
        id_file.parent.mkdir(exist_ok=True)
        id_file.write_text(self.run.id + "\n")
        self.run.define_metric("*", step_metric="env_steps")

    def describe(self, reason: str) -> str:
        """One line: where the run can be seen, or how to upload it."""
        if self.mode == "online":
            return f"wandb: {self.run.url}"
        why = f"not online: {self._failure}" if self._failure else reason
        return f"wandb: offline ({why}); upload later with: wandb sync {self._dir / 'wandb'}/offline-run-*"

    def log(self, env_steps: int, metrics: Metrics) -> None:
        """Log scalars."""
        self.run.log({"env_steps": env_steps, **scalars(metrics)})

    def truncate(self, env_steps: int) -> None:
        """Nothing: a server keeps what it has, and points repeated at the same ``env_steps`` coincide."""

    def close(self, exit_code: int) -> None:
        """Finish the run."""
        if exit_code == 143:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)


def check_sinks(config: Config) -> None:
    """Raise ``UserError`` if a sink that was asked for cannot work; writes nothing."""
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("tensorboard=true: tensorboardX is not installed; pip install 'ssmrl[tensorboard]'")
    if config.wandb.mode == "online" and find_wandb_key() is None:
        raise UserError("wandb=online: no API key found; run `wandb login`, set WANDB_API_KEY, or use wandb=offline")


Mode = Literal["auto", "online", "offline", "off"]


def wandb_mode(mode: Mode) -> tuple[Literal["online", "offline", "off"], str]:
    """Resolve the key ``wandb`` to ``"online"``, ``"offline"`` or ``"off"``, and say why; without importing wandb."""
    if mode != "auto":
        return mode, f"wandb={mode}"
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted == "disabled":
        return "off", "WANDB_MODE=disabled"
    if wanted in ("offline", "dryrun"):
        return "offline", f"WANDB_MODE={wanted}"
    source = find_wandb_key()
    return ("online", f"API key in {source}") if source else ("offline", "no API key")


def find_wandb_key() -> str | None:
    """Where wandb will find credentials: an environment variable or a file; None if nowhere."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None, default_section="-")
    try:
        files = settings.read([folder / "settings", Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"])
    except configparser.Error:
        files = []
    if settings.get("default", "api_key", fallback=""):
        return files[-1]
    url = os.environ.get("WANDB_BASE_URL") or settings.get("default", "base_url", fallback="")
    candidates = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    path = next((Path(p).expanduser() for p in candidates if p and Path(p).expanduser().is_file()), None)
    try:
        entries = netrc.netrc(path).hosts if path else {}
    except (netrc.NetrcParseError, OSError):
        return None
    hosts = (urlsplit(url).netloc,) if url else _HOSTS
    return str(path) if any(entries.get(host, ("", "", ""))[2] for host in hosts) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log points of a ``metrics.jsonl``, without a torn last line; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    points = []
    for number, line in enumerate(lines, 1):
        try:
            points.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}:{number}: damaged line; delete it to continue") from error
    return points


def scalars(metrics: Metrics) -> dict[str, float]:
    """One number per name: the mean over seeds, and ``name/seed_i`` for each of several seeds."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        seeds = list(value) if isinstance(value, Sequence) else [value]
        flat[name] = math.fsum(seeds) / len(seeds) if all(map(math.isfinite, seeds)) else math.nan
        if len(seeds) > 1:
            flat |= {f"{name}/seed_{i}": float(v) for i, v in enumerate(seeds)}
    return flat


def jsonable(value: Any) -> Any:
    """Replace what JSON cannot say, numbers that are not finite, by None, in nested lists and dicts."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
