"""`python -m glm2core figures`: what the last run came to, before and after tuning."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from glm2core.console import print_table
from glm2core.errors import UserError

METRICS = (Path("metrics/train.json"), Path("metrics/evaluate.json"))
_BASE = "base_"
_RETRIEVAL = re.compile(r"retrieval_(.+)_(\d+)")  # of a task at a length
_SCORES = {"exact_match": "{:.0f}", "rouge_l": "{:.1f}", "bleu_4": "{:.1f}", "answers_loss": "{:.2f}"}
_UNKNOWN = "–"


def run(arguments: argparse.Namespace) -> None:
    """Print the headline figures of metrics/ and where to look next.

    Raises:
        UserError: no run has left figures.
    """
    missing = [str(file) for file in METRICS if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not there: no run has been evaluated here yet. Run: dvc repro")
    train, evaluate = (json.loads(file.read_text(encoding="utf-8")) for file in METRICS)
    print_table("found in a text of so many tokens, %", *retrieval_table(evaluate))
    print_table("answers to held-out rows, base -> tuned", *answers_table(evaluate))
    print(f"trained for {train['steps']:,} steps on {train['tokens']:,} tokens, {train['seconds'] / 60:.1f} min")
    print("pictures: reports/evaluate   rows and answers: reports/evaluate/predictions.jsonl   runs: mlflow ui")


def retrieval_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: two a task, the base's (where it was asked) and the tuned model's, with a column a length."""
    found = {key: match.groups() for key in metrics if (match := _RETRIEVAL.fullmatch(key))}
    lengths = sorted({int(length) for _, length in found.values()})
    tasks = list(dict.fromkeys(task for task, _ in found.values()))
    lines = []
    for task in tasks:
        for model, prefix in (("base", _BASE), ("tuned", "")):
            values = [metrics.get(f"{prefix}retrieval_{task}_{length}") for length in lengths]
            if any(value is not None for value in values):
                lines.append([f"{task}, {model}", *(_shown("{:.0f}", value and 100 * value) for value in values)])
    return ["", *(f"{length:,}" for length in lengths)], lines


def answers_table(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: one of all held-out rows, and one of each source that was generated."""
    generated = {name: of_it for name, of_it in metrics.get("by_source", {}).items() if not Path(name).suffix}
    groups = {"all": metrics, **generated} if any(name in metrics for name in _SCORES) else {}
    lines = [
        [name, *(_change(form, values.get(f"{_BASE}{key}"), values.get(key)) for key, form in _SCORES.items())]
        for name, values in groups.items()
    ]
    return ["", "exact match, %", "ROUGE-L", "BLEU-4", "loss"], lines


def _change(form: str, before: float | None, after: float | None) -> str:
    return _shown(form, after) if before is None else f"{_shown(form, before)} -> {_shown(form, after)}"


def _shown(form: str, value: float | None) -> str:
    return _UNKNOWN if value is None else form.format(value)
