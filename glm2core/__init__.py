"""glm2core: tune ChatGLM2-family models and measure how much of their context they can use.

The public names are loaded on first use. Every stage imports the package to check its params, and this import
does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
    from glm2core.text.hf_tokenizer import ChatGLM2Tokenizer

__version__ = "0.1.0"
__all__ = ["ChatGLM2Config", "ChatGLM2ForCausalLM", "ChatGLM2Tokenizer"]

_HOMES = {
    "ChatGLM2Config": "glm2core.model",
    "ChatGLM2ForCausalLM": "glm2core.model",
    "ChatGLM2Tokenizer": "glm2core.text.hf_tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glm2core' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
