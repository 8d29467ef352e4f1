"""A small network with weights as large as a trained one's."""

from typing import Any

import torch

from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from tests.model.released_layout import SIZES, released_config, released_weights


def small_network(dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> ChatGLM2ForCausalLM:
    """3 layers, 320 tokens, in eval mode."""
    model = ChatGLM2ForCausalLM(ChatGLM2Config(**{**SIZES, "seq_length": 2048, "family": "chatglm2", **config}))
    released = released_config("chatglm2-6b", torch_dtype="float32", pre_seq_len=config.get("pre_seq_len"))
    model.load_state_dict({k: v for k, v in released_weights(released, seed).items() if "inv_freq" not in k})
    return model.to(dtype).eval()
