"""GGUF files: llama.cpp computes the same from them as the model."""

import subprocess
import sys

import pytest
import torch

from glm2core.errors import UserError
from glm2core.export.forward import Asked, log_probabilities
from glm2core.export.gguf import export_adapter, export_gguf
from glm2core.export.gguf_file import write_network
from glm2core.export.llama_cpp import LlamaCpp
from glm2core.export.source import Source
from glm2core.model.adapters import load_tuned
from glm2core.model.rope import RopeScaling
from tests.cli.conftest import PROJECT, make_adapter, make_full
from tests.export.networks import needs_llama_cpp, released_folder
from tests.model.released_layout import MEMBERS

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[gguf]'")

LONG = (1, 130, 2_040, 2_060, 8_100, 20_000)


def silent(_: str) -> None:
    pass


def difference(source, file, places, *, exact=True):
    """The largest difference of a log-probability at these positions, and whether the likeliest tokens are equal."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, 1200, (max(places),), generator=generator).tolist()
    llama = LlamaCpp(file, context=len(ids) + 8, exact=exact)
    rows = source.config.padded_vocab_size
    theirs = torch.stack([llama.log_probabilities(ids[:place], rows) for place in places])
    [ours] = log_probabilities(source, [Asked(ids, [place - 1 for place in places])])
    best = ours.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 0.05
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()
    return float((ours - theirs).abs().max())


def test_a_source_computes_what_the_model_computes(lora_model):
    """The reference of every check below: one block at a time, with an adapter's update added to each weight."""
    source = Source.open(lora_model, notice=silent)
    ids = torch.randint(0, 1200, (1, 70), generator=torch.Generator().manual_seed(1))
    model = load_tuned(lora_model, dtype=torch.float32, quantized=False, notice=silent)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0].log_softmax(-1)
    [found] = log_probabilities(source, [Asked(ids[0].tolist(), range(70))])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_llama_cpp
@pytest.mark.parametrize("quantization", ["f32", "f16", "q8_0", "q4_0"])
def test_each_precision_is_checked_in_llama_cpp(quantization, tokenizer, tmp_path):
    folder = released_folder(tmp_path / "chatglm2-6b-32k", "chatglm2-6b-32k", tokenizer, seq_length=4096)
    said = []
    export_gguf(folder, tmp_path / "model.gguf", quantization=quantization, notice=said.append)
    assert "checked in llama.cpp" in said[-1]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_output.weight"] == quantization.upper()
    assert kinds["output.weight"] == {"q4_0": "Q8_0"}.get(quantization, quantization.upper())
    assert kinds["output_norm.weight"] == "F32"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]


@needs_llama_cpp
@pytest.mark.parametrize(
    "rope", [None, RopeScaling("linear", 4.0, 512), RopeScaling("ntk", 4.0, 512), RopeScaling("yarn", 4.0, 512)]
)
def test_heads_wider_than_the_hidden_size_run_as_llama(rope, tokenizer, tmp_path):
    folder = make_full(tmp_path / "model", tokenizer, rope=rope)
    export_gguf(folder, tmp_path / "model.gguf", quantization="f32", notice=silent)
    source = Source.open(folder, notice=silent)
    assert difference(source, tmp_path / "model.gguf", (1, 500, 1900)) < 1e-4


@needs_llama_cpp
def test_chatglm3_ends_its_turn(tokenizer, tmp_path):
    """llama.cpp recognises stop tokens by their text, and does not know chatglm3's."""
    folder = released_folder(tmp_path / "chatglm3-6b", "chatglm3-6b", tokenizer, seq_length=512)
    export_gguf(folder, tmp_path / "model.gguf", quantization="f32", notice=silent)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.special_ids["<|user|>"]
    assert fields["tokenizer.ggml.eom_token_id"].contents() == tokenizer.special_ids["<|observation|>"]


