"""The ChatGLM2-family network and its files.

Importing this package registers the network with transformers' Auto classes, so that
`AutoModelForCausalLM.from_pretrained(folder)` needs no remote code. Importing has no other side effect.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from glm2core.model.config import ChatGLM2Config
from glm2core.model.modeling import ChatGLM2ForCausalLM

AutoConfig.register(ChatGLM2Config.model_type, ChatGLM2Config, exist_ok=True)
AutoModelForCausalLM.register(ChatGLM2Config, ChatGLM2ForCausalLM, exist_ok=True)

__all__ = ["ChatGLM2Config", "ChatGLM2ForCausalLM"]
