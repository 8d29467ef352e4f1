"""Model folders with random weights as large as a trained network's, and a tokenizer of their own."""

from pathlib import Path
from typing import Any

import pytest

from glm2core.export.llama_cpp import is_there
from glm2core.text.tokenizer import SpTokenizer
from tests.model.released_layout import released_config, write_checkpoint

# 4 heads of 32 on 128 channels, as the released networks have heads x channels = hidden; rows of whole blocks of 32
SHAPE = {"hidden_size": 128, "kv_channels": 32, "ffn_hidden_size": 352, "padded_vocab_size": 1280}
needs_llama_cpp = pytest.mark.skipif(not is_there(), reason="xllamacpp is not installed: pip install '.[gguf]'")


def released_folder(folder: Path, member: str, tokenizer: SpTokenizer, **changes: Any) -> Path:
    """A member of the family in its released layout."""
    write_checkpoint(folder, released_config(member, **SHAPE, **changes))
    tokenizer.save(folder, "chatglm3" if member.startswith("chatglm3") else "chatglm2")
    return folder
