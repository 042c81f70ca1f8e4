"""A sweep's ledger: what was drawn and what came of it, one line of JSON each, appended as it happens.

The first line says what the sweep is; then ``{"trial": 3, "parameters": {...}}`` when one is drawn, ``{"trial": 3,
"band": 9, "value": 0.5}`` when hyperband looks at it, ``{"trial": 3, "status": "done", "value": 0.9}`` when it ends.
"""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ssmrl.fields import UserError


@dataclasses.dataclass
class Trial:
    """One trial of a sweep: what was drawn for it, and what came of it."""

    number: int
    parameters: dict[str, Any]
    point: dict[str, float] = dataclasses.field(default_factory=dict)  # what the search drew it from
    status: str = "new"  # then "done", "stopped" or "failed"
    value: float | None = None  # of the metric
    reason: str = ""
    bands: dict[int, float] = dataclasses.field(default_factory=dict)  # the metric, best or last, at each of them

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status != "new"


class Ledger:
    """The ledger in ``folder``, made if there is none; its ``trials`` by number.

    A torn last line, of a process killed while writing, is dropped. Raises ``UserError`` if it is another sweep's than
    ``header`` describes, damaged, or in use.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.path, self.trials = folder / "ledger.jsonl", dict[int, Trial]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; set --root") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"{folder} is in use by another ssmrl sweep: wait for it, or set --root") from error
        try:
            self._continue(json.loads(json.dumps(header)))  # as it is read
        except BaseException:
            self._file.close()
            raise

    def _continue(self, header: dict[str, Any]) -> None:
        entries = self._read()
        if not entries:
            others = [p.name for p in self.path.parent.iterdir() if p != self.path]
            if others:  # their checkpoints would be taken for this sweep's
                hint = "move it away, or choose another name: or --root"
                raise UserError(f"{self.path.parent} holds {min(others)} but no ledger: {hint}")
            self._append(header)
            return
        differing = [k for k in header if entries[0].get(k) != header[k]]
        if differing:
            differ = "differs" if len(differing) == 1 else "differ"
            raise UserError(
                f"{self.path.parent} holds another sweep: its {' and '.join(differing)} {differ} from what you ask for:"
                " restore the file and the command, or start anew with another name: or --root"
            )
        for entry in entries[1:]:
            self._apply(entry)

    def draw(self, trial: Trial) -> None:
        """Write down a new trial."""
        self.record({"trial": trial.number, "parameters": trial.parameters, "point": trial.point})

    def record(self, entry: dict[str, Any]) -> None:
        """Write down an event: at once, so that a kill loses nothing."""
        self._append(entry)
        self._apply(entry)

    def close(self) -> None:
        """Let others use the folder."""
        self._file.close()

    def _apply(self, entry: dict[str, Any]) -> None:
        number = entry["trial"]
        if "parameters" in entry:
            self.trials[number] = Trial(number, entry["parameters"], entry.get("point", {}))
        elif "band" in entry:
            self.trials[number].bands[entry["band"]] = entry["value"]
        else:
            trial = self.trials[number]
            trial.status, trial.value, trial.reason = entry["status"], entry["value"], entry.get("reason", "")

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        entries, good = [], 0
        lines = self._file.read().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
                if not line.endswith("\n"):
                    raise ValueError("torn")
            except ValueError as error:
                if number < len(lines):
                    raise UserError(f"{self.path}:{number}: damaged line; delete it to continue") from error
                entries = entries[: number - 1]
                break
            good += len(line.encode())
        self._file.truncate(good)
        return entries
