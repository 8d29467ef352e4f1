"""Scores of the answered rows, by group: queries over answers.parquet."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from glm2core.evaluation.text_metrics import BLEU_COUNTS, METRICS, corpus_bleu

_KEYS = ("source", "kind", "language")
_GROUPINGS: tuple[tuple[str, ...], ...] = ((), ("source",), ("kind",), ("language",), _KEYS)
_RESAMPLES = 1000
_LEAST_ROWS = 5  # fewer say nothing about others like them


def text_scores(rows: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """A line for each group, in their order: its rows, the mean of ROUGE, and BLEU-4 of the whole group.

    Args:
        rows: of answers.parquet.
        keys: columns that make the groups; none = all rows are one.
    """
    figures = [pl.len().alias("rows"), pl.mean(*METRICS[:3]), pl.sum(*BLEU_COUNTS)]
    table = rows.group_by(*keys, maintain_order=True).agg(figures) if keys else rows.select(figures)
    bleu = [corpus_bleu(counts) for counts in table.select(BLEU_COUNTS).iter_rows()]
    return table.drop(BLEU_COUNTS).with_columns(bleu_4=pl.Series(bleu, dtype=pl.Float64))


def scores_with_intervals(rows: pl.DataFrame) -> pl.DataFrame:
    """Scores of all rows, by source, by kind, by language, and by all three; `all` = not parted by that column.

    Intervals hold 95%: percentiles of 1,000 bootstrap samples of the group's rows, with a fixed seed. A group of
    fewer than 5 rows has none.
    """
    lines = []
    for keys in _GROUPINGS:
        for names, group in _groups(rows, keys):
            line: dict[str, Any] = dict.fromkeys(_KEYS, "all") | names | {"rows": group.height}
            intervals = _intervals(group)
            for name, value in text_scores(group).drop("rows").row(0, named=True).items():
                low, high = intervals[name]
                line |= {name: value, f"{name}_low": low, f"{name}_high": high}
            lines.append(line)
    return pl.DataFrame(lines, infer_schema_length=None)


def _groups(rows: pl.DataFrame, keys: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    if not keys:
        yield {}, rows
        return
    for values, group in rows.sort(keys, maintain_order=True).group_by(keys, maintain_order=True):
        yield dict(zip(keys, values, strict=True)), group


def _intervals(group: pl.DataFrame) -> dict[str, tuple[float | None, float | None]]:
    count = group.height
    if count < _LEAST_ROWS:
        return dict.fromkeys(METRICS, (None, None))
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _RESAMPLES)  # [samples, rows]
    sampled = {name: drawn @ group[name].to_numpy() / count for name in METRICS[:3]}
    counts = drawn @ group.select(BLEU_COUNTS).to_numpy()
    sampled["bleu_4"] = np.array([corpus_bleu(sample) for sample in counts.tolist()])
    bounds = {name: np.percentile(values, (2.5, 97.5)).tolist() for name, values in sampled.items()}
    return {name: (low, high) for name, (low, high) in bounds.items()}
