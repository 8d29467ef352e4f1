"""What convert and tokenize report: flat metrics, and tables that DVC plots."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from glm2core.data.convert import ConvertReport
from glm2core.data.encode import EncodeReport
from glm2core.data.sp import SpTokenizer
from glm2core.files import atomic_path

CUTS = (
    "responses_cut",
    "prompts_without_oldest_rounds",
    "rounds_dropped",
    "texts_cut_in_the_middle",
    "prompts_cut_left",
    "prompts_cut_right",
)
_BINS = 50


def convert_metrics(report: ConvertReport) -> dict[str, int | float]:
    """Figures of the convert stage; `rows_read` is the sum of the four that follow it.

    `rows_losing_columns` counts rows that fill a column which is known, and which their format does not read.
    """
    total = report.total
    return {
        "rows_read": total.read,
        "rows_kept": total.kept,
        "rows_rejected": total.rejected,
        "rows_duplicate": total.duplicates,
        "rows_not_taken": total.not_taken,
        "rows_losing_columns": report.rows_losing,
        "rejected_fraction": total.rejected / max(total.read - total.not_taken, 1),
        **{f"rows_{split}": report.by_split[split] for split in ("train", "validation", "test")},
    }


def write_convert_tables(report: ConvertReport, folder: Path) -> None:
    """sources.csv: a line a source; fates.csv: rows by what became of them, rejected ones by reason."""
    header = ("source", "format", "read", "kept", "rejected", "duplicates", "not_taken")
    sources = ((name, report.layouts[name], *vars(tally).values()) for name, tally in report.by_source.items())
    fates = [("kept", report.total.kept), ("duplicate", report.total.duplicates), ("not taken", report.total.not_taken)]
    fates += [(f"rejected: {reason}", rows) for reason, rows in _by_frequency(report.reasons.items())]
    with atomic_path(folder) as partial:
        partial.mkdir()
        _write_csv(partial / "sources.csv", header, sources)
        _write_csv(partial / "fates.csv", ("fate", "rows"), fates)


def tokenize_metrics(report: EncodeReport, tokenizer: SpTokenizer) -> dict[str, int | float]:
    """Figures of the tokenize stage; counts of cuts are of rows, rounds or responses, as they say."""
    rows = report.totals.rows
    return {
        **{f"rows_{split}": count for split, count in report.rows.items()},
        "rows_dropped": len(report.dropped),
        "tokens": report.totals.tokens,
        "tokens_supervised": report.supervised_tokens,
        "tokens_mean": report.totals.tokens / max(rows, 1),
        "tokens_longest": report.totals.longest,
        "vocabulary_size": len(tokenizer),
        **{name: report.cuts[name] for name in CUTS},
    }


def write_tokenize_tables(report: EncodeReport, examples: str, folder: Path) -> None:
    """lengths.csv: rows by tokens; cuts.csv; dropped.csv: rows without a pair; examples.md."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        _write_csv(partial / "lengths.csv", ("tokens", "prompts", "responses", "rows"), _length_table(report))
        cuts = [(name.replace("_", " "), report.cuts[name]) for name in CUTS]
        _write_csv(partial / "cuts.csv", ("cut", "count"), [*cuts, ("rows dropped", len(report.dropped))])
        _write_csv(partial / "dropped.csv", ("split", "id", "reason"), report.dropped)
        (partial / "examples.md").write_text(examples, encoding="utf-8")


def _length_table(report: EncodeReport) -> list[tuple[int, ...]]:
    """A line a bin: its first token count, then rows whose prompt, response or whole falls into it."""
    width = max(report.totals.longest // _BINS, 1)
    columns = [counts.histogram(width) for counts in (report.sources, report.targets, report.totals)]
    bins = max(map(len, columns))
    padded = [column + [0] * (bins - len(column)) for column in columns]
    return [(i * width, *counts) for i, counts in enumerate(zip(*padded, strict=True))]


def _by_frequency(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
