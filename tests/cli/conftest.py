"""Small model folders of each kind, made by the pipeline's own functions."""

import os
from pathlib import Path

import pytest
import torch

from glm2core.model.adapters import adapt, reference_to, save_adapter
from glm2core.model.loading import load_model, new_model
from glm2core.model.rope import RopeScaling
from glm2core.params import LoraParams, PrefixParams
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer

PROJECT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("GLM2CORE_SHARED", PROJECT / "../shared"))


def raw_texts() -> list[str]:
    return [
        line
        for file in sorted((PROJECT / "data" / "raw").glob("*.json*"))
        for line in file.read_text("utf-8").splitlines()
    ]


@pytest.fixture(scope="session")
def tokenizer() -> SpTokenizer:
    return train_tokenizer(raw_texts(), 1200)


@pytest.fixture(scope="session")
def full_model(tokenizer: SpTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full weights in fp32 with linear RoPE, as the train stage leaves them."""
    return make_full(tmp_path_factory.mktemp("models") / "full", tokenizer, rope=RopeScaling("linear", 4.0))


@pytest.fixture(scope="session")
def lora_model(tokenizer: SpTokenizer, full_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit LoRA adapter whose weights are not zero, with its base beside it."""
    return make_adapter(tmp_path_factory.mktemp("models") / "lora", tokenizer, full_model, "qlora", bits=4)


@pytest.fixture(scope="session")
def prefix_model(tokenizer: SpTokenizer, full_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("models") / "prefix", tokenizer, full_model, "ptuning")


def make_full(folder: Path, tokenizer: SpTokenizer, *, template="chatglm2", dtype=torch.float32, rope=None) -> Path:
    model = new_model("tiny", len(tokenizer), dtype=dtype, rope=rope, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at the start: a lost bias would not show
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    tokenizer.save(folder, template)
    return folder


def make_adapter(folder: Path, tokenizer: SpTokenizer, base: Path, method: str, bits=None, **lora) -> Path:
    params = LoraParams(dropout=0.0, **lora)
    model = adapt(load_model(base, dtype=torch.float32, bits=bits), method, params, PrefixParams(length=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)
    folder.mkdir()
    save_adapter(model, folder, reference_to(base, own=True, bits=bits), base)
    tokenizer.save(folder, "chatglm2")
    return folder
