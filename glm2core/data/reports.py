"""Makes the reports for the convert stage: its metrics, and tables that are computed from its output."""

from pathlib import Path

import polars as pl

from glm2core.data.convert import ConvertReport
from glm2core.data.fates import FATES_FILE
from glm2core.files import atomic_path
from glm2core.report_tables import write_table


def convert_metrics(report: ConvertReport) -> dict[str, int | float]:
    """The convert stage's metrics; `rows_read` is the sum of the four metrics that follow it.

    `rejected_fraction` is the share of rejected rows among the rows taken from files. `rows_losing_columns` counts the
    rows with a value in a known column that the row's format does not read.
    """
    total = report.total
    return {
        "rows_read": total.read,
        "rows_kept": total.kept,
        "rows_rejected": total.rejected,
        "rows_duplicate": total.duplicates,
        "rows_not_taken": total.not_taken,
        "rows_losing_columns": report.rows_losing,
        "rejected_fraction": total.rejected / max(report.taken_from_files, 1),
        **{f"rows_{split}": report.by_split[split] for split in ("train", "validation", "test")},
    }


def write_convert_tables(report: ConvertReport, converted: Path, folder: Path) -> None:
    """Write sources.csv, with one line per source, and fates.csv, with row counts by fate and rejection reason."""
    rows = pl.scan_parquet(converted / FATES_FILE, glob=False)
    with atomic_path(folder) as partial:
        partial.mkdir()
        write_table(_sources(rows, report.formats), partial / "sources.csv")
        write_table(_fates(rows), partial / "fates.csv")


def _sources(rows: pl.LazyFrame, formats: dict[str, str]) -> pl.DataFrame:
    fate = pl.col("fate")
    counted = rows.group_by("source").agg(
        read=pl.len(),
        kept=(fate == "kept").sum(),
        rejected=(fate == "rejected").sum(),
        duplicates=(fate == "duplicate").sum(),
        not_taken=(fate == "not taken").sum(),
    )
    named = pl.LazyFrame({"source": list(formats), "format": list(formats.values())})
    return named.join(counted, on="source", how="left", maintain_order="left").fill_null(0).collect()


def _fates(rows: pl.LazyFrame) -> pl.DataFrame:
    counted = rows.group_by("fate", "reason").agg(rows=pl.len())
    always = pl.LazyFrame({"fate": ["kept", "duplicate", "not taken"]})
    first = always.join(counted, on="fate", how="left", maintain_order="left")
    rejected = counted.filter(fate="rejected").sort("rows", "reason", descending=[True, False])
    label = pl.concat_str(pl.lit("rejected: "), "reason")
    return pl.concat(
        [first.select("fate", pl.col("rows").fill_null(0)), rejected.select(label.alias("fate"), "rows")]
    ).collect()
