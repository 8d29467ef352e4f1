"""What a long run has done so far, in a file that outlives a kill: a run that was stopped goes on from it.

{"model": ..., "seed": ...}          what the values were made with
{"key": 17, "value": ...}            a line for each value, whole before the next begins
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glm2core.files import json_line, run_fingerprint

Key = str | int
Memo = Callable[[Any, Callable[[], Any]], Any]
"""(key, compute) -> the value of that key: an earlier run's, or computed now."""


def compute_only(key: Any, compute: Callable[[], Any]) -> Any:
    """The `Memo` that remembers nothing."""
    return compute()


class _Values(Mapping[Key, Any]):
    """A journal's values, read from its file when they are asked for; those it could not take are kept here."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.places: dict[Key, int] = {}  # of their lines, in bytes
        self.unwritten: dict[Key, Any] = {}

    def __len__(self) -> int:
        return len(self.places) + len(self.unwritten)

    def __iter__(self) -> Iterator[Key]:
        yield from self.places
        yield from self.unwritten

    def __contains__(self, key: object) -> bool:
        return key in self.places or key in self.unwritten

    def __getitem__(self, key: Key) -> Any:
        if key not in self.places:
            return self.unwritten[key]
        with self._file.open("rb") as file:
            file.seek(self.places[key])
            return json.loads(file.readline())["value"]


class Journal:
    """JSON values by key; each reaches the disk before `add` returns, and only their places are held in memory.

    Args:
        file: made by the first `add`. A last line that a kill cut short is dropped.
        made_with: JSON values of all that the values depend on, their keys apart.
        failed: called when the file can't be written; where it returns, the run goes on without a journal.
    """

    def __init__(self, file: Path, made_with: dict[str, Any], failed: Callable[[OSError], None]) -> None:
        self._file, self._failed = file, failed
        self._made_with = made_with
        self._kept = True
        self._values = _Values(file)
        self._found: dict[str, Any] | None = None
        for place, line in _whole_lines(file):
            if self._found is None:
                self._found = line
            elif line.keys() >= {"key", "value"}:
                self._values.places.setdefault(line["key"], place)

    @property
    def differences(self) -> list[str] | None:
        """What of `made_with` was other in the run that the file is of; None = nothing, or there is no file."""
        if self._found is None or self._found == self._made_with:
            return None
        return [name for name in self._made_with if self._found.get(name) != self._made_with[name]]

    @property
    def values(self) -> Mapping[Key, Any]:
        """All values so far; each is read from the file."""
        return self._values

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of a key: that of the run before, or computed now and kept.

        Args:
            key: plain JSON values that tell this value from the others.
            compute: gives plain JSON values, the same whenever it is called.
        """
        name = run_fingerprint(key)
        if name in self._values:
            return self._values[name]
        value = compute()
        self.add({name: value})
        return value

    def add(self, values: Mapping[Key, Any]) -> None:
        """Keep values, and force them to the disk; those of keys that are there already are dropped."""
        new = {key: value for key, value in values.items() if key not in self._values}
        if not self._kept:
            self._values.unwritten |= new
        elif new or self._found is None:
            self._append(new)

    def remove(self) -> None:
        """The run has ended."""
        self._file.unlink(missing_ok=True)

    def _append(self, values: Mapping[Key, Any]) -> None:
        lines = {key: json_line({"key": key, "value": value}) for key, value in values.items()}
        head = b"" if self._found is not None else json_line(self._made_with)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                place = file.tell() + len(head)
                file.write(head + b"".join(lines.values()))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._kept = False
            self._values.unwritten |= values
            self._failed(error)
            return
        self._found = self._found if self._found is not None else self._made_with
        for key, line in lines.items():
            self._values.places[key] = place
            place += len(line)


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a run left, each line with its place; the file is cut behind it."""
    if not path.is_file():
        return
    size = 0
    with path.open("rb") as file:
        for text in file:
            line = _parsed(text)
            if line is None:
                break
            yield size, line
            size += len(text)
    if size < path.stat().st_size:
        os.truncate(path, size)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
