"""Scores of the answered rows, by model and by group, computed from the rows of answers.parquet."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from glm2core.evaluation.scores import wilson_interval
from glm2core.evaluation.text_metrics import BLEU_COUNTS, METRICS, ROUGE, corpus_bleu

FIGURES = (*METRICS, "loss")
_KEYS = ("source", "kind", "language")
_GROUPINGS: tuple[tuple[str, ...], ...] = ((), ("source",), ("kind",), ("language",), _KEYS)
_RESAMPLES = 1000
_LEAST_ROWS = 5  # fewer rows are too few for an interval


def text_scores(rows: pl.DataFrame) -> dict[str, float]:
    """Compute exact match and mean ROUGE (in per cent), BLEU-4 over all rows together, and the loss per token.

    Args:
        rows: rows of answers.parquet.
    """
    sums = rows.select(pl.mean("exact_match", *ROUGE), pl.sum(*BLEU_COUNTS, "loss", "tokens")).row(0, named=True)
    bleu = corpus_bleu([sums[name] for name in BLEU_COUNTS])
    means = {name: float(sums[name]) for name in ("exact_match", *ROUGE)}
    return {**means, "bleu_4": bleu, "loss": sums["loss"] / max(sums["tokens"], 1)}


def scores_with_intervals(rows: pl.DataFrame) -> pl.DataFrame:
    """Scores of each model over all rows, by source, by kind, by language, and by all three at once.

    If rows are not split by a column, this column contains `all`. Rows of `evaluate.general` are not part of `all`;
    they are listed under their own source. All intervals are 95% intervals. Exact match has Wilson intervals; the
    intervals of the other scores are percentiles of 1,000 bootstrap samples of the group's rows, drawn with a fixed
    seed. A group of fewer than 5 rows has no intervals.
    """
    lines = []
    for (model,), of_model in rows.group_by("model", maintain_order=True):
        for keys in _GROUPINGS:
            counted = of_model if "source" in keys else of_model.filter(~pl.col("general"))
            for names, group in _groups(counted, keys):
                line: dict[str, Any] = {"model": model, **dict.fromkeys(_KEYS, "all"), **names, "rows": group.height}
                intervals = _intervals(group)
                for name, value in text_scores(group).items():
                    low, high = intervals[name]
                    line |= {name: value, f"{name}_low": low, f"{name}_high": high}
                lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def by_source(scores: pl.DataFrame) -> pl.DataFrame:
    """The lines for all rows and for each source; the models' lines for the same source are adjacent."""
    chosen = scores.filter(kind="all", language="all").drop("kind", "language")
    order = pl.col("source").replace_strict({s: n for n, s in enumerate(chosen["source"].unique(maintain_order=True))})
    return chosen.sort(order, "model").select("source", "model", pl.exclude("source", "model"))


def _groups(rows: pl.DataFrame, keys: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    if not keys:
        if rows.height:
            yield {}, rows
        return
    for values, group in rows.sort(keys, maintain_order=True).group_by(keys, maintain_order=True):
        yield dict(zip(keys, values, strict=True)), group


def _intervals(group: pl.DataFrame) -> dict[str, tuple[float | None, float | None]]:
    count = group.height
    if count < _LEAST_ROWS:
        return dict.fromkeys(FIGURES, (None, None))
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _RESAMPLES)  # [samples, rows]
    sampled = {name: drawn @ group[name].to_numpy() / count for name in ROUGE}
    counts = drawn @ group.select(BLEU_COUNTS).to_numpy()
    sampled["bleu_4"] = np.array([corpus_bleu(sample) for sample in counts.tolist()])
    losses, tokens = (drawn @ group[name].to_numpy() for name in ("loss", "tokens"))
    sampled["loss"] = losses / np.maximum(tokens, 1)
    bounds = {name: np.percentile(values, (2.5, 97.5)).tolist() for name, values in sampled.items()}
    right = round(float(group["exact_match"].sum()) / 100)
    bounds["exact_match"] = [100 * bound for bound in wilson_interval(right, count)]
    return {name: (low, high) for name, (low, high) in bounds.items()}
