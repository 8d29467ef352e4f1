"""Reads the source, kind and language of the held-out rows from the convert stage's files."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from glm2core.conversation import Conversation
from glm2core.errors import UserError
from glm2core.parquet import require_whole

_CHINESE_SHARE = 0.2  # of the letters: Chinese texts may contain much Latin, but Latin texts hardly any Chinese


def read_rows(converted: Path, ids: list[str]) -> pl.DataFrame:
    """One line with id, source, kind and language for each of `ids`, in the same order.

    If a generator set a row's kind, this kind is used. Otherwise the kind is `text` if the row contains a text and a
    question about it, `chat` if there are several rounds, and `question` in all other cases. The language depends only
    on the script: `zh` if at least 0.2 of the letters are Chinese characters, `latin` if most letters are Latin, and
    `other` in all other cases.

    Raises:
        UserError: the file is damaged, or it lacks a row.
    """
    wanted = pl.LazyFrame({"id": ids}, schema={"id": pl.String})
    found = pl.LazyFrame(schema={"id": pl.String})
    if converted.exists():
        require_whole(converted, "convert")
        found = pl.scan_parquet(converted, glob=False).select("id", "source", kind=_kind(), language=_language())
    if missing := wanted.join(found, on="id", how="anti").collect().height:
        raise UserError(
            f"{converted} lacks {missing:,} of the {len(ids):,} tokenized rows. "
            "Run the whole pipeline again: dvc repro."
        )
    return wanted.join(found, on="id", how="left", maintain_order="left").collect()


def described(conversations: Sequence[Conversation], ids: Sequence[str], source: str) -> pl.DataFrame:
    """The same columns as in `read_rows`, for conversations of one source that did not pass the convert stage."""
    rows = [
        {"id": row_id, "source": source, "messages": c.messages, "question_chars": c.question_chars, "kind": None}
        for row_id, c in zip(ids, conversations, strict=True)
    ]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "id": pl.String,
        "source": pl.String,
        "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
        "question_chars": pl.Int32,
        "kind": pl.String,
    }
    return pl.DataFrame(rows, schema).select("id", "source", kind=_kind(), language=_language())


def _kind() -> pl.Expr:
    questions = pl.col("messages").list.eval(pl.element().struct.field("role") == "user").list.sum()
    about_text = pl.col("question_chars").is_not_null()
    kind = pl.when(about_text).then(pl.lit("text")).when(questions > 1).then(pl.lit("chat"))
    return pl.coalesce("kind", kind.otherwise(pl.lit("question")))


def _language() -> pl.Expr:
    text = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n")
    letters, chinese, latin = (text.str.count_matches(rf"\p{{{name}}}") for name in ("L", "Han", "Latin"))
    written = letters > 0
    language = pl.when(written & (chinese >= _CHINESE_SHARE * letters)).then(pl.lit("zh"))
    return language.when(written & (2 * latin > letters)).then(pl.lit("latin")).otherwise(pl.lit("other"))
