"""Conversations: every raw row becomes one, and every later step reads them."""

import hashlib
from dataclasses import dataclass

Message = dict[str, str]

SPLITS = ("train", "validation", "test")
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

_SEPARATOR = "\0"  # in no text: formats.py rejects it
_HASH_BITS = 64


class RejectionError(ValueError):
    """Why a row can't be used; short and without the row's own text, so that equal reasons can be counted."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """At most one system message, then user and assistant in turn.

    messages: `{"role", "content"}` each, the ecosystem's standard shape.
    question_chars: how many characters at the start of the last user message are the question;
        the rest is the text it is about, which may be cut. None = all of it is the question.
    """

    messages: list[Message]
    question_chars: int | None = None

    @property
    def answered(self) -> bool:
        return self.messages[-1]["role"] == ASSISTANT


@dataclass(frozen=True, slots=True)
class Identity:
    """`id`: hash of the whole content. `split_point`: place of its prompt in [0, 1)."""

    id: str
    split_point: float


def identify(messages: list[Message], seed: int) -> Identity:
    """Hash the content for finding duplicates, and the prompt (all but the answer) for splitting.

    The split depends only on the prompt and `seed`: a row keeps its split when other rows are added
    or removed, and rows with the same prompt are always in the same split.

    Raises:
        RejectionError: a text holds a lone surrogate, which no UTF-8 file can hold.
    """
    try:
        prompt = _SEPARATOR.join(m["role"] + _SEPARATOR + m["content"] for m in messages[:-1]).encode()
        answer = messages[-1]["content"].encode()
    except UnicodeEncodeError:
        wrong = next(filter(None, (undecodable(message["content"]) for message in messages)))
        raise RejectionError(wrong) from None
    digest = hashlib.blake2b(prompt, digest_size=16)
    salted = hashlib.blake2b(digest.digest(), digest_size=_HASH_BITS // 8, salt=str(seed).encode()[:16])
    split_point = int.from_bytes(salted.digest(), "big") / 2**_HASH_BITS
    digest.update(_SEPARATOR.encode())
    digest.update(answer)
    return Identity(digest.hexdigest(), split_point)


def split_of(split_point: float, validation_fraction: float, test_fraction: float) -> str:
    """Which split a point in [0, 1) falls into."""
    if split_point < test_fraction:
        return "test"
    if split_point < test_fraction + validation_fraction:
        return "validation"
    return "train"


def undecodable(text: str) -> str | None:
    """What is wrong with a text that no UTF-8 file can hold, and the likely fix; None for others."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
    else:
        return None
    if not 0xDC80 <= code <= 0xDCFF:  # not how sources.py marks an undecodable byte
        return "a lone surrogate (half of a character)"
    try:
        text.encode("utf-8", "surrogateescape").decode("gb18030")
    except ValueError:
        return "bytes that its encoding does not have"
    return "bytes that are not UTF-8, but fit GB18030 (then set the source's encoding: gb18030)"
