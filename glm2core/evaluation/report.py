"""The evaluate stage's files: tables and pictures into one folder, figures into flat metrics."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from glm2core.evaluation import plots
from glm2core.evaluation.answers import HeldOutAnswer
from glm2core.evaluation.loss import Bucket
from glm2core.evaluation.scores import (
    TUNED,
    Answer,
    by_length,
    effective_length,
    grid,
    score,
    short_context_change,
)
from glm2core.evaluation.text_metrics import text_metrics

PREDICTIONS = "predictions.jsonl"
RETRIEVAL_PREDICTIONS = "retrieval_predictions.jsonl"


def append_records(file: TextIO, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, at once, so that a long run can be watched and a killed one read."""
    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.flush()


def report_retrieval(
    answers: Sequence[Answer], base_answers: Sequence[Answer], depths: int, folder: Path
) -> dict[str, float]:
    """Write retrieval_by_length.csv, retrieval_grid.csv and their pictures, and accuracy_by_length.csv for `dvc plots`.

    Args:
        answers: of the tuned model.
        base_answers: of the untuned base to the same cases, at some of the lengths or none.

    Returns:
        `retrieval_<task>_<length>` and, over all generated cases, `retrieval_accuracy` and
        `effective_context_length`; `longeval_<file>` for each of LongEval's files; with a base, its
        figures as `base_...`, and `short_context_change`.
    """
    if not answers:
        return {}
    lengths = by_length([*answers, *base_answers])
    write_csv(folder / "retrieval_by_length.csv", lengths)
    plots.plot_accuracy_by_length(lengths, folder / "retrieval_by_length.png")
    generated = [answer for answer in answers if answer.length]
    metrics = {_metric_name(row): row["accuracy"] for row in lengths}
    if generated:
        cells = grid(generated, depths)
        write_csv(folder / "retrieval_grid.csv", cells)
        for task in dict.fromkeys(row["task"] for row in cells):
            plots.plot_grid([row for row in cells if row["task"] == task], folder / f"retrieval_grid_{task}.png")
        write_csv(folder / "accuracy_by_length.csv", _curve(generated))
        metrics["retrieval_accuracy"] = score(generated).accuracy
        metrics["effective_context_length"] = effective_length(generated)
    if (change := short_context_change(answers, base_answers)) is not None:
        metrics["short_context_change"] = change
    return metrics


def _curve(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Accuracy at each length over all tasks: one line, so that experiments compare in one plot."""
    lengths = sorted({answer.length for answer in answers})
    return [
        {"length": length, "accuracy": score(a for a in answers if a.length == length).accuracy} for length in lengths
    ]


def report_answers(answers: Sequence[HeldOutAnswer], sources: Mapping[str, str], folder: Path) -> dict[str, float]:
    """Write answers_by_source.csv: ROUGE and BLEU of all rows, and of each source's.

    Args:
        sources: row id -> where the row came from.

    Returns:
        rouge_1, rouge_2, rouge_l, bleu_4 over all answers.
    """
    groups: dict[str, list[HeldOutAnswer]] = {"all": list(answers)}
    for answer in answers:
        groups.setdefault(sources[answer.id], []).append(answer)
    rows = [{"source": name, "rows": len(group), **_text_metrics(group)} for name, group in groups.items() if group]
    write_csv(folder / "answers_by_source.csv", rows)
    return _text_metrics(answers)


def report_positions(buckets: Sequence[Bucket], folder: Path) -> None:
    """Write loss_by_position.csv and its picture."""
    rows = [
        {
            "start": bucket.start,
            "end": bucket.end,
            "tokens": bucket.there.tokens,
            "loss": bucket.there.mean,
            "perplexity": bucket.there.perplexity,
            "perplexity_alone": bucket.alone.perplexity,
        }
        for bucket in buckets
    ]
    write_csv(folder / "loss_by_position.csv", rows)
    if rows:
        plots.plot_loss_by_position(rows, folder / "loss_by_position.png")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys as CSV; floats with six digits, None as an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if rows:
            writer.writerow(rows[0])
        for row in rows:
            writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()])


def _metric_name(row: Mapping[str, Any]) -> str:
    task = row["task"]
    name = task if task.startswith("longeval_") else f"retrieval_{task}_{row['length']}"
    return name if row["model"] == TUNED else f"{row['model']}_{name}"


def _text_metrics(answers: Sequence[HeldOutAnswer]) -> dict[str, float]:
    return text_metrics([answer.answer for answer in answers], [answer.reference for answer in answers])
