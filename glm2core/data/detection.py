"""Detects the format of a file's rows from the first readable row, or says why it can't."""

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
        UserError: there is none; the error has the place and problem of the first row, and what the file looks like.
    """
    first: Record | None = None
    for count, record in enumerate(rows):
        if record.problem is None and isinstance(record.value, dict):
            return (
                dict.fromkeys(rows.column_names()) | record.value
            )  # other columns of a parquet file: only their names
        first = first or record
        if count == _ROWS_TO_DETECT:
            break
    if first is None:
        raise UserError(f"{rows.path} has no rows ({rows.description}). Fix or remove it.")
    reason = first.problem or f"the row is {kind_of(first.value)}, not an object"
    likely = likely_shape(first.value) if isinstance(first.value, str) else ""
    raise UserError(
        f"{rows.path} has no readable row ({rows.description}). "
        f"The first one, {rows.unit} {first.number}: {reason}.{likely}"
    )


def format_of(
    rows: RowFile, row: dict[str, Any], wanted: str, columns: Mapping[str, str], mapping: str, *, answer_needed: bool
) -> str:
    """The format of a file's rows: the requested one, or, for auto, the detected one.

    Args:
        row: the file's first row.
        wanted: a row format, or auto.
        columns: standard column name -> its name in the file.
        mapping: how the user writes that a column `{name}` is called `{theirs}`.
        answer_needed: whether the rows must have answers.

    Raises:
        UserError: the rows have no known format or not the requested one, or `columns` names columns it lacks.
    """
    detected = detect(row, columns)
    row_format = detected if wanted == "auto" else wanted
    if row_format is None:
        raise UserError(
            f"can't detect the format of {rows.path} from its columns ({shown_names(row)}). It needs instruction and "
            "output (alpaca), prompt and response (chatglm), messages, or conversations (sharegpt)."
            f"{_mapping_hint(['instruction', 'output'], row, mapping)}"
        )
    if unknown := [name for name in columns if name not in COLUMNS[row_format]]:
        raise UserError(
            f"{shown_names(unknown)} is not a column of {row_format}; it has {', '.join(COLUMNS[row_format])}. "
            f"Map a name as in {mapping.format(name=COLUMNS[row_format][0], theirs='theirs')}."
        )
    standard = [QUESTION[row_format], ANSWER.get(row_format) if answer_needed else None]
    needed = file_names([name for name in standard if name is not None], columns)
    missing = [name for name in needed if name not in row]
    if missing and (detected != row_format or rows.kind in ("CSV", "parquet")):
        hint = f" It looks like {detected}." if detected and detected != row_format else ""
        raise UserError(missing_sentence(rows, row_format, missing, row, mapping) + hint)
    return row_format


def missing_sentence(rows: RowFile, row_format: str, missing: list[str], names: Collection[str], mapping: str) -> str:
    """The error text for a file whose rows all lack needed columns."""
    return (
        f"{rows.path} as {row_format} needs {' and '.join(missing)}; its columns are: {shown_names(names)}."
        f"{_mapping_hint(missing, names, mapping)}"
    )


def _mapping_hint(missing: list[str], names: Collection[str], mapping: str) -> str:
    near = nearest(missing, names)
    if not near:
        return f" Fix the format, or map the names, as in {mapping.format(name=missing[0], theirs='theirs')}."
    return (
        " Did you mean " + " and ".join(mapping.format(name=n, theirs=shown_names([t])) for n, t in near.items()) + "?"
    )
