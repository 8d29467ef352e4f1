"""Tunes the network as params say, and writes weights or an adapter, learning curves and metrics."""

import os
import sys
from pathlib import Path

from glm2core.console import closing_table, quiet_libraries
from glm2core.files import write_json
from glm2core.params import Params
from stages.kept import put_back
from stages.launch import become_launcher, is_launched
from stages.runner import run_stage

TOKENIZED = Path("data/tokenized")
TUNED = Path("models/tuned")
REPORTS = Path("reports/train")
METRICS = Path("metrics/train.json")


def train(params: Params) -> None:
    """Tune the network on data/tokenized, in this process or in processes that `train.launcher` starts."""
    become_launcher(params.train.launcher, "stages.train")
    # Imported here, so that wrong params are reported first.
    quiet_libraries()
    from glm2core.tracking import headlines, stage_run
    from glm2core.training.session import open_run

    with open_run(params, TOKENIZED) as (run, settled), stage_run("train", params) as tracked:
        tracked.settled(settled.values("model", "train"))
        tracked.dataset(TOKENIZED / "train.parquet", "training")
        tracked.dataset(TOKENIZED / "validation.parquet", "validation")
        outcome = run.train(tracked.report)
        run.write_model(TUNED, TOKENIZED / "tokenizer", settled)
        if not run.writes:
            return
        outcome.write_curves(REPORTS)
        write_json(METRICS, outcome.metrics | settled.metrics("model", "train"))
        run.finish()
        tracked.headline(outcome.metrics, headlines("train", outcome.metrics))
        tracked.artifact(REPORTS)
    closing_table(
        "train", dict(outcome.metrics), {"the tuned model": TUNED, "curves": "dvc plots show", "all runs": "make ui"}
    )


if __name__ == "__main__":
    if not is_launched():
        put_back("train", TUNED)
    # Under torchrun each process reports its own errors.
    number = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    sys.exit(run_stage("train", train, process=number))
