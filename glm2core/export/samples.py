"""Sample texts and chats with which an export is compared to its source."""

import random

from glm2core.conversation import ASSISTANT, SYSTEM, USER, Message
from glm2core.export.fast_tokenizer import special_spellings
from glm2core.text.tokenizer import SpTokenizer

MIXED_TEXTS = 2000
_HARD_TEXTS = (
    "",
    " ",
    "  two  spaces ",
    "\n",
    "\n\n a\n",
    "\ttab\r\n",
    "soprano, a sop",
    "\u2581",
    "a\u2581\u2581b",
    "\0",
    "你好，世界。",
    "[Round 1]\n\n问：你好\n\n答：",
    "\U0001f600 e\u0301",
    "<0x0A> <|x|>",
    "3.14159 1,000,000",
    "\ufeff\u200b\U0010fffd",
)
CHATS: tuple[list[Message], ...] = (
    [{"role": USER, "content": "你好"}],
    [
        {"role": USER, "content": "Hi"},
        {"role": ASSISTANT, "content": "Hello,\nthere"},
        {"role": USER, "content": " 1+1?\n"},
    ],
    [{"role": SYSTEM, "content": "Be brief."}, {"role": USER, "content": "为什么?"}],
)


def sample_texts(tokenizer: SpTokenizer) -> list[str]:
    """Return hard cases, all pieces of the vocabulary, and random mixtures of pieces, without special tokens."""
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.size)]
    rng = random.Random(0)
    mixed = ["".join(rng.choices([*pieces, " ", "\n"], k=rng.randint(2, 40))) for _ in range(MIXED_TEXTS)]
    spellings = special_spellings(tokenizer)
    return [text for text in (*_HARD_TEXTS, *pieces, *mixed) if not any(special in text for special in spellings)]
