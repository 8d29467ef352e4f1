"""Encodes the rows of any file as the stages convert and tokenize would, so that a model can be evaluated on it."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from glm2core.conversation import Conversation, RejectionError, identify
from glm2core.data.detection import first_row, format_of
from glm2core.data.formats import to_conversation
from glm2core.data.sources import open_rows
from glm2core.errors import UserError
from glm2core.params import TokenizeParams
from glm2core.text.chat_format import ChatFormat
from glm2core.text.dataset import TokenizedDataset, TokenizedInfo
from glm2core.text.encode import template_hash
from glm2core.text.pairs import Limits, PairBuilder

_MAPPING = "names of the format: {name} for {theirs}"


@dataclass(frozen=True)
class FileRows:
    """The usable rows of a file, as tokens and as conversations, in the same order."""

    dataset: TokenizedDataset
    conversations: list[Conversation]


def encode_file(path: Path, most: int, chat_format: ChatFormat, params: TokenizeParams, place: str) -> FileRows:
    """Encode the first `most` usable rows of a file. The id of each row is a hash of the row's content.

    Args:
        params: the tokenize settings, which decide what is supervised and how long a row may be.
        place: the key in the params that names the file, for error messages.

    Raises:
        UserError: the file can't be read, or contains no usable row.
    """
    if not path.is_file():
        raise UserError(f"{place}: {path} is not a file. Fix the path, or set it to null.")
    rows = open_rows(path)
    try:
        row_format = format_of(rows, first_row(rows), "auto", {}, _MAPPING, answer_needed=True)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    found: dict[str, Conversation] = {}
    rejected: list[str] = []
    for record in itertools.islice(rows, 10 * most):
        try:
            if record.problem is not None:
                raise RejectionError(record.problem)
            conversation = to_conversation(record.value, row_format)
            found.setdefault(identify(conversation.messages, 0).id, conversation)
        except RejectionError as error:
            rejected.append(f"{rows.unit} {record.number}: {error}")
        if len(found) == most:
            break
    template, pair_format = chat_format.template, chat_format.pair_format
    builder = PairBuilder(chat_format.tokenizer, template, pair_format, params.truncation, params.threads)
    limits = Limits(params.max_source_length, params.max_target_length, params.loss_on)
    conversations = list(found.values())
    pairs = builder.build(conversations, [limits] * len(found)) if found else None
    if pairs is None or not len(pairs.rows):
        reasons = "; ".join([*rejected, *(reason for _, reason in (pairs.dropped if pairs else []))][:3])
        raise UserError(f"{place}: no row of {path} can be used ({reasons}). Fix the rows, or name a different file.")
    info = TokenizedInfo(chat_format.tokenizer.sha256, template, template_hash(template), pair_format)
    ids = list(found)
    dataset = TokenizedDataset.of_pairs([ids[row] for row in pairs.rows], str(path), pairs, info, chat_format.newline)
    return FileRows(dataset, [conversations[row] for row in pairs.rows])
