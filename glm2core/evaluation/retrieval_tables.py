"""Scores of retrieval answers by length and depth: queries over retrieval.parquet."""

from collections.abc import Sequence

import polars as pl

from glm2core.evaluation.scores import Answer, wilson_interval


def retrieval_rows(answers: Sequence[Answer]) -> pl.DataFrame:
    """A line for each question as it was asked and answered; the answer's text stays in retrieval_predictions.jsonl."""
    return pl.DataFrame([answer.record() for answer in answers], infer_schema_length=None).drop("output")


def by_length(rows: pl.DataFrame) -> pl.DataFrame:
    """A line for each model, task and length: accuracy, interval, chance, and distinct and colliding keys apart.

    Cases from a file have their mean length. An accuracy over no cases is null.
    """
    correct, colliding = pl.col("correct"), pl.col("colliding")
    by_keys = {
        "distinct_cases": (~colliding).sum(),
        "distinct_accuracy": correct.filter(~colliding).mean(),
        "colliding_cases": colliding.sum(),
        "colliding_accuracy": correct.filter(colliding).mean(),
    }
    table = rows.group_by("model", "task", "length").agg(*_figures(), **by_keys).sort("model", "task", "length")
    mean_length = pl.col("prompt_tokens").round(mode="half_to_even").cast(pl.Int64)
    return _with_intervals(table).with_columns(pl.when(length=0).then(mean_length).otherwise("length").alias("length"))


def grid(rows: pl.DataFrame, depths: int) -> pl.DataFrame:
    """A line for each task, length and depth; `depths` rows of equal height, the first at the context's start."""
    row = (pl.col("depth") * depths).cast(pl.Int64).clip(upper_bound=depths - 1)
    table = rows.group_by("task", "length", row.alias("depth")).agg(*_figures()).sort("task", "length", "depth")
    return _with_intervals(table).with_columns(depth=((pl.col("depth") + 0.5) / depths).round(4))


def curve(rows: pl.DataFrame) -> pl.DataFrame:
    """Accuracy at each length over all tasks: one line, so that experiments compare in one plot."""
    return rows.group_by("length").agg(accuracy=pl.mean("correct")).sort("length")


def _figures() -> tuple[pl.Expr, ...]:
    return (
        pl.len().alias("cases"),
        pl.sum("correct").alias("right"),
        pl.mean("correct").alias("accuracy"),
        pl.lit(0.0).alias("low"),
        pl.lit(0.0).alias("high"),
        pl.mean("chance"),
        pl.mean("prompt_tokens"),
    )


def _with_intervals(table: pl.DataFrame) -> pl.DataFrame:
    """`low` and `high`: the 95% Wilson interval of the accuracy."""
    intervals = [wilson_interval(right, cases) for right, cases in table.select("right", "cases").iter_rows()]
    low, high = zip(*intervals, strict=True) if intervals else ((), ())
    return table.with_columns(low=pl.Series(low, dtype=pl.Float64), high=pl.Series(high, dtype=pl.Float64))
