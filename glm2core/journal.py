"""A journal: a file with the results of a long run so far, from which a stopped or killed run can continue.

{"model": ..., "seed": ...}          the settings of the run
{"key": 17, "value": ...}            one line per value, complete before the next begins
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glm2core.files import json_line, run_fingerprint

Key = str | int
Memo = Callable[[Any, Callable[[], Any]], Any]
"""Takes (key, compute) and returns the key's value, which comes from an earlier run or is computed now."""


def compute_only(key: Any, compute: Callable[[], Any]) -> Any:
    """A `Memo` that remembers nothing: it computes every value."""
    return compute()


class _Values(Mapping[Key, Any]):
    """A journal's values, read from its file on request; values that could not be written are kept in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.places: dict[Key, int] = {}  # where their lines begin in the file, in bytes
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
    """A file of JSON values by key.

    `add` returns only after its values are on the disk. Memory holds only the places of the values in the file.

    Args:
        file: the journal's file, created by the first `add`. An incomplete last line, left by a kill, is dropped.
        made_with: everything that the values depend on besides their keys, as JSON values.
        failed: called when the file can't be written; if the call returns, the run continues without a journal.
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
        """The names in `made_with` whose values differ from those in the file; None = no difference, or no file."""
        if self._found is None or self._found == self._made_with:
            return None
        return [name for name in self._made_with if self._found.get(name) != self._made_with[name]]

    @property
    def values(self) -> Mapping[Key, Any]:
        """All values so far; each is read from the file on access."""
        return self._values

    def memo(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return a key's value, which is read from the journal or, if it is not there, computed and added.

        Args:
            key: plain JSON values that identify this value.
            compute: returns plain JSON values, the same on every call.
        """
        name = run_fingerprint(key)
        if name in self._values:
            return self._values[name]
        value = compute()
        self.add({name: value})
        return value

    def add(self, values: Mapping[Key, Any]) -> None:
        """Write values to the disk; a key that already has a value keeps that value."""
        new = {key: value for key, value in values.items() if key not in self._values}
        if not self._kept:
            self._values.unwritten |= new
        elif new or self._found is None:
            self._append(new)

    def remove(self) -> None:
        """Remove the file, because the run has ended."""
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
    """The complete lines that a run left, each with its place; the rest of the file is deleted."""
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
