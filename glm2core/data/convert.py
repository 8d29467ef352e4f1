"""Converts raw sources to one parquet file per split.

Each row is kept, is rejected, is dropped as a duplicate, or is not taken because its source's limit was reached.
"""

import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from glm2core.analysis.rows import generate_rows
from glm2core.conversation import Conversation, RejectionError, identify, split_of
from glm2core.data.columns import ColumnUse
from glm2core.data.converted import ConvertedWriter
from glm2core.data.detection import first_row, format_of, missing_sentence
from glm2core.data.fates import FatesWriter
from glm2core.data.formats import COLUMN_NAMES, to_conversation
from glm2core.data.json_rows import Record
from glm2core.data.shapes import likely_shape
from glm2core.data.sources import (
    RowFile,
    find_files,
    is_tracked,
    open_rows,
    parquet_parts,
    rows_in_parquet,
    source_name,
)
from glm2core.errors import UserError
from glm2core.files import json_line
from glm2core.lines.rounds import conversations
from glm2core.params import ConvertParams, GeneratedAnalysis, GeneratedLines, Source

REJECTED_FILE = "rejected.jsonl"
ANALYSIS = "analysis"
"""The source name under which generated text analysis rows are listed."""
_REASONS_SHOWN = 5
_MAPPING = "columns: {{{name}: {theirs}}}"


@dataclass
class Tally:
    """Counts what happened to the rows in one source or in all sources."""

    read: int = 0
    kept: int = 0
    rejected: int = 0
    duplicates: int = 0
    not_taken: int = 0

    def check(self, name: str) -> None:
        parts = self.kept + self.rejected + self.duplicates + self.not_taken
        assert self.read == parts, f"{name}: {self.read} rows read, {parts} accounted for"

    def __iadd__(self, other: "Tally") -> "Tally":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass
class ConvertReport:
    """Row counts by source and by split, and why the first few rows were rejected; fates.parquet lists every row."""

    total: Tally = field(default_factory=Tally)
    by_source: dict[str, Tally] = field(default_factory=dict)
    by_split: Counter[str] = field(default_factory=Counter)
    first_rejected: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    columns: dict[str, ColumnUse] = field(default_factory=dict)
    untracked: list[str] = field(default_factory=list)
    generated: set[str] = field(default_factory=set)

    @property
    def taken_from_files(self) -> int:
        """Number of rows taken from files.

        Generated rows are never rejected, so counting them would hide a high fraction of rejected rows in files.
        """
        generated = [self.by_source[source] for source in self.generated if source in self.by_source]
        return self.total.read - self.total.not_taken - sum(tally.read - tally.not_taken for tally in generated)

    @property
    def rows_losing(self) -> int:
        """Number of rows with a value in a known column that the row's format does not read."""
        return sum(use.rows_losing for use in self.columns.values())


class _RawConversation(NamedTuple):
    """A raw row, and the function that turns it into a conversation.

    split, kind: set only for generated rows.
    """

    record: Record
    read: Callable[[Any], Conversation]
    split: str | None = None
    kind: str | None = None


def convert_sources(
    params: ConvertParams, out: Path, *, progress: Callable[[int], None] = lambda rows: None
) -> ConvertReport:
    """Write the converted rows, `fates.parquet` and `rejected.jsonl` into the folder `out`.

    The converted rows are written to `train.parquet`, `validation.parquet` and `test.parquet`.

    Args:
        progress: a function that is called with the number of rows read since its last call.

    Raises:
        UserError: a source can't be read, too many rows were rejected, or no row is left for training.
    """
    run = _Conversion(params, out, progress)
    with run.writer, run.fates, run.rejected_file:
        for number, source in enumerate(params.sources):
            run.add_source(source, f"convert.sources[{number}]")
    run.finish()
    return run.report


