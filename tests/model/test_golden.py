"""The network computes what the released code computes, to 2e-5 in fp32."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from tests.model.released_layout import SIZES

Golden = dict[str, Tensor]
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def released(golden: Golden, **config: object) -> ChatGLM2ForCausalLM:
    model = ChatGLM2ForCausalLM(ChatGLM2Config(**{**SIZES, "seq_length": 8192, "family": "chatglm2", **config}))
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    if not config.get("pre_seq_len"):
        weights = {name: tensor for name, tensor in weights.items() if "prefix_encoder" not in name}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_plain_and_long(golden: Golden, implementation: str) -> None:
    model = released(golden)
    model.set_attn_implementation(implementation)
    assert_close(model(golden["input_ids"]).logits, golden["logits"], **TOLERANCE)
    last = model(golden["long.input_ids"], logits_to_keep=8).logits
    assert_close(last, golden["long.logits_last8"], **TOLERANCE)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("given", [True, False], ids=["positions given", "positions from the mask"])
@torch.no_grad()
def test_left_padding(golden: Golden, implementation: str, given: bool) -> None:
    model = released(golden)
    model.set_attn_implementation(implementation)
    mask = golden["leftpad.attention_mask"]
    positions = golden["leftpad.position_ids"] if given else None
    logits = model(golden["leftpad.input_ids"], attention_mask=mask, position_ids=positions).logits
    assert_close(logits[mask.bool()], golden["leftpad.logits"][mask.bool()], **TOLERANCE)


def test_loss_and_gradients(golden: Golden) -> None:
    model = released(golden)
    loss = model(golden["input_ids"], labels=golden["labels"]).loss
    loss.backward()
    assert_close(loss.detach()[None], golden["loss"], **TOLERANCE)
    norms = {name: p.grad.norm()[None] for name, p in model.named_parameters() if p.grad is not None}
    expected = {name.removeprefix("gradnorm."): n for name, n in golden.items() if name.startswith("gradnorm.")}
    assert len(expected) == 9
    for name, norm in expected.items():
        assert_close(norms[name], norm, **TOLERANCE)


@torch.no_grad()
def test_positions_divided_by_16(golden: Golden) -> None:
    model = released(golden, rope_ratio=16)
    assert_close(model(golden["input_ids"]).logits, golden["ratio16.logits"], **TOLERANCE)
    last = model(golden["long.input_ids"], logits_to_keep=8).logits
    assert_close(last, golden["ratio16.long.logits_last8"], **TOLERANCE)


@torch.no_grad()
def test_prefix_shifts_no_position(golden: Golden) -> None:
    model = released(golden, pre_seq_len=8)
    ids = golden["input_ids"]
    assert_close(model(ids).logits, golden["prefix8.logits"], **TOLERANCE)
    masked = model(ids, attention_mask=torch.ones_like(ids)).logits
    assert_close(masked, golden["prefix8.logits"], **TOLERANCE)


@torch.no_grad()
def test_prefix_by_peft_is_the_released_prefix(golden: Golden) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    model = released(golden)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=8,
        num_layers=3,
        token_dim=32,
        num_attention_heads=2,
        num_transformer_submodules=1,
    )
    tuned = get_peft_model(model, config).eval()
    model.config.pre_seq_len = 8
    tuned.prompt_encoder.default.embedding.weight.copy_(golden["weights.transformer.prefix_encoder.embedding.weight"])
    ids = golden["input_ids"]
    mask = torch.ones_like(ids)
    positions = torch.arange(ids.shape[1]).expand(2, -1)
    assert_close(tuned(ids, attention_mask=mask).logits, golden["prefix8.logits"], **TOLERANCE)
    placed = tuned(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(placed, golden["prefix8.logits"], **TOLERANCE)
    options = {"attention_mask": golden["leftpad.attention_mask"], "max_new_tokens": 12, "do_sample": False}
    own = released(golden, pre_seq_len=8).generate(golden["leftpad.input_ids"], **options)
    assert tuned.generate(input_ids=golden["leftpad.input_ids"], **options).equal(own)
