"""`python -m glm2core figures`: prints the last run's results, before and after tuning."""

import argparse
import json
from pathlib import Path

from glm2core.console import print_table
from glm2core.errors import UserError
from glm2core.result_tables import ANSWERS, RETRIEVAL, answers_table, retrieval_table

METRICS = (Path("metrics/train.json"), Path("metrics/evaluate.json"))


def run(arguments: argparse.Namespace) -> None:
    """Print the headline figures in metrics/ and the places to look next.

    Raises:
        UserError: there are no figures yet.
    """
    missing = [str(file) for file in METRICS if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing, because no run has been evaluated here yet. Run: dvc repro")
    train, evaluate = (json.loads(file.read_text(encoding="utf-8")) for file in METRICS)
    print_table(RETRIEVAL, *retrieval_table(evaluate))
    print_table(ANSWERS, *answers_table(evaluate))
    print(f"trained for {train['steps']:,} steps on {train['tokens']:,} tokens, {train['seconds'] / 60:.1f} min")
    print("the report on one page: reports/evaluate/report.html")
    print("pictures: reports/evaluate   rows and answers: reports/evaluate/predictions.jsonl   runs: make ui")