@needs_llama_cpp
@pytest.mark.parametrize("shape", ["llama", "chatglm"])
def test_an_adapter_on_its_base_equals_the_merged_network(shape, lora_model, tokenizer, tmp_path):
    if shape == "chatglm":
        base = released_folder(tmp_path / "chatglm2-6b", "chatglm2-6b", tokenizer, seq_length=2048)
        lora_model = make_adapter(tmp_path / "lora", tokenizer, base, "lora")
    write_network(Source.open(lora_model / "base", notice=silent), "f32", tmp_path / "base.gguf")
    export_adapter(lora_model, tmp_path / "adapter.gguf", notice=silent)
    source = Source.open(lora_model, notice=silent)
    ids = list(range(300, 400))
    llama = LlamaCpp(tmp_path / "base.gguf", context=256, adapters=[tmp_path / "adapter.gguf"])
    theirs = llama.log_probabilities(ids, source.config.padded_vocab_size)
    [ours] = log_probabilities(source, [Asked(ids, [99])])
    [base] = log_probabilities(Source.open(lora_model / "base", notice=silent), [Asked(ids, [99])])
    assert (ours - theirs).abs().max() < 1e-4 < (ours - base).abs().max()


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize(("quantization", "limit"), [("f32", 1e-4), ("f16", 1e-2)])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_at_long_positions(member, quantization, limit, tokenizer, tmp_path):
    folder = released_folder(tmp_path / member, member, tokenizer)
    source = Source.open(folder, notice=silent)
    write_network(source, quantization, tmp_path / "model.gguf")
    places = [place for place in LONG if place < source.config.seq_length]
    assert difference(source, tmp_path / "model.gguf", places) <= limit


@pytest.mark.slow
@needs_llama_cpp
def test_the_embedded_base(tmp_path):
    export_gguf(PROJECT / "models/base", tmp_path / "base.gguf", quantization="f32", notice=silent)
    source = Source.open(PROJECT / "models/base", notice=silent)
    # 8e-5 with AVX2, 1.5e-4 with AVX-512: sums in another order, and this network's log-probabilities are large
    assert difference(source, tmp_path / "base.gguf", (1, 130, 2_040)) <= 3e-4


def test_without_llama_cpp_the_file_is_read_back(full_model, tmp_path):
    """In a process in which xllamacpp can't be found."""
    code = (
        "import sys; from pathlib import Path; sys.modules['xllamacpp'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "from glm2core.export.gguf import export_gguf\n"
        "export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), quantization='q8_0')"
    )
    command = [sys.executable, "-c", code, str(full_model), str(tmp_path / "model.gguf")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "checked by reading back every tensor" in done.stdout
    assert (tmp_path / "model.gguf").stat().st_size > 1 << 20


def test_without_the_package_it_is_one_sentence_before_anything_is_read(tmp_path):
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from glm2core.cli.main import main\n"
        "sys.exit(main(['export', 'nowhere', 'out.gguf', '--format', 'gguf']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not installed. Run pip install '.[gguf]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("broken", "message"),
    [(float("nan"), "holds NaN or infinity"), (1e6, "half precision ends at 65504")],
    ids=["not a number", "too large for half"],
)
def test_a_weight_that_has_no_place_leaves_nothing(broken, message, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_full(tmp_path / "model", tokenizer)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.output_layer.weight"][0, 0] = broken
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        export_gguf(folder, tmp_path / "out" / "model.gguf", notice=silent)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("export", [export_gguf, export_adapter])
def test_what_can_not_be_exported_is_told(export, prefix_model, full_model, tmp_path):
    with pytest.raises(UserError, match="P-tuning prefix"):
        export(prefix_model, tmp_path / "out.gguf")
    with pytest.raises(UserError, match=r"does not end in \.gguf"):
        export(full_model, tmp_path / "out")
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export(full_model, tmp_path / "mine.gguf")
    if export is export_adapter:
        with pytest.raises(UserError, match="full weights, not a LoRA adapter"):
            export(full_model, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gguf"]
