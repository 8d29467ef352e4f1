"""Parts of an evaluation that are done: on a CPU a large network takes hours, and one that was stopped goes on.

    <project root>/.checkpoints/evaluate-<fingerprint>.jsonl    a line for each part: its key and its records

Another value of anything the answers depend on gives another file. It is untracked, and goes when the
evaluation has ended.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm2core.files import project_root, run_fingerprint

Record = dict[str, Any]
Part = Callable[[Any, Callable[[], list[Record]]], list[Record]]


def made_now(key: Any, make: Callable[[], list[Record]]) -> list[Record]:
    """Records of a part that nobody keeps."""
    return make()


class FinishedParts:
    """What an evaluation has finished, and finishes.

    Args:
        made_with: plain JSON values of all that the records depend on, their keys apart.
        notice: told in a sentence when there is something to go on with, or nothing can be kept.
    """

    def __init__(self, made_with: Any, notice: Callable[[str], None] = print) -> None:
        self._file = project_root() / ".checkpoints" / f"evaluate-{run_fingerprint(made_with)}.jsonl"
        self._notice = notice
        self._parts = _read(self._file)
        self._kept = True
        if self._parts:
            notice(f"going on with an evaluation that was stopped; parts done before: {len(self._parts):,}")

    def part(self, key: Any, make: Callable[[], list[Record]]) -> list[Record]:
        """The records of a part: those of the run before, or made now and kept.

        Args:
            key: plain JSON values that tell this part from the others.
            make: gives plain JSON values, the same whenever it is called.
        """
        name = run_fingerprint(key)
        if name not in self._parts:
            self._parts[name] = make()
            self._append({"part": name, "records": self._parts[name]})
        return self._parts[name]

    def remove(self) -> None:
        """The evaluation has ended, and its files are whole."""
        self._file.unlink(missing_ok=True)

    def _append(self, line: Record) -> None:
        if not self._kept:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                # A line that a kill cut short stays a line of its own
                file.write(f"\n{json.dumps(line)}\n")
        except OSError as error:
            self._kept = False
            self._notice(f"could not write {self._file} ({error}): the evaluation goes on, but can't be continued.")


def _read(file: Path) -> dict[str, list[Record]]:
    """All whole lines."""
    parts: dict[str, list[Record]] = {}
    for text in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
            parts[line["part"]] = line["records"]
        except (ValueError, KeyError, TypeError):
            continue
    return parts
