"""Writes the evaluate stage's tables and plots into one folder, and returns the main figures as flat metrics."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from glm2core.evaluation import plots
from glm2core.evaluation.loss import Bucket
from glm2core.evaluation.retrieval_tables import by_hop, by_length, curve, effective_lengths, grid, retrieval_rows
from glm2core.evaluation.scores import (
    BASE,
    TUNED,
    Answer,
    effective_length,
    ruler_effective_length,
    score,
    short_context_change,
)
from glm2core.evaluation.text_tables import FIGURES, by_source, scores_with_intervals
from glm2core.report_tables import write_table

PICTURES = ("retrieval_by_length.png", "before_after.png")  # the plots that show the result
PREDICTIONS = "predictions.jsonl"
RETRIEVAL_PREDICTIONS = "retrieval_predictions.jsonl"
ANSWER_ROWS = "answers.parquet"
BEFORE_AFTER = "before_after.csv"
RETRIEVAL_ROWS = "retrieval.parquet"
_DIGITS = 6
_FIGURE_NAMES = {"loss": "answers_loss"}  # over the answered rows; test_loss is over all held-out rows
_SHOWN = ("exact_match", "rouge_l", "bleu_4", "loss")


def append_records(file: TextIO, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines and flush them, so that they can be read during a run and after it was killed."""
    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.flush()


def report_retrieval(
    answers: Sequence[Answer], base_answers: Sequence[Answer], depths: int, folder: Path
) -> dict[str, float]:
    """Write retrieval.parquet, with one row per question, and the tables and plots that are computed from it.

    The tables are retrieval_by_length.csv, retrieval_grid.csv, retrieval_by_hop.csv (for vt), effective_length.csv, and
    accuracy_by_length.csv for `dvc plots`.

    Args:
        answers: the tuned model's answers.
        base_answers: the untuned base's answers to the same cases; some or all of the lengths may be missing.

    Returns:
        `retrieval_<task>_<length>` for each task and length, and `longeval_<file>` or `ruler_<file>` for each file.
        `retrieval_accuracy` is the accuracy over all generated cases. `effective_context_length` is the length up to
        which accuracy is at least 85% of the accuracy at the shortest length. `effective_context_length_ruler` is the
        length up to which accuracy is at least RULER's 85.6. If the base was asked, the base's figures are returned as
        `base_...`, together with `short_context_change`.
    """
    if not answers:
        return {}
    rows = _written(retrieval_rows([*answers, *base_answers]), folder / RETRIEVAL_ROWS)
    lengths = by_length(rows)
    write_table(lengths, folder / "retrieval_by_length.csv", _DIGITS)
    plots.plot_accuracy_by_length(lengths.to_dicts(), folder / PICTURES[0])
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


def report_answers(rows: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """Write the scores of each answer, and tables of scores over all rows and over each group.

    answers.parquet contains one row per answer: model, id, source, kind, language, general, scores, BLEU's counts,
    loss and tokens. scores_by_source.csv contains all figures by model, source, kind and language, with intervals.
    before_after.csv and before_after.png compare the base with the tuned model, over all rows and for each source.

    Args:
        rows: the rows of answers.parquet.

    Returns:
        The tuned model's figures over all held-out rows (`exact_match`, `rouge_1`, ..., `answers_loss`), and the base's
        figures as `base_...`. `general_loss` is the loss on the rows of `evaluate.general`; if the base was asked,
        `general_loss_change` is the amount by which tuning raised this loss. `by_source` contains the figures of each
        source.
    """
    scores = scores_with_intervals(_written(rows, folder / ANSWER_ROWS))
    write_table(scores, folder / "scores_by_source.csv", _DIGITS)
    compared = by_source(scores)
    write_table(compared, folder / BEFORE_AFTER, _DIGITS)
    plots.plot_before_after(compared.to_dicts(), folder / PICTURES[1])
    figures: dict[str, dict[str, float]] = {}
    for row in compared.to_dicts():
        before = "" if row["model"] == TUNED else f"{row['model']}_"
        named = {f"{before}{_FIGURE_NAMES.get(name, name)}": row[name] for name in FIGURES}
        figures[row["source"]] = figures.get(row["source"], {}) | named
    return figures.pop("all", {}) | _forgetting(rows) | {"by_source": figures}


def _forgetting(rows: pl.DataFrame) -> dict[str, float]:
    """How tuning changed the loss on the rows of `evaluate.general`."""
    losses = {
        str(model): float(group["loss"].sum()) / float(group["tokens"].sum())
        for (model,), group in rows.filter("general").group_by("model")
    }
    if not losses:
        return {}
    found = {"general_loss": losses[TUNED]}
    if BASE in losses:
        found |= {"base_general_loss": losses[BASE], "general_loss_change": losses[TUNED] - losses[BASE]}
    return found


def answers_table(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Format before_after.csv for display, with one line per source.

    Each figure is shown as `base -> tuned`, with 95% intervals.

    Returns:
        The header and the lines, which are both empty if no row was answered.
    """
    file = folder / BEFORE_AFTER
    if not file.is_file():
        return [], []
    table = pl.read_csv(file)
    lines = []
    for (source,), group in table.group_by("source", maintain_order=True):
        by_model = {row["model"]: row for row in group.to_dicts()}
        models = [model for model in (BASE, TUNED) if model in by_model]
        cells = [" -> ".join(_figure(by_model[model], name) for model in models) for name in _SHOWN]
        lines.append([str(source), f"{by_model[TUNED]['rows']:,}", *cells])
    return ["source", "rows", *(name.replace("_", " ") for name in _SHOWN)], lines


def _figure(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    digits = 2 if name == "loss" else 0 if name == "exact_match" else 1
    interval = "" if low is None else f" ({low:.{digits}f}-{high:.{digits}f})"
    return f"{row[name]:.{digits}f}{interval}"


def _written(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Write the rows to a file, and read them back from it."""
    rows.write_parquet(path)
    return pl.read_parquet(path, glob=False)


def report_positions(buckets: Sequence[Bucket], folder: Path) -> None:
    """Write loss_by_position.csv and its plot."""
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
