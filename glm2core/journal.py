"""What a long run has done so far, in a file that outlives a kill: a run that was stopped goes on from it.

{"model": ..., "seed": ...}          what the values were made with
{"key": 17, "value": ...}            a line for each value, whole before the next begins
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glm2core.files import json_line, run_fingerprint

Key = str | int
Memo = Callable[[Any, Callable[[], Any]], Any]
"""(key, compute) -> the value of that key: an earlier run's, or computed now."""


def compute_only(key: Any, compute: Callable[[], Any]) -> Any:
    """The `Memo` that remembers nothing."""
    return compute()


class Journal:
    """JSON values by key; each reaches the disk before `add` returns.

    Args:
        file: made by the first `add`. A last line that a kill cut short is dropped.
        made_with: JSON values of all that the values depend on, their keys apart.
        failed: called when the file can't be written; where it returns, the run goes on without a journal.
    """

    def __init__(self, file: Path, made_with: dict[str, Any], failed: Callable[[OSError], None]) -> None:
        self._file, self._failed = file, failed
        self._made_with = made_with
        self._kept = True
        lines = _whole_lines(file)
        self._found: dict[str, Any] | None = lines[0] if lines else None
        self._values: dict[Key, Any] = {
            line["key"]: line["value"] for line in lines[1:] if line.keys() >= {"key", "value"}
        }

    @property
    def differences(self) -> list[str] | None:
        """What of `made_with` was other in the run that the file is of; None = nothing, or there is no file."""
        if self._found is None or self._found == self._made_with:
            return None
        return [name for name in self._made_with if self._found.get(name) != self._made_with[name]]

    @property
    def values(self) -> Mapping[Key, Any]:
        """All values so far."""
        return self._values

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of a key: that of the run before, or computed now and kept.

        Args:
            key: plain JSON values that tell this value from the others.
            compute: gives plain JSON values, the same whenever it is called.
        """
        name = run_fingerprint(key)
        if name not in self._values:
            self.add({name: compute()})
        return self._values[name]

    def add(self, values: Mapping[Key, Any]) -> None:
        """Keep values, and force them to the disk; those of keys that are there already are dropped."""
        new = {key: value for key, value in values.items() if key not in self._values}
        self._values |= new
        if self._kept and (new or self._found is None):
            self._append([{"key": key, "value": value} for key, value in new.items()])

    def remove(self) -> None:
        """The run has ended."""
        self._file.unlink(missing_ok=True)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if self._found is None:
            lines, self._found = [self._made_with, *lines], self._made_with
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(b"".join(json_line(line) for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._kept = False
            self._failed(error)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """What a run left; the file is cut behind it."""
    if not path.is_file():
        return []
    lines, size = [], 0
    with path.open("rb") as file:
        for text in file:
            line = _parsed(text)
            if line is None:
                break
            lines.append(line)
            size += len(text)
    if size < path.stat().st_size:
        os.truncate(path, size)
    return lines


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
