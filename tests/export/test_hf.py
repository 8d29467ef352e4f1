"""An exported folder: plain transformers, without glm2core, computes the same as the model."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from glm2core.cli.main import main
from glm2core.errors import UserError
from glm2core.export.hf import export_hf
from glm2core.model.adapters import load_tuned
from glm2core.model.loading import new_model
from glm2core.model.rope import RopeScaling
from glm2core.text.chat_format import ChatFormat
from tests.cli.conftest import make_adapter, make_full

# Like another tool: no glm2core, no remote code.
PLAIN = """
import json, sys
sys.modules["glm2core"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, chat, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**inputs, max_new_tokens=8)
torch.save({"ids": inputs["input_ids"], "logits": model(**inputs).logits.detach(), "made": made}, out)
"""
CHAT = [
    {"role": "user", "content": "日本的首都是哪里？"},
    {"role": "assistant", "content": "东京。"},
    {"role": "user", "content": "Does it lie at the sea?"},
]


def plain(folder, tmp_path):
    result = tmp_path / "plain.pt"
    command = [sys.executable, "-c", PLAIN, str(folder), json.dumps(CHAT), str(result)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    return torch.load(result)


@pytest.mark.parametrize("kind", ["full_model", "lora_model"])
def test_plain_transformers_computes_the_same(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    export_hf(folder, tmp_path / "out")
    found = plain(tmp_path / "out", tmp_path)
    model = load_tuned(folder, dtype=torch.float32, quantized=False)
    ids = torch.tensor([ChatFormat.load(folder).prompt_ids(CHAT)])
    assert found["ids"].tolist() == ids.tolist()
    with torch.inference_mode():
        torch.testing.assert_close(found["logits"], model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert found["made"].tolist() == made.tolist()


def test_the_adapter_is_merged_into_its_full_precision_base(lora_model, tmp_path):
    export_hf(lora_model, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    name = "transformer.encoder.layers.0.self_attention.dense"
    base = load_file(lora_model / "base" / "model.safetensors")[f"{name}.weight"]
    adapter = load_file(lora_model / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(merged, base + 32 / 8 * b @ a)


def test_an_rslora_adapter_is_merged_with_its_own_scale(tokenizer, full_model, tmp_path):
    folder = make_adapter(tmp_path / "root", tokenizer, full_model, "lora", rslora=True)
    export_hf(folder, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    name = "transformer.encoder.layers.0.self_attention.dense"
    base = load_file(full_model / "model.safetensors")[f"{name}.weight"]
    adapter = load_file(folder / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    torch.testing.assert_close(merged, base + 32 / 8**0.5 * b @ a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_chatglm3(dtype, tokenizer, tmp_path):
    folder = make_full(tmp_path / "model", tokenizer, template="chatglm3", dtype=dtype)
    export_hf(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    stops = [tokenizer.special_ids[token] for token in ("</s>", "<|user|>", "<|observation|>")]
    assert config["architectures"] == ["GlmForCausalLM"]
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert settings["eos_token_id"] == stops
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


@pytest.mark.parametrize("rope_type", ["ntk", "yarn"])
def test_scaled_positions_travel(rope_type, tokenizer, tmp_path):
    """The export's own check compares logits over the whole range of positions."""
    export_hf(make_full(tmp_path / "model", tokenizer, rope=RopeScaling(rope_type, 4.0)), tmp_path / "out")
    rope = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_theta"] > 40000) if rope_type == "ntk" else (rope["factor"] == 4.0)


def test_a_prefix_is_refused(prefix_model, tmp_path):
    with pytest.raises(UserError, match="P-tuning prefix"):
        export_hf(prefix_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_check_leaves_nothing(full_model, tokenizer, tmp_path):
    folder = make_full(tmp_path / "broken", tokenizer)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.encoder.final_layernorm.weight"][:] = 3e38  # finite, and its products are not
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="computes different logits"):
        export_hf(folder, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_folder_is_kept(full_model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export_hf(full_model, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_tokenizer_of_another_network_is_named(tokenizer, tmp_path, capsys):
    """For example a tokenizer.model of 64,789 pieces beside the weights of a smaller network."""
    new_model("tiny", 640, dtype=torch.float32).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model", "chatglm2")
    with pytest.raises(UserError, match=r"tokenizer\.model has [\d,]+ tokens, but the network has 640 rows"):
        export_hf(tmp_path / "model", tmp_path / "out")
    assert main(["chat", str(tmp_path / "model")]) == 1
    assert "the network has 640 rows" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["missing", "empty", "no weights"])
def test_folders_without_a_model(what, full_model, tokenizer, tmp_path):
    folder = tmp_path / "model"
    if what != "missing":
        folder.mkdir()
    if what == "no weights":
        tokenizer.save(folder, "chatglm2")
        (folder / "config.json").write_bytes((full_model / "config.json").read_bytes())
    with pytest.raises(UserError, match=str(folder)):
        export_hf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
