"""What convert reports: flat metrics, and tables that DVC plots."""

from collections.abc import Iterable
from pathlib import Path

from glm2core.data.convert import ConvertReport
from glm2core.files import atomic_path, write_csv


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
    sources = ((name, report.formats[name], *vars(tally).values()) for name, tally in report.by_source.items())
    fates = [("kept", report.total.kept), ("duplicate", report.total.duplicates), ("not taken", report.total.not_taken)]
    fates += [(f"rejected: {reason}", rows) for reason, rows in _by_frequency(report.reasons.items())]
    with atomic_path(folder) as partial:
        partial.mkdir()
        write_csv(partial / "sources.csv", header, sources)
        write_csv(partial / "fates.csv", ("fate", "rows"), fates)


def _by_frequency(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda item: (-item[1], item[0]))
