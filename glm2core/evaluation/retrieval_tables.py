"""Scores of retrieval answers by length and depth, computed from the rows of retrieval.parquet."""

from collections.abc import Sequence

import polars as pl

from glm2core.evaluation.scores import Answer, effective_length, ruler_effective_length, wilson_interval


def retrieval_rows(answers: Sequence[Answer]) -> pl.DataFrame:
    """One row per question, with all fields of its answer except the text, which is in retrieval_predictions.jsonl."""
    records = [answer.record() | {"points": answer.points} for answer in answers]
    return pl.DataFrame(records, infer_schema_length=None).drop("output")


def by_length(rows: pl.DataFrame) -> pl.DataFrame:
    """One line per model, task and length, with accuracy over all keys, over distinct keys, and over colliding keys.

    For cases from a file, the length is their mean length. Accuracy is the mean of the points, or null if there are no
    cases; `right` counts the answers that are fully right. Each line also shows the chance level and an interval.
    """
    correct, colliding = pl.col("points"), pl.col("colliding")
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
    """One line per task, length and depth, where a depth is one of `depths` equal parts of the context.

    Questions whose answer is in several places have no depth and are left out.
    """
    rows = rows.filter(pl.col("depth").is_not_null())
    row = (pl.col("depth") * depths).cast(pl.Int64).clip(upper_bound=depths - 1)
    table = rows.group_by("task", "length", row.alias("depth")).agg(*_figures()).sort("task", "length", "depth")
    return _with_intervals(table).with_columns(depth=((pl.col("depth") + 0.5) / depths).round(4))


def curve(rows: pl.DataFrame) -> pl.DataFrame:
    """Accuracy over all tasks at each length, as one curve, so that a plot can compare several experiments."""
    return rows.group_by("length").agg(accuracy=pl.mean("points")).sort("length")


def by_hop(answers: Sequence[Answer]) -> pl.DataFrame:
    """One line per model, task, length and hop, with the share of answers that name the variable at this hop.

    Only the answers to vt tasks count; these tasks ask for a chain of variables. Hop 0 is the variable to which the
    value is assigned directly.
    """
    named = [
        {"model": a.model, "task": a.task, "length": a.length, "hop": hop, "named": named}
        for a in answers
        if a.task.startswith("vt")
        for hop, named in enumerate(a.found)
    ]
    schema = {"model": pl.String, "task": pl.String, "length": pl.Int64, "hop": pl.Int64, "named": pl.Boolean}
    group = pl.DataFrame(named, schema).group_by("model", "task", "length", "hop")
    return group.agg(cases=pl.len(), share=pl.mean("named")).sort("model", "task", "length", "hop")


def effective_lengths(answers: Sequence[Answer]) -> pl.DataFrame:
    """Effective lengths, with one line per model and task, and one line per model for all tasks together.

    `own_85` is the length up to which the model keeps 85% of its accuracy at the shortest length. `ruler_85_6` is the
    length up to which the model scores at least 85.6.
    """
    lines = []
    for model in dict.fromkeys(answer.model for answer in answers):
        own = [answer for answer in answers if answer.model == model]
        groups = {task: [a for a in own if a.task == task] for task in sorted({answer.task for answer in own})}
        for task, group in {**groups, "all": own}.items():
            lines.append((model, task, effective_length(group), ruler_effective_length(group)))
    return pl.DataFrame(lines, ["model", "task", "own_85", "ruler_85_6"], orient="row")


def _figures() -> tuple[pl.Expr, ...]:
    return (
        pl.len().alias("cases"),
        pl.sum("correct").alias("right"),
        pl.mean("points").alias("accuracy"),
        pl.lit(0.0).alias("low"),
        pl.lit(0.0).alias("high"),
        pl.mean("chance"),
        pl.sum("points"),
        pl.mean("prompt_tokens"),
    )


def _with_intervals(table: pl.DataFrame) -> pl.DataFrame:
    """`low` and `high`: the 95% Wilson interval of the accuracy."""
    intervals = [wilson_interval(points, cases) for points, cases in table.select("points", "cases").iter_rows()]
    low, high = zip(*intervals, strict=True) if intervals else ((), ())
    return table.drop("points").with_columns(
        low=pl.Series(low, dtype=pl.Float64), high=pl.Series(high, dtype=pl.Float64)
    )