class _Conversion:
    def __init__(self, params: ConvertParams, out: Path, progress: Callable[[int], None]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.params = params
        self.report = ConvertReport()
        self.writer = ConvertedWriter(out)
        self.fates = FatesWriter(out)
        self.rejected_file: IO[bytes] = (out / REJECTED_FILE).open("wb")
        self._progress = progress
        self._seen: set[bytes] = set()

    def add_source(self, source: Source, place: str) -> None:
        left = source.limit if source.limit is not None else sys.maxsize
        if source.generate is not None:
            self.report.formats[place] = f"lines ({source.generate.conversations:,} generated conversations)"
            self.report.generated.add(place)
            self._add_rows(place, "index", _generated_lines(source.generate), source, left)
            return
        if source.analysis is not None:
            if not source.analysis.rows + source.analysis.held_out_rows:
                return
            self.report.formats[ANALYSIS] = f"analysis ({source.analysis.rows:,} generated rows to train on)"
            self.report.generated.add(ANALYSIS)
            self._add_rows(ANALYSIS, "index", _generated_analysis(source.analysis, source.held_out), source, left)
            return
        if parts := parquet_parts(str(source.path), place):
            self._add_parts(parts, source, place, left)
            return
        for path in find_files(str(source.path), place):
            left -= self._add_file(path, source, place, left)

    def finish(self) -> None:
        report = self.report
        report.total.check("all sources")
        taken = report.taken_from_files
        if report.total.rejected > self.params.max_rejected_fraction * taken:
            raise UserError(
                f"{report.total.rejected:,} of {taken:,} rows in files were rejected. This is more than "
                f"convert.max_rejected_fraction ({self.params.max_rejected_fraction:g}) allows. "
                f"{self._why()}Fix the rows, or raise this fraction."
            )
        if not report.by_split["train"]:
            raise UserError(
                f"no row is left to train on: of {report.total.read:,} rows, {report.total.rejected:,} were rejected, "
                f"{report.total.duplicates:,} were duplicates, and {report.total.kept:,} went to validation and test. "
                f"{self._why()}Add rows, or lower convert.validation_fraction and convert.test_fraction."
            )

    def _add_parts(self, parts: list[Path], source: Source, place: str, left: int) -> None:
        """Add the parts in a folder as one source; its rows are numbered across all parts."""
        name = source_name(parts[0].parent)
        start = 0
        for path in parts:
            if rows := rows_in_parquet(path):  # distributed engines also write empty parts
                left -= self._add_file(path, source, place, left, name, start)
                start += rows
        if not start:
            raise UserError(
                f"{place}: {parts[0].parent} has no rows (parquet parts: {len(parts):,}). Add rows to it, or remove it."
            )

    def _add_file(
        self, path: Path, source: Source, place: str, left: int, name: str | None = None, start: int = 0
    ) -> int:
        """Keep at most `left` rows of a file; return how many were kept.

        Args:
            name: the source's name, if the file is one part of a source.
            start: the number of rows in the source's earlier parts.
        """
        rows = open_rows(path, source.encoding, source.columns)
        columns = source.columns
        unread: list[str] = []
        if rows.kind == "parquet":
            rows, unread = _of_needed_columns(rows, columns)
        try:
            row_format = format_of(rows, first_row(rows), source.format, columns, _MAPPING, answer_needed=True)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        name = name or source_name(path)
        if name == ANALYSIS:
            raise UserError(
                f"{place}: {name} is also the name under which generated rows of format analysis are listed. Rename "
                "the file or folder, so that training can tell the two apart."
            )
        self.report.formats[name] = f"{row_format} ({rows.description})"
        if not is_tracked(path) and name not in self.report.untracked:
            self.report.untracked.append(name)
        known = self.report.columns.get(name) if start else None
        use = known if known and known.row_format == row_format else ColumnUse(row_format, columns)
        self.report.columns[name] = use
        use.unread |= dict.fromkeys(unread)

        def read(value: Any) -> Conversation:
            use.add(value)
            return to_conversation(value, row_format, columns)

        records = (record._replace(number=start + record.number) if start else record for record in rows)
        taken = self._add_rows(name, rows.unit, (_RawConversation(r, read) for r in records), source, left)
        if missing := use.missing():
            sentence = missing_sentence(rows, row_format, missing, [*use.read, *use.unread], _MAPPING)
            raise UserError(f"{place}: {sentence}")
        return taken

    def _add_rows(self, name: str, unit: str, rows: Iterator[_RawConversation], source: Source, left: int) -> int:
        """Keep at most `left` rows; return how many were kept."""
        tally = Tally()
        for raw in rows:
            tally.read += 1
            if tally.kept == left:
                tally.not_taken += 1
                self.fates.add(name, raw.record.number, "not taken")
            else:
                self._add_row(raw, name, unit, source, tally)
            if tally.read % 1000 == 0:
                self._progress(1000)
        self._progress(tally.read % 1000)
        tally.check(name)
        self.report.total += tally
        known = self.report.by_source.setdefault(name, Tally())
        known += tally
        return tally.kept

    def _add_row(self, raw: _RawConversation, name: str, unit: str, source: Source, tally: Tally) -> None:
        try:
            if raw.record.problem is not None:
                raise RejectionError(raw.record.problem)
            conversation = raw.read(raw.record.value)
            identity = identify(conversation.messages, self.params.seed)
        except RejectionError as rejection:
            tally.rejected += 1
            self._keep_rejected(name, unit, raw.record, str(rejection))
            return
        key = bytes.fromhex(identity.id)
        if key in self._seen:
            tally.duplicates += 1
            self.fates.add(name, raw.record.number, "duplicate")
            return
        self._seen.add(key)
        fractions = (self.params.validation_fraction, self.params.test_fraction) if source.held_out else (0.0, 0.0)
        split = raw.split or split_of(identity.split_point, *fractions)
        self.writer.add(split, identity.id, name, conversation, source, raw.kind)
        self.fates.add(name, raw.record.number, "kept")
        self.report.by_split[split] += 1
        tally.kept += 1

    def _keep_rejected(self, name: str, unit: str, record: Record, reason: str) -> None:
        self.fates.add(name, record.number, "rejected", reason)
        if len(self.report.first_rejected) < _REASONS_SHOWN:
            text = record.value if record.problem is not None and isinstance(record.value, str) else ""
            self.report.first_rejected.append(f"{name}, {unit} {record.number}: {reason}.{likely_shape(text)}")
        row = record.whole() if record.whole else record.value
        entry = {"source": name, unit: record.number, "reason": reason, "row": row}
        try:
            line = json_line(entry)
        except RecursionError:
            # The parser allows slightly deeper nesting than the writer, so only a shortened row is written here; its
            # number tells where to find the full row
            line = json_line({**entry, "row": reprlib.repr(row)})
        self.rejected_file.write(line)

    def _why(self) -> str:
        if not self.report.first_rejected:
            return ""
        return "The first rejected rows:\n" + "".join(f"  {line}\n" for line in self.report.first_rejected)


def _of_needed_columns(rows: RowFile, columns: Mapping[str, str]) -> tuple[RowFile, list[str]]:
    """A parquet file restricted to the columns of known formats, and the names of the file's remaining columns."""
    names = rows.column_names()
    mapped = {*columns.values()}
    needed = frozenset(name for name in names if name in mapped or name.strip().lower() in COLUMN_NAMES)
    return replace(rows, columns=needed), [name for name in names if name not in needed]


def _generated_lines(spec: GeneratedLines) -> Iterator[_RawConversation]:
    for number, messages in enumerate(conversations(spec)):
        yield _RawConversation(Record(number, messages), Conversation)


def _generated_analysis(spec: GeneratedAnalysis, held_out: bool) -> Iterator[_RawConversation]:
    """Yield generated rows with their splits.

    A hash can't choose these splits, because no training row may mention an entity from a held-out row.
    """
    for number, row in enumerate(generate_rows(spec, held_out=held_out)):
        split = "train" if row.split == "training" else ("validation", "test")[number % 2]
        yield _RawConversation(Record(number, row.conversation), _as_it_is, split, row.kind)


def _as_it_is(value: Conversation) -> Conversation:
    return value
