"""A small tokenizer trained on the spot, real data where it is at hand, and texts of every kind."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from glm2core.text.tokenizer import SpTokenizer, train_tokenizer

SHARED = Path(os.environ.get("GLM2CORE_SHARED") or Path(__file__).resolve().parents[2] / "../shared")

settings.register_profile("glm2core", deadline=None, max_examples=60)
settings.load_profile("glm2core")

TRAINING_TEXTS = [
    "[Round 1]\n\n问：为什么天空是蓝色的？\n\n答：因为空气把蓝光散射得更多。",
    "[Round 2]\n\n问：How long does tea need?\n\n答：Three minutes, with water at 95 degrees.",
    "A soprano sings 12 songs. The soprano's topsoil is soppy, and so she stops.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
] * 3

# Any text that can be in a conversation. U+2581 is SentencePiece's own mark of a space and comes back as one.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁"), min_size=1, max_size=40)
NOT_BLANK = TEXTS.filter(lambda text: not text.isspace())


@pytest.fixture(scope="session")
def tokenizer() -> SpTokenizer:
    return train_tokenizer(TRAINING_TEXTS, 420)


@pytest.fixture(scope="session")
def alpaca_files() -> list[Path]:
    """999 English and 1,000 Chinese rows of real Alpaca data."""
    files = [SHARED / "data" / f"alpaca_{language}_demo.json" for language in ("en", "zh")]
    if not all(file.exists() for file in files):
        pytest.skip("no real Alpaca data here")
    return files
