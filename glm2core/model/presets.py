"""Network shapes by name: the shapes of the released family, and small shapes for a CPU and for measurements."""

import difflib
from typing import Any

from glm2core.errors import UserError
from glm2core.model.config import ChatGLM2Config

_VOCABULARY_MULTIPLE = 64

PRESETS: dict[str, dict[str, Any]] = {
    # 1.3 M parameters, about as many as a minute of CPU time can train.
    "tiny": {
        "num_layers": 3,
        "padded_vocab_size": 2048,
        "hidden_size": 128,
        "ffn_hidden_size": 256,
        "kv_channels": 64,
        "num_attention_heads": 8,
        "multi_query_group_num": 2,
        "seq_length": 2048,
        "family": "chatglm2",
    },
    # 2.7 M parameters, the shape of models/base, which has two layers more than an induction head needs.
    "mini": {
        "num_layers": 4,
        "padded_vocab_size": 2560,
        "hidden_size": 192,
        "ffn_hidden_size": 384,
        "kv_channels": 64,
        "num_attention_heads": 6,
        "multi_query_group_num": 2,
        "seq_length": 2048,
        "family": "chatglm2",
    },
    # 85.7 M parameters, the shape of the side-by-side measurements.
    "small": {
        "num_layers": 12,
        "padded_vocab_size": 8192,
        "hidden_size": 768,
        "ffn_hidden_size": 2048,
        "kv_channels": 64,
        "num_attention_heads": 12,
        "multi_query_group_num": 2,
        "seq_length": 2048,
        "family": "chatglm2",
    },
    "chatglm2-6b": {"seq_length": 32768, "family": "chatglm2"},
    "chatglm2-6b-32k": {"seq_length": 32768, "rope_ratio": 16, "family": "chatglm2"},
    "codegeex2-6b": {"seq_length": 8192, "family": "chatglm2"},
    "chatglm3-6b": {"seq_length": 8192, "family": "chatglm3"},
    "chatglm3-6b-32k": {"seq_length": 32768, "rope_ratio": 50, "family": "chatglm3"},
    "chatglm3-6b-128k": {"seq_length": 131072, "rope_ratio": 500, "family": "chatglm3"},
}


def preset_config(name: str, vocab_size: int | None = None) -> ChatGLM2Config:
    """The configuration of a preset.

    Args:
        name: a key of `PRESETS`.
        vocab_size: number of tokens in the tokenizer, which is rounded up to a multiple of 64 to suit matrix kernels;
            None = the preset's own number.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(f"model.preset must be one of {', '.join(PRESETS)}; got {name!r}{hint}")
    values = dict(PRESETS[name])
    if vocab_size is not None:
        values["padded_vocab_size"] = -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    return ChatGLM2Config(**values)
