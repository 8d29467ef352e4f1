"""4-bit and 8-bit weights on the CPU: which are quantized, and training survives a validation."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.linear import Linear
from glm2core.model.loading import load_model
from tests.model.released_layout import released_config, write_checkpoint

LINEARS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
IDS = torch.randint(3, 320, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, released_config("chatglm2-6b", ffn_hidden_size=192))
    return tmp_path


def load(folder: Path, bits: int | None, dtype: torch.dtype = torch.bfloat16) -> ChatGLM2ForCausalLM:
    return load_model(folder, dtype=dtype, bits=bits, notice=lambda _: None)


def lora(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=LINEARS, init_lora_weights=False)
    )


@pytest.mark.parametrize(("bits", "kind"), [(4, Linear4bit), (8, Linear8bitLt)])
def test_the_linears_of_the_blocks_are_quantized(folder: Path, bits: int, kind: type) -> None:
    model = load(folder, bits)
    quantized = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert len(quantized) == 3 * len(LINEARS)
    assert type(model.transformer.output_layer) is Linear
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.no_grad():
        exact = load(folder, None)(IDS).logits.float()
        error = (model(IDS).logits.float() - exact).norm() / exact.norm()
    assert 0 < error < {4: 0.35, 8: 0.1}[bits]


@pytest.mark.parametrize("bits", [4, 8])
def test_train_validate_train(folder: Path, bits: int) -> None:
    """Gradients after a validation are those of a model that was never validated; frozen bytes stay."""

    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    validated, fresh = (lora(load(folder, bits)) for _ in range(2))
    before = frozen(validated)
    gradients(validated)
    with torch.no_grad():
        validated.eval()
        validated(input_ids=IDS, labels=IDS)
        validated.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    after = gradients(validated)
    expected = gradients(fresh)
    assert len(expected) == 2 * 3 * len(LINEARS)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    assert_close(after, expected, rtol=0, atol=0)
    assert all(before[name].equal(tensor) for name, tensor in frozen(validated).items())
