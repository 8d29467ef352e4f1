"""Conversations. Every raw row is converted to a conversation, and every later step reads conversations."""

import hashlib
from dataclasses import dataclass

Message = dict[str, str]

SPLITS = ("train", "validation", "test")
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

_SEPARATOR = "\0"  # no text contains this character, because formats.py rejects it
_HASH_BITS = 64


class RejectionError(ValueError):
    """The reason why a row can't be used.

    The reason is short and leaves out the row's text, so that equal reasons can be counted.
    """


@dataclass(frozen=True, slots=True)
class Conversation:
    """At most one system message, followed by alternating messages of the user and the assistant.

    messages: dicts with the keys `role` and `content`, as chat libraries expect.
    question_chars: number of characters at the start of the last user message that form the question; None = all of
        them. The rest of the last user message is the text that the question is about, which may be truncated.
    """

    messages: list[Message]
    question_chars: int | None = None

    @property
    def answered(self) -> bool:
        return self.messages[-1]["role"] == ASSISTANT


@dataclass(frozen=True, slots=True)
class Identity:
    """`id` is a hash of the whole content; `split_point` is a number in [0, 1), derived from the prompt."""

    id: str
    split_point: float


def identify(messages: list[Message], seed: int) -> Identity:
    """Hash the whole content to find duplicates, and the prompt (all messages except the answer) to choose the split.

    The split depends only on the prompt and `seed`. So a row keeps its split when other rows are added or removed, and
    rows with the same prompt are always in the same split.

    Raises:
        RejectionError: a text contains a lone surrogate, which UTF-8 can't encode.
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
    """Return the name of the split to which a `split_point` belongs."""
    if split_point < test_fraction:
        return "test"
    if split_point < test_fraction + validation_fraction:
        return "validation"
    return "train"


def undecodable(text: str) -> str | None:
    """Say why UTF-8 can't encode a text, and what the likely fix is; return None if UTF-8 can encode the text."""
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
        return "bytes that are invalid in its encoding"
    return "bytes that are not UTF-8, but fit GB18030 (then set the source's encoding: gb18030)"
