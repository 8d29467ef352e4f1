"""Scaled queries sharpen attention as a power of its weights, and nothing else changes."""

import torch

from glm2core.model.initialization import initialize
from glm2core.model.loading import new_model
from glm2core.model.queries import with_scaled_queries


def test_scaled_queries_sharpen_attention_and_change_nothing_else() -> None:
    model = new_model("tiny", None, dtype=torch.float32).eval()
    initialize(model, "default", 1)
    for block in model.transformer.encoder.layers:
        torch.nn.init.normal_(block.self_attention.query_key_value.bias)
    model.set_attn_implementation("eager")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = torch.arange(5, 25)[None]
    weights = model(ids, output_attentions=True).attentions[0]
    after = with_scaled_queries(model.state_dict(), model.config, 1.5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    rows = model.config.num_attention_heads * model.config.kv_channels
    for name, weight in after.items():
        if "query_key_value" in name:
            assert torch.equal(weight[:rows], before[name][:rows] * 1.5)
            assert torch.equal(weight[rows:], before[name][rows:])
        else:
            assert torch.equal(weight, before[name])
    model.load_state_dict(after)
    sharper = model(ids, output_attentions=True).attentions[0]
    # The softmax of scores times 1.5 is the weights to the power of 1.5, divided by their sum
    expected = weights**1.5 / (weights**1.5).sum(-1, keepdim=True)
    torch.testing.assert_close(sharper, expected, rtol=1e-4, atol=1e-6)
