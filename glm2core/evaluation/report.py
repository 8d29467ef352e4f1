"""The evaluate stage's files: tables and pictures into one folder, figures into flat metrics."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from glm2core.evaluation import plots
from glm2core.evaluation.answers import HeldOutAnswer
from glm2core.evaluation.loss import Bucket
from glm2core.evaluation.retrieval_tables import by_hop, by_length, curve, effective_lengths, grid, retrieval_rows
from glm2core.evaluation.scores import (
    TUNED,
    Answer,
    effective_length,
    ruler_effective_length,
    score,
    short_context_change,
)
from glm2core.evaluation.text_metrics import row_scores
from glm2core.evaluation.text_tables import scores_with_intervals, text_scores
from glm2core.report_tables import write_table

PREDICTIONS = "predictions.jsonl"
RETRIEVAL_PREDICTIONS = "retrieval_predictions.jsonl"
ANSWER_ROWS = "answers.parquet"
RETRIEVAL_ROWS = "retrieval.parquet"
_DIGITS = 6


def append_records(file: TextIO, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, at once, so that a long run can be watched and a killed one read."""
    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.flush()


def report_retrieval(
    answers: Sequence[Answer], base_answers: Sequence[Answer], depths: int, folder: Path
) -> dict[str, float]:
    """Write retrieval.parquet, a line for each question, and the tables and pictures that are queries over it.

    These are retrieval_by_length.csv, retrieval_grid.csv, retrieval_by_hop.csv (of vt), effective_length.csv, and
    accuracy_by_length.csv for `dvc plots`.

    Args:
        answers: of the tuned model.
        base_answers: of the untuned base to the same cases, at some of the lengths or none.

    Returns:
        `retrieval_<task>_<length>` and, over all generated cases, `retrieval_accuracy` and
        `effective_context_length` (of its own 85%) and `effective_context_length_ruler` (RULER's 85.6);
        `longeval_<file>` and `ruler_<file>` for each file; with a base, its figures as `base_...`, and
        `short_context_change`.
    """
    if not answers:
        return {}
    rows = _written(retrieval_rows([*answers, *base_answers]), folder / RETRIEVAL_ROWS)
    lengths = by_length(rows)
    write_table(lengths, folder / "retrieval_by_length.csv", _DIGITS)
    plots.plot_accuracy_by_length(lengths.to_dicts(), folder / "retrieval_by_length.png")
    generated = [answer for answer in answers if answer.length]
    metrics = {_metric_name(row): row["accuracy"] for row in lengths.to_dicts()}
    if generated:
        rows_generated = rows.filter(pl.col("length") > 0, model=TUNED)
        cells = grid(rows_generated, depths)
        write_table(cells, folder / "retrieval_grid.csv", _DIGITS)
        for (task,), table in cells.group_by("task", maintain_order=True):
            plots.plot_grid(table.to_dicts(), folder / f"retrieval_grid_{task}.png")
        write_table(curve(rows_generated), folder / "accuracy_by_length.csv", _DIGITS)
        metrics["retrieval_accuracy"] = score(generated).accuracy
        metrics["effective_context_length"] = effective_length(generated)
        metrics["effective_context_length_ruler"] = ruler_effective_length(generated)
        everything = [answer for answer in (*answers, *base_answers) if answer.length]
        write_table(effective_lengths(everything), folder / "effective_length.csv", _DIGITS)
        if len(hops := by_hop(everything)):
            write_table(hops, folder / "retrieval_by_hop.csv", _DIGITS)
    if (change := short_context_change(answers, base_answers)) is not None:
        metrics["short_context_change"] = change
    return metrics


def report_answers(answers: Sequence[HeldOutAnswer], rows: pl.DataFrame, folder: Path) -> dict[str, float]:
    """Write each answer's scores, and from them the tables of all rows and of each group.

    answers.parquet has a line for each answer: id, source, kind, language, ROUGE and BLEU's counts.
    answers_by_source.csv: ROUGE and BLEU of all rows, and of each source's. scores_by_source.csv: the same
    by source, kind and language, with intervals.

    Args:
        rows: of `read_rows`.

    Returns:
        rouge_1, rouge_2, rouge_l, bleu_4 over all answers.
    """
    scored = pl.DataFrame([{"id": a.id, **row_scores(a.answer, a.reference)} for a in answers])
    answered = _written(
        scored.join(rows, on="id", maintain_order="left").select(*rows.columns, pl.exclude(rows.columns)),
        folder / ANSWER_ROWS,
    )
    total = text_scores(answered)
    by_source = pl.concat([total.select(pl.lit("all").alias("source"), pl.all()), text_scores(answered, "source")])
    write_table(by_source, folder / "answers_by_source.csv", _DIGITS)
    write_table(scores_with_intervals(answered), folder / "scores_by_source.csv", _DIGITS)
    return total.drop("rows").row(0, named=True)


def _written(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The rows as they are read from the file that they are written to."""
    rows.write_parquet(path)
    return pl.read_parquet(path, glob=False)


def report_positions(buckets: Sequence[Bucket], folder: Path) -> None:
    """Write loss_by_position.csv and its picture."""
    losses = [(b.start, b.end, b.there.tokens, b.there.mean, b.there.perplexity, b.alone.perplexity) for b in buckets]
    columns = ["start", "end", "tokens", "loss", "perplexity", "perplexity_alone"]
    table = pl.DataFrame(losses, columns, orient="row")
    write_table(table, folder / "loss_by_position.csv", _DIGITS)
    if losses:
        plots.plot_loss_by_position(table.to_dicts(), folder / "loss_by_position.png")


def _metric_name(row: Mapping[str, Any]) -> str:
    task = row["task"]
    name = task if task.startswith(("longeval_", "ruler_")) else f"retrieval_{task}_{row['length']}"
    return name if row["model"] == TUNED else f"{row['model']}_{name}"
