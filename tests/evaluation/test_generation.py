"""Answers from a loaded model: a prompt is read once, whatever the model's own settings say."""

import pytest
import torch
from torch import nn

from glm2core.evaluation.generation import Answerer, Sampling
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer


@pytest.mark.parametrize("saved", [True, False])
def test_a_prompt_is_read_once_even_if_the_config_says_use_cache_false(
    model: ChatGLM2ForCausalLM, tokenizer: SpTokenizer, saved: bool
) -> None:
    read: list[int] = []

    def counted(module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        read.append(kwargs["input_ids"].shape[1])

    before = model.config.use_cache, model.generation_config.use_cache
    hook = model.register_forward_pre_hook(counted, with_kwargs=True)
    try:
        model.config.use_cache = model.generation_config.use_cache = saved
        answerer = Answerer(model, ChatFormat(tokenizer, "chatglm2"), Sampling(max_new_tokens=5))
        prompt = answerer.prompt_ids([{"role": "user", "content": "one two three"}])
        answerer.answer([[{"role": "user", "content": "one two three"}]])
    finally:
        model.config.use_cache, model.generation_config.use_cache = before
        hook.remove()
    assert read[0] == len(prompt) and len(read) > 1 and set(read[1:]) == {1}
