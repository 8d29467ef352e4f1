"""Raw sources -> data/converted/: one conversation a row, split by prompt; rejected rows kept with their reason."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glm2core.console import closing_table, progress_bar
from glm2core.conversation import SPLITS
from glm2core.files import atomic_path, write_json
from glm2core.params import Params
from glm2core.tracking import stage_run
from stages.runner import run_stage

if TYPE_CHECKING:
    from glm2core.data.convert import ConvertReport

CONVERTED = Path("data/converted")
REPORTS = Path("reports/convert")
METRICS = Path("metrics/convert.json")


def convert(params: Params) -> None:
    # Here, so that wrong params are told before polars is imported.
    from glm2core.data.convert import REJECTED_FILE, convert_sources
    from glm2core.data.reports import convert_metrics, write_convert_tables

    with stage_run("convert", params) as run:
        with atomic_path(CONVERTED) as partial, progress_bar("convert", None) as (bar, task):
            report = convert_sources(params.convert, partial, progress=lambda rows: bar.advance(task, rows))
        metrics = convert_metrics(report)
        write_convert_tables(report, CONVERTED, REPORTS)
        write_json(METRICS, metrics)
        _say_what_was_found(report)
        run.headline(metrics)
        run.artifact(REPORTS)
        for split in SPLITS:
            run.dataset(CONVERTED / f"{split}.parquet", context=split)
        if params.tracking.log_examples and report.total.rejected:
            run.artifact(CONVERTED / REJECTED_FILE)
    look_next: dict[str, str | Path] = {"rows by what became of them": REPORTS / "fates.csv"}
    if report.total.rejected:
        look_next["rejected rows and why"] = CONVERTED / REJECTED_FILE
    closing_table("convert", dict(metrics), look_next)


def _say_what_was_found(report: "ConvertReport") -> None:
    for source, tally in report.by_source.items():
        print(f"{source}: {report.formats[source]}: {tally.kept:,} of {tally.read:,} rows kept")
    for source in report.untracked:
        print(
            f"warning: {source} lies outside data/raw, so DVC does not see when it changes. "
            "Put it under data/raw (git or `dvc add`), or use `dvc repro -f` after a change.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_stage("convert", convert))
