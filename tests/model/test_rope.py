"""Rotary positions: their parameters, and tables that no cast changes."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from glm2core.errors import UserError
from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from glm2core.model.config import apply_rope
from glm2core.model.rope import (
    RopeScaling,
    RopeType,
    RotaryEmbedding,
    inverse_frequencies,
    linear_rope,
    ntk_base,
    plain_rope,
    rotate,
    yarn_rope,
)
from tests.model.networks import small_network

POSITIONS = 32768


def config(**values: object) -> ChatGLM2Config:
    return ChatGLM2Config(
        **{"num_layers": 1, "padded_vocab_size": 64, "hidden_size": 64, "family": "chatglm2", **values}
    )


def rotary(network: ChatGLM2Config) -> RotaryEmbedding:
    return RotaryEmbedding(network.rope_parameters, network.rotary_channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", ["half()", "to(dtype)", "from_pretrained"])
def test_every_position_has_its_own_angle(dtype: torch.dtype, cast: str, tmp_path: Path) -> None:
    model = small_network()
    if cast == "from_pretrained":
        model.save_pretrained(tmp_path)
        model = ChatGLM2ForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    else:
        model = model.half().to(dtype) if cast == "half()" else model.to(dtype)
    positions = torch.arange(POSITIONS)[None]
    angles = model.transformer.rotary_pos_emb.angles(positions)[0]  # [T, R / 2]
    assert angles.dtype == torch.float32
    assert len(angles[:, 0].unique()) == POSITIONS
    assert model.transformer.rotary_pos_emb(positions).dtype == torch.complex64
    # The angles that half precision would leave: the reason for all this.
    in_half = positions[0].to(dtype) * torch.ones((), dtype=dtype)
    assert len(in_half.unique()) == {torch.float16: 6145, torch.bfloat16: 1153}[dtype]


@pytest.mark.parametrize("rope", [plain_rope(), linear_rope(16), plain_rope(5e6), yarn_rope(16, 2048)])
def test_tables_are_exact_to_fp32(rope: dict[str, object]) -> None:
    """Cosines against fp64, where the released fp16 tables are wrong by up to 2."""
    network = config(rope_parameters=dict(rope), seq_length=POSITIONS)
    frequencies, factor = inverse_frequencies(network.rope_parameters, network.rotary_channels)
    positions = torch.arange(POSITIONS)
    exact = torch.polar(torch.tensor(factor).double(), positions[:, None].double() * frequencies.double())
    found = rotary(network)(positions[None])[0, :, 0]
    assert (found - exact).abs().max() < 4e-3


def test_linear_divides_positions() -> None:
    scaled = rotary(config(rope_parameters=linear_rope(16)))
    plain = rotary(config())
    sixteenth = torch.arange(0, 1600, 16)[None]
    assert_close(scaled.angles(sixteenth), plain.angles(sixteenth // 16))


def test_ntk_slows_the_slowest_pair_by_the_factor() -> None:
    plain, _ = inverse_frequencies(plain_rope(), 64)
    scaled, _ = inverse_frequencies(plain_rope(ntk_base(8, rotary_channels=64)), 64)
    assert scaled[0] == plain[0]
    assert_close(plain[-1] / scaled[-1], torch.tensor(8.0), rtol=1e-5, atol=0)
    assert math.isclose(ntk_base(8, 64), 10000 * 8 ** (64 / 62))


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, _ = inverse_frequencies(plain_rope(), 64)
    scaled, factor = inverse_frequencies(yarn_rope(16, 2048), 64)
    assert_close(scaled[:4], plain[:4])
    assert_close(scaled[-1], plain[-1] / 16)
    assert math.isclose(factor, 0.1 * math.log(16) + 1)


@given(st.integers(0, 30000), st.integers(0, 300), st.integers(0, 2**31))
def test_products_depend_on_the_distance_alone(position: int, distance: int, seed: int) -> None:
    embedding = rotary(config(kv_channels=16))
    heads = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(seed))
    query, key = heads[:1], heads[1:]

    def product(at: int) -> torch.Tensor:
        turned = rotate(query, embedding(torch.tensor([[at + distance]])))
        return (turned * rotate(key, embedding(torch.tensor([[at]])))).sum()

    assert_close(product(position), product(0), rtol=0, atol=0.05)
    assert_close(rotate(query, embedding(torch.tensor([[position]]))).norm(), query.norm())


@pytest.mark.parametrize("existing", [linear_rope(16), plain_rope(5e5), yarn_rope(4, 2048)])
@pytest.mark.parametrize("rope_type", ["linear", "ntk", "yarn", "default"])
def test_no_scaling_on_top_of_another(existing: dict[str, object], rope_type: RopeType) -> None:
    with pytest.raises(UserError, match=r"already has .*Set model\.rope\.type and model\.rope\.factor to auto"):
        RopeScaling(rope_type, 4).parameters(existing, 64)


def test_null_leaves_the_checkpoint_as_it_is() -> None:
    network = config(rope_ratio=16, seq_length=32768)
    apply_rope(network, None)
    assert network.rope_parameters == linear_rope(16)
    assert network.seq_length == 32768


@pytest.mark.parametrize("rope_type", ["linear", "ntk", "yarn"])
def test_scaling_travels_with_the_model(rope_type: RopeType, tmp_path: Path) -> None:
    scaled = small_network().config
    apply_rope(scaled, RopeScaling(rope_type, 8, 256))
    model = small_network(rope_parameters=scaled.rope_parameters, seq_length=scaled.seq_length)
    assert model.config.max_position_embeddings == 2048
    model.save_pretrained(tmp_path)
    loaded = ChatGLM2ForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    ids = torch.arange(60)[None]
    assert loaded(ids).logits.equal(model(ids).logits)
    assert not loaded(ids).logits.equal(small_network()(ids).logits)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match="default, linear, ntk, yarn"):
        RopeScaling("dynamic", 4)  # type: ignore[arg-type]
