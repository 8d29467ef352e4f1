"""Converts raw sources to conversations in data/converted/, splits them by prompt, and keeps rejected rows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glm2core.console import closing_table, progress_bar
from glm2core.conversation import SPLITS
from glm2core.errors import shown_names
from glm2core.files import atomic_path, write_json
from glm2core.params import Params
from glm2core.tracking import headlines, stage_run
from stages.runner import run_stage

if TYPE_CHECKING:
    from glm2core.data.columns import ColumnUse
    from glm2core.data.convert import ConvertReport

CONVERTED = Path("data/converted")
REPORTS = Path("reports/convert")
METRICS = Path("metrics/convert.json")
_WITHOUT = {
    "validation": "training runs without validation (convert.validation_fraction and the number of rows decide)",
    "test": "evaluate gives no test_loss (convert.test_fraction and the number of rows decide)",
}


def convert(params: Params) -> None:
    # Imported here, so that wrong params are reported first.
    from glm2core.data.ahead import rows_ahead
    from glm2core.data.convert import REJECTED_FILE, convert_sources
    from glm2core.data.reports import convert_metrics, write_convert_tables

    with stage_run("convert", params) as run:
        with atomic_path(CONVERTED) as partial, progress_bar("convert", rows_ahead(params.convert)) as (bar, task):
            report = convert_sources(params.convert, partial, progress=lambda rows: bar.advance(task, rows))
        metrics = convert_metrics(report)
        write_convert_tables(report, CONVERTED, REPORTS)
        write_json(METRICS, metrics)
        _say_what_was_found(report)
        run.headline(metrics, headlines("convert", metrics))
        run.artifact(REPORTS)
        for split in SPLITS:
            run.dataset(CONVERTED / f"{split}.parquet", context=split)
        if params.tracking.log_examples and report.total.rejected:
            run.artifact(CONVERTED / REJECTED_FILE)
    look_next: dict[str, str | Path] = {"kept, rejected and duplicate rows": REPORTS / "fates.csv"}
    if report.total.rejected:
        look_next["rejected rows and why"] = CONVERTED / REJECTED_FILE
    closing_table("convert", dict(metrics), look_next)


def _say_what_was_found(report: "ConvertReport") -> None:
    for source, tally in report.by_source.items():
        print(f"{source}: {report.formats[source]}: {tally.kept:,} of {tally.read:,} rows kept")
        if source in report.columns:
            _say_columns(source, report.columns[source])
    for split in ("validation", "test"):
        if not report.by_split[split]:
            print(f"no row is held out for {split}: {_WITHOUT[split]}")
    for source in report.untracked:
        print(
            f"warning: {source} is outside data/raw, so DVC does not notice changes to it. "
            "Put it under data/raw (with git or `dvc add`), or use `dvc repro -f` after a change.",
            file=sys.stderr,
        )


def _say_columns(source: str, use: "ColumnUse") -> None:
    not_read = f"; not read: {shown_names(use.unread)}" if use.unread else ""
    print(f"  columns read: {shown_names(use.read)}{not_read}")
    for name, rows in use.lost.items():
        print(
            f"warning: {source}: {rows:,} rows have a value in {shown_names([name])}, which format {use.row_format} "
            "does not read. If it belongs to the prompt or the answer, map it with columns, or choose another format.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_stage("convert", convert))
