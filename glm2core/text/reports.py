"""Makes the reports of the tokenize stage: flat metrics, and tables computed from the stage's output."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from glm2core.conversation import SPLITS
from glm2core.files import atomic_path
from glm2core.report_tables import write_table
from glm2core.text.encode import EncodeReport
from glm2core.text.rows_page import ROWS_PAGE, write_rows_page
from glm2core.text.shown_rows import ShownRow
from glm2core.text.tokenizer import SpTokenizer

CUTS = (
    "responses_cut",
    "prompts_without_oldest_rounds",
    "rounds_dropped",
    "texts_cut_in_the_middle",
    "prompts_cut_left",
    "prompts_cut_right",
)
_BINS = 50


def tokenize_metrics(report: EncodeReport, tokenized: Path, tokenizer: SpTokenizer) -> dict[str, int | float]:
    """The metrics of the tokenize stage. Truncations are counted in rows, rounds or responses, as their names say."""
    tokens = pl.col("prompt_tokens") + pl.col("response_tokens")
    figures = _tokenized(tokenized).select(
        tokens=tokens.sum(),
        tokens_supervised=pl.col("supervised_tokens").sum(),
        tokens_mean=tokens.mean(),
        tokens_longest=tokens.max(),
    )
    return {
        **{f"rows_{split}": count for split, count in report.rows.items()},
        "rows_dropped": len(report.dropped),
        **figures.collect().row(0, named=True),
        "vocabulary_size": len(tokenizer),
        **dict(_cuts(tokenized).iter_rows()),
    }


def write_tokenize_tables(
    report: EncodeReport, tokenized: Path, examples: str, folder: Path, rows: Iterable[ShownRow] = ()
) -> None:
    """Write the report's files into `folder`.

    lengths.csv counts rows by their number of tokens. cuts.csv counts truncations by kind. by_source.csv counts rows
    and tokens by source. dropped.csv lists the rows that gave no pair. examples.md and rows.html show rows.

    Args:
        examples: the content of examples.md.
        rows: the rows to show in rows.html.
    """
    dropped = pl.DataFrame(report.dropped, ["split", "source", "id", "reason"], orient="row")
    dropped = dropped.cast(pl.String)
    with atomic_path(folder) as partial:
        partial.mkdir()
        write_table(_lengths(tokenized), partial / "lengths.csv")
        write_table(_by_source(tokenized, dropped), partial / "by_source.csv")
        cuts = _cuts(tokenized).with_columns(pl.col("cut").str.replace_all("_", " "))
        dropped_rows = pl.DataFrame({"cut": "rows dropped", "count": dropped.height}, cuts.schema)
        write_table(pl.concat([cuts, dropped_rows]), partial / "cuts.csv")
        write_table(dropped.select("split", "id", "reason"), partial / "dropped.csv")
        (partial / "examples.md").write_text(examples, encoding="utf-8")
        write_rows_page(rows, partial / ROWS_PAGE)


def _tokenized(tokenized: Path) -> pl.LazyFrame:
    """The rows of all splits, without their ids and labels."""
    facts = ("source", "prompt_tokens", "response_tokens", "supervised_tokens", "cuts")
    return pl.concat(
        pl.scan_parquet(tokenized / f"{split}.parquet", glob=False).select(pl.lit(split).alias("split"), *facts)
        for split in SPLITS
    ).cast({pl.Int32: pl.Int64})


def _lengths(tokenized: Path) -> pl.DataFrame:
    """A table with one line per bin of lengths in tokens.

    A line contains the bin's smallest length, then how many prompts, responses and whole rows fall into the bin.
    """
    rows = _tokenized(tokenized).select(
        prompts="prompt_tokens", responses="response_tokens", rows=pl.col("prompt_tokens") + pl.col("response_tokens")
    )
    longest = rows.select(pl.max("rows")).collect().item()
    width = max(longest // _BINS, 1)
    table = pl.LazyFrame({"tokens": pl.int_range(0, longest + 1, width, eager=True)})
    for name in ("prompts", "responses", "rows"):
        counted = rows.group_by(tokens=pl.col(name) // width * width).agg(pl.len().alias(name))
        table = table.join(counted, on="tokens", how="left", maintain_order="left")
    return table.fill_null(0).collect()


def _cuts(tokenized: Path) -> pl.DataFrame:
    """A table with the columns cut and count: how often each kind of truncation happened."""
    counted = _tokenized(tokenized).select(cut=pl.col("cuts").explode()).group_by("cut").agg(count=pl.len())
    kinds = pl.LazyFrame({"cut": CUTS})
    return kinds.join(counted, on="cut", how="left", maintain_order="left").fill_null(0).collect()


def _by_source(tokenized: Path, dropped: pl.DataFrame) -> pl.DataFrame:
    """A table with one line per split and source, which counts rows, tokens, truncated rows and rows without a pair."""
    rows = pl.concat([_tokenized(tokenized), dropped.lazy()], how="diagonal")
    figures = rows.group_by("split", "source", maintain_order=True).agg(
        rows=pl.count("prompt_tokens"),
        tokens=pl.sum("prompt_tokens") + pl.sum("response_tokens"),
        supervised_tokens=pl.sum("supervised_tokens"),
        truncated_rows=(pl.col("cuts").list.len() > 0).sum(),
        dropped_rows=pl.count("reason"),
    )
    return figures.collect()
