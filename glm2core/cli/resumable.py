"""JSON lines that are written over hours: each batch reaches the disk, and a killed run is continued.

Until the run is done the lines lie in `<out>.partial`, behind a first line that says what they were
made with; then they take the name `<out>`, in the order of their numbers.
"""

import json
import os
from collections.abc import KeysView, Sequence
from pathlib import Path
from typing import Any

from glm2core.errors import UserError
from glm2core.files import atomic_path, json_line

Line = dict[str, Any]


class ResumableLines:
    """Numbered lines on their way to `out`.

    Args:
        out: the finished file; must not exist.
        key: the field of a line that holds its number.
        made_with: everything the lines depend on; lines of another making are not continued.
        restart: forget what a killed run left.

    Raises:
        UserError: `out` exists, or a killed run of another making left lines.
    """

    def __init__(self, out: Path, key: str, made_with: dict[str, Any], *, restart: bool = False) -> None:
        self._out, self._key = out, key
        self._partial = out.with_name(f"{out.name}.partial")
        if out.exists():
            raise UserError(f"{out} exists already. Remove it, or name another file with --output.")
        if restart:
            self._partial.unlink(missing_ok=True)
        lines = self._whole_lines()
        if lines and lines[0] != made_with:
            raise UserError(
                f"{self._partial} holds answers of a run with {_difference(lines[0], made_with)}. "
                "Give the same command to go on with it, --restart to forget it, or another --output."
            )
        self._lines = {line[key]: line for line in lines[1:]}
        if not lines:
            self._append([made_with])

    @property
    def done(self) -> KeysView[int]:
        """Numbers of the lines that are written."""
        return self._lines.keys()

    @property
    def lines(self) -> list[Line]:
        """The lines so far, by number."""
        return [self._lines[number] for number in sorted(self._lines)]

    def add(self, lines: Sequence[Line]) -> None:
        """Write lines and force them to the disk."""
        new = [line for line in lines if line[self._key] not in self._lines]
        self._append(new)
        self._lines |= {line[self._key]: line for line in new}

    def finish(self) -> None:
        """Give all lines the name `out`."""
        with atomic_path(self._out) as path:
            path.write_bytes(b"".join(json_line(line) for line in self.lines))
        self._partial.unlink()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._partial.unlink()

    def _append(self, lines: Sequence[Line]) -> None:
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            with self._partial.open("ab") as file:
                file.write(b"".join(json_line(line) for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"could not write {self._partial}: {error.strerror or error}. Free space or mend the rights of "
                f"{self._partial.parent}, and give the same command again: it goes on from the last whole line."
            ) from error

    def _whole_lines(self) -> list[Line]:
        """What a killed run left, without a last line that was cut short."""
        if not self._partial.is_file():
            return []
        lines, size = [], 0
        with self._partial.open("rb") as file:
            for text in file:
                line = _parsed(text)
                if line is None:
                    break
                lines.append(line)
                size += len(text)
        os.truncate(self._partial, size)
        return lines


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _difference(theirs: Line, ours: Line) -> str:
    named = [key for key in ours if theirs.get(key) != ours[key]]
    return f"another {' and '.join(named)}" if named else "other settings"
