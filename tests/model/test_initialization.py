"""Weights from scratch."""

import pytest
import torch
from torch.testing import assert_close

from glm2core.errors import UserError
from glm2core.model.initialization import initialize
from glm2core.model.loading import new_model
from glm2core.model.rope import RotaryEmbedding, rotate


@pytest.mark.parametrize("kind", ["default", "retrieval"])
def test_the_seed_decides(kind: str) -> None:
    def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        return new_model("tiny", 300, dtype=dtype, initialization=kind, seed=seed).state_dict()

    first = weights(1)
    assert all(first[name].equal(again) for name, again in weights(1).items())
    assert not all(first[name].equal(other) for name, other in weights(2).items())
    assert all(tensor.isfinite().all() for tensor in first.values())
    half = weights(1, torch.bfloat16)
    same = [first[name].to(torch.bfloat16).allclose(tensor, atol=0.02) for name, tensor in half.items()]
    assert all(same)


def test_default_has_the_configured_spread() -> None:
    model = new_model("tiny", None, dtype=torch.float32)
    assert_close(model.transformer.output_layer.weight.std(), torch.tensor(0.02), rtol=0.02, atol=0)
    assert model.transformer.encoder.layers[1].self_attention.query_key_value.bias.abs().max() == 0
    assert (model.transformer.encoder.final_layernorm.weight == 1).all()


@torch.no_grad()
def test_retrieval_heads_begin_by_looking_back() -> None:
    """From its biases alone, each head of the first layer scores highest the key 1, 2, 3, ... tokens back."""
    model = new_model("tiny", None, dtype=torch.float32, initialization="retrieval")
    attention = model.transformer.encoder.layers[0].self_attention
    heads = attention.query_key_value.bias.view(1, 1, -1, 64).expand(1, 40, -1, -1)  # [1, T, H + 2G, D]
    rotary = RotaryEmbedding(model.config.rope_parameters, model.config.rotary_channels)
    turned = rotate(heads, rotary(torch.arange(40)[None]))[0]
    for head, offset in enumerate((1, 2, 3, 4, 6, 8, 10, 12)):
        scores = turned[30, head] @ turned[:, 8 + head // 4].T
        assert scores.argmax() == 30 - offset


@torch.no_grad()
def test_retrieval_queries_resemble_keys_and_blocks_begin_as_identity() -> None:
    model = new_model("tiny", None, dtype=torch.float32, initialization="retrieval")
    for layer in model.transformer.encoder.layers:
        rows = layer.self_attention.query_key_value.weight.view(12, -1)
        for head in range(8):
            resemblance = torch.cosine_similarity(rows[head], rows[8 + head // 4], dim=0)
            assert_close(resemblance, torch.tensor(0.8), rtol=0, atol=0.03)
    ids = torch.arange(20)[None]
    out = model(ids, output_hidden_states=True)
    assert out.hidden_states[0].equal(out.hidden_states[2])
    assert (out.logits == 0).all()


def test_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="default, retrieval"):
        initialize(new_model("tiny", None, dtype=torch.float32), "xavier", 0)
