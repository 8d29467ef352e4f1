"""`python -m glm2core show`: prints one tokenized row token by token, with marks for supervised and cut-off tokens."""

import argparse
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from glm2core.errors import UserError
from glm2core.parquet import rows_at
from glm2core.text.dataset import read_info
from glm2core.text.pairs import PairBuilder
from glm2core.text.prompt import PairFormat, TemplateName
from glm2core.text.shown_rows import STRETCHED, ShownLine, ShownRow, shown_row, whole_rows
from glm2core.text.tokenizer import SpTokenizer


def run(arguments: argparse.Namespace) -> None:
    """Print row `arguments.row` of a tokenized file.

    Raises:
        UserError: the file is not tokenized, contains no such row, or was made with a different tokenizer.
    """
    print(rendered(_read(arguments.file, arguments.row, arguments.tokenizer)))


def rendered(row: ShownRow) -> str:
    """A row as text, with each token as `piece:id`.

    Supervised tokens are in « », and tokens that were cut off are in [- -]. Each line starts with the position of its
    first token.
    """
    cuts = f"; cut: {', '.join(row.cuts)}" if row.cuts else ""
    head = [
        f"row {row.number:,} of {row.place}: {row.length:,} tokens, {row.supervised:,} supervised{cuts}",
        f"id {row.id}, source {row.source}",
        "tokens as piece:id; « » = supervised (=> if the label differs), [- -] = cut off; each line starts with the "
        f"position of its first token, then with that position if, as an example, the row is spread over {STRETCHED:,}",
        "",
    ]
    more = [f"{row.left_out:,} more tokens are left out"] if row.left_out else []
    return "\n".join([*head, *map(_line, row.lines), *more])


def _line(line: ShownLine) -> str:
    words = []
    for token in line.tokens:
        word = f"{token.text}:{token.id}"
        if token.cut:
            word = f"[-{word}-]"
        elif token.label:
            word = f"«{word}»" if token.label == "=" else f"«{word}=>{token.label}»"
        words.append(word)
    return f"{line.position:>6,} {line.stretched:>6,}  {' '.join(words)}"


def _read(file: Path, number: int, folder: Path | None) -> ShownRow:
    if not file.is_file():
        raise UserError(
            f"{file} is not a file. Name a parquet file in data/tokenized, which `dvc repro tokenize` writes."
        )
    try:
        with pq.ParquetFile(file) as opened:
            info, rows = read_info(opened, file), opened.metadata.num_rows
    except pa.ArrowException:
        raise UserError(f"{file} is not a parquet file, so it has no labels. Name a file in data/tokenized.") from None
    if not 0 <= number < rows:
        raise UserError(f"--row {number:,} is beyond the end of {file}, which has {rows:,} rows, counted from 0.")
    tokenizer = SpTokenizer.load(folder or file.parent / "tokenizer")
    if tokenizer.sha256 != info.tokenizer_sha256:
        raise UserError(
            f"{file} was made with a different tokenizer from the one in {folder or file.parent / 'tokenizer'}, so its "
            "ids would stand for different words. Name the folder of the file's tokenizer with --tokenizer."
        )
    builder = PairBuilder(tokenizer, cast(TemplateName, info.template), cast(PairFormat, info.pair_format))
    row = rows_at(file, "tokenize", [number])[0]
    wholes = whole_rows(file.parent.parent / "converted" / file.name, [row], builder)
    return shown_row(str(file), number, row, tokenizer, wholes.get(row["id"]))
