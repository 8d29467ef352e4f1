"""Writes the reports' tables as CSV with polars, and formats numbers in the same way in all tables."""

from pathlib import Path

import polars as pl


def write_table(table: pl.DataFrame, path: Path, digits: int | None = None) -> None:
    """Write a table with its header; null is written as an empty field.

    Args:
        digits: number of significant digits of a float; None = as many digits as reproduce the float exactly.
    """
    # polars writes 1e-05 as 0.00001, and an empty text as "" to tell it from null
    text = repr if digits is None else f"{{:.{digits}g}}".format
    floats = pl.selectors.float().map_elements(text, return_dtype=pl.String)
    table.with_columns(floats, pl.selectors.string().replace("", None)).write_csv(path)
