"""Run a source's forward pass one block at a time, so that an export is checked without the whole network in memory.

Shapes: `T` tokens in a prompt, `S` requested places in it, `C` channels, `V` tokens in the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from glm2core.export.source import Source
from glm2core.model.layers import GLMBlock, RMSNorm
from glm2core.model.linear import widened_linear
from glm2core.model.rope import RotaryEmbedding


class Asked(NamedTuple):
    """A prompt's token ids, and the indices at which the next token's log-probabilities are requested."""

    ids: Sequence[int]
    places: Sequence[int]


@torch.inference_mode()
def log_probabilities(source: Source, prompts: Sequence[Asked]) -> list[Tensor]:
    """Return each prompt's next-token log-probabilities [S, V] at the requested places, always in fp32."""
    config = source.config
    embedding = source.read("transformer.embedding.word_embeddings.weight")
    rotary = RotaryEmbedding(config.rope_parameters, config.rotary_channels)
    hidden = [embedding[torch.tensor(prompt.ids)].float()[None] for prompt in prompts]  # [1, T, C] each
    rotations = [rotary(torch.arange(len(prompt.ids))[None]) for prompt in prompts]
    for index in range(config.num_layers):
        with torch.device("meta"):
            block = GLMBlock(config, index)
        # A norm's output has the dtype of the norm's weight
        weights = {name: w.float() if w.dim() == 1 else w for name, w in source.layer(index)}
        block.load_state_dict(weights, assign=True)
        block.eval()
        for number, turns in enumerate(rotations):
            hidden[number] = block(hidden[number], turns, None)
    norm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
    norm.weight.data = source.read("transformer.encoder.final_layernorm.weight").float()
    output = source.read("transformer.output_layer.weight")
    linear = F.linear if output.dtype == torch.float32 else widened_linear
    return [
        linear(norm(states[0, torch.tensor(prompt.places)]), output).log_softmax(-1)
        for states, prompt in zip(hidden, prompts, strict=True)
    ]
