"""`transformers.GlmForCausalLM` as a second oracle: the same function, to 1e-5 in fp32."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GlmForCausalLM

from glm2core.errors import UserError
from glm2core.hardware import computes_in
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.convert_glm import glm_config, glm_state_dict
from glm2core.model.rope import linear_rope, ntk_base, plain_rope, yarn_rope
from tests.model.networks import small_network

ROPES = {
    "plain": plain_rope(),
    "linear 16": linear_rope(16),
    "base x 50": plain_rope(500_000.0),
    "ntk 8": plain_rope(ntk_base(8, rotary_channels=8)),
    "yarn 8": yarn_rope(8, unit=256),
}


def as_glm(model: ChatGLM2ForCausalLM) -> GlmForCausalLM:
    glm = GlmForCausalLM(glm_config(model.config))
    glm.load_state_dict(glm_state_dict(model.state_dict(), model.config), strict=True)
    return glm.to(model.dtype).eval()


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
@torch.no_grad()
def test_same_logits(rope: dict[str, object]) -> None:
    model = small_network(rope_parameters=dict(rope))
    ids = torch.randint(0, 320, (2, 700), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    ours, theirs = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (model, as_glm(model)))
    assert theirs.abs().max() > 1
    assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_theirs() -> None:
    model = small_network(torch.bfloat16)
    glm = as_glm(model)
    ids = torch.randint(0, 320, (4, 200), generator=torch.Generator().manual_seed(2))
    ours, theirs = model(ids).logits.float(), glm(ids).logits.float()
    exact = model.float()(ids).logits  # the same, rounded weights, computed in fp32
    our_error, their_error = ((x - exact).square().mean().sqrt() for x in (ours, theirs))
    assert our_error <= 1.1 * their_error
    assert (our_error > 0) == computes_in(torch.bfloat16, torch.device("cpu"))  # else widened weights are exact


@torch.no_grad()
def test_no_bias_has_a_place_there_too() -> None:
    model = small_network()
    bare = ChatGLM2ForCausalLM(type(model.config)(**{**model.config.to_dict(), "add_qkv_bias": False})).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("bias")})
    ids = torch.arange(50)[None]
    assert_close(bare(ids).logits, as_glm(bare)(ids).logits, rtol=0, atol=1e-5)


def test_a_prefix_cannot_be_exported() -> None:
    with pytest.raises(UserError, match="P-tuning prefix of 8"):
        glm_config(small_network(pre_seq_len=8).config)


def test_a_foreign_tensor_is_named() -> None:
    with pytest.raises(UserError, match=r"transformer\.other\.weight"):
        glm_state_dict({"transformer.other.weight": torch.zeros(1)}, small_network().config)
