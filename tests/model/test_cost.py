"""Counted operations, against torch's count for the network itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glm2core.labels import IGNORED
from glm2core.model.cost import Cost
from tests.training.conftest import tiny_model

TOKENS = 64
aten = torch.ops.aten


@pytest.mark.parametrize(("frozen", "factor"), [(False, 2), (True, 1)])
def test_forward_and_backward_are_those_that_torch_counts(frozen: bool, factor: int) -> None:
    """Attention by plain products computes both halves of the causal matrix; Cost counts one."""
    model = tiny_model().train()
    model.set_attn_implementation("eager")
    model.requires_grad_(not frozen)
    ids = torch.randint(3, 300, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, 0] = IGNORED
    vectors = model.get_input_embeddings()(ids).detach().requires_grad_()  # adapters in front ask for this gradient
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=vectors, labels=labels).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    attention = counts[aten.bmm]
    config = model.config
    forward = 4 * config.num_attention_heads * config.kv_channels * config.num_layers * TOKENS**2
    assert attention == 3 * forward
    expected = Cost(config, backward_factor=factor).operations(torch.tensor([TOKENS]), TOKENS - 1)
    assert sum(counts.values()) - attention / 2 == pytest.approx(expected, rel=1e-6)


def test_forward_alone_has_no_backward() -> None:
    config = tiny_model().config
    lengths = torch.tensor([TOKENS])
    forward, tuned, full = (Cost(config, backward_factor=f).operations(lengths, 0) for f in (0, 1, 2))
    attention = 2 * config.num_attention_heads * config.kv_channels * config.num_layers * TOKENS**2
    assert tuned == 2 * forward + attention
    assert full == 3 * forward
