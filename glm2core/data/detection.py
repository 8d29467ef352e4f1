"""Detects the format of a file's rows from the first readable row, or explains why the format can't be detected."""

from collections.abc import Collection, Mapping
from typing import Any

from glm2core.data.columns import file_names, nearest
from glm2core.data.formats import ANSWER, COLUMNS, QUESTION, detect, kind_of
from glm2core.data.json_rows import Record
from glm2core.data.shapes import likely_shape
from glm2core.data.sources import RowFile
from glm2core.errors import UserError, shown_names

_ROWS_TO_DETECT = 1000


def first_row(rows: RowFile) -> dict[str, Any]:
    """The first row that is an object, among the first thousand rows of the file.

    Raises:
        UserError: no such row was found. The error message gives the first row's place and problem, and says what the
            row looks like.
    """
    first: Record | None = None
    for count, record in enumerate(rows):
        if record.problem is None and isinstance(record.value, dict):
            return (
                dict.fromkeys(rows.column_names()) | record.value
            )  # a parquet file's other columns appear only with their names, without values
        first = first or record
        if count == _ROWS_TO_DETECT:
            break
    if first is None:
        raise UserError(f"{rows.path} has no rows ({rows.description}). Add rows to it, or remove it.")
    reason = first.problem or f"the row is {kind_of(first.value)}, not an object"
    likely = likely_shape(first.value) if isinstance(first.value, str) else ""
    raise UserError(
        f"{rows.path} has no readable row ({rows.description}). "
        f"The first row, {rows.unit} {first.number}: {reason}.{likely}"
    )


def format_of(
    rows: RowFile, row: dict[str, Any], wanted: str, columns: Mapping[str, str], mapping: str, *, answer_needed: bool
) -> str:
    """The format of a file's rows, which is the requested format, or the detected format if auto was requested.

    Args:
        row: the file's first row.
        wanted: the requested row format, or auto.
        columns: maps standard column names to the names in the file.
        mapping: a template that shows the user how to map the standard column `{name}` to the file's column `{theirs}`.
        answer_needed: whether the rows must contain answers.

    Raises:
        UserError: the rows are not in a known format, are not in the requested format, or `columns` maps a column that
            the format does not contain.
    """
    detected = detect(row, columns)
    row_format = detected if wanted == "auto" else wanted
    if row_format is None:
        raise UserError(
            f"can't detect the format of {rows.path} from its columns ({shown_names(row)}). The file needs the columns "
            "instruction and output (alpaca), prompt and response (chatglm), messages, or conversations (sharegpt)."
            f"{_mapping_hint(['instruction', 'output'], row, mapping)}"
        )
    if unknown := [name for name in columns if name not in COLUMNS[row_format]]:
        raise UserError(
            f"{shown_names(unknown)} is not a column of {row_format}, whose columns are "
            f"{', '.join(COLUMNS[row_format])}. "
            f"To map a column, write {mapping.format(name=COLUMNS[row_format][0], theirs='theirs')}."
        )
    standard = [QUESTION[row_format], ANSWER.get(row_format) if answer_needed else None]
    needed = file_names([name for name in standard if name is not None], columns)
    missing = [name for name in needed if name not in row]
    if missing and (detected != row_format or rows.kind in ("CSV", "parquet")):
        hint = f" It looks like {detected}." if detected and detected != row_format else ""
        raise UserError(missing_sentence(rows, row_format, missing, row, mapping) + hint)
    return row_format


def missing_sentence(rows: RowFile, row_format: str, missing: list[str], names: Collection[str], mapping: str) -> str:
    """The error message for a file in which required columns occur in no row."""
    return (
        f"{rows.path} in {row_format} format needs {' and '.join(missing)}, but its columns are {shown_names(names)}."
        f"{_mapping_hint(missing, names, mapping)}"
    )


def _mapping_hint(missing: list[str], names: Collection[str], mapping: str) -> str:
    near = nearest(missing, names)
    if not near:
        return f" Fix the format, or map the column names as in {mapping.format(name=missing[0], theirs='theirs')}."
    return (
        " Did you mean " + " and ".join(mapping.format(name=n, theirs=shown_names([t])) for n, t in near.items()) + "?"
    )
