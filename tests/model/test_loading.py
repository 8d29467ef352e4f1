"""Folders in the released layout: read completely, strictly, and within the memory they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from glm2core.errors import UserError
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.loading import fingerprint, load_model, new_model
from glm2core.model.rope import RopeScaling, linear_rope
from tests.model.released_layout import MEMBERS, released_config, released_weights, write_checkpoint


def silent(_: str) -> None:
    pass


def load(folder: Path, **options: object) -> ChatGLM2ForCausalLM:
    return load_model(folder, **{"dtype": torch.float32, "notice": silent, **options})


@pytest.mark.parametrize(("layout", "shards"), [("bin", 3), ("bin", 1), ("safetensors", 3), ("safetensors", 1)])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_in_every_layout(member: str, layout: str, shards: int, tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, released_config(member), layout=layout, shards=shards)
    model = load(tmp_path)
    loaded = model.state_dict()
    assert set(loaded) == {name for name in written if "inv_freq" not in name}
    assert all(loaded[name].equal(written[name].float()) for name in loaded)
    assert not model.training


@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_encoder_is_read(projected: bool, tmp_path: Path) -> None:
    config = released_config("chatglm2-6b", pre_seq_len=5, prefix_projection=projected)
    written = write_checkpoint(tmp_path, config)
    model = load(tmp_path)
    embedding = model.transformer.prefix_encoder.embedding.weight
    assert embedding.equal(written["transformer.prefix_encoder.embedding.weight"].float())
    ids = torch.arange(9)[None]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 12)
    assert (model.transformer.prefix_encoder.trans is not None) == projected


@pytest.mark.parametrize("by", ["base.json", "argument"])
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_a_released_prefix_alone_finds_its_base(by: str, layout: str, tmp_path: Path) -> None:
    config = released_config("chatglm2-6b", pre_seq_len=5)
    whole = released_weights(config)
    base = {name: weight for name, weight in whole.items() if "prefix_encoder" not in name}
    alone = {name: weight for name, weight in whole.items() if "prefix_encoder" in name}
    write_checkpoint(tmp_path / "chatglm2-6b", released_config("chatglm2-6b"), base, layout=layout)
    prefix = tmp_path / "ptuned"
    write_checkpoint(prefix, config, alone, shards=1)
    with pytest.raises(UserError, match=r"only a P-tuning prefix.*Name the base's folder with --base"):
        load(prefix)
    if by == "base.json":
        (prefix / "base.json").write_text(json.dumps({"path": str(tmp_path / "chatglm2-6b")}))
        before = fingerprint(prefix)
    loaded = load(prefix, base=tmp_path / "chatglm2-6b" if by == "argument" else None).state_dict()
    assert all(loaded[name].equal(weight.float()) for name, weight in whole.items() if "inv_freq" not in name)
    if by == "base.json":
        base["transformer.output_layer.weight"] += 1
        write_checkpoint(tmp_path / "chatglm2-6b", released_config("chatglm2-6b"), base, layout=layout)
        assert fingerprint(prefix) != before


def test_a_base_that_has_no_place_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", released_config("chatglm2-6b"))
    write_checkpoint(tmp_path / "b", released_config("chatglm2-6b"))
    with pytest.raises(UserError, match="Only an adapter or a P-tuning prefix needs a base, so leave out --base"):
        load(tmp_path / "a", base=tmp_path / "b")
    (tmp_path / "a" / "base.json").write_text('{"folder": "b"}')
    with pytest.raises(UserError, match=r"base\.json: path is missing"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.output_layer.weight"), r"missing transformer\.output_layer\.weight"),
        (lambda w: w.update({"transformer.extra.weight": torch.zeros(2)}), r"unexpected transformer\.extra\.weight"),
        (
            lambda w: w.update({"transformer.encoder.final_layernorm.weight": torch.ones(63)}),
            r"transformer\.encoder\.final_layernorm\.weight is \[63\] but should be \[64\]",
        ),
        (
            lambda w: w.update({"transformer.prefix_encoder.embedding.weight": torch.zeros(8, 192)}),
            r"unexpected transformer\.prefix_encoder",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "prefix without pre_seq_len"],
)
@pytest.mark.parametrize("by", ["load_model", "from_pretrained"])
def test_a_wrong_tensor_is_named(change: object, message: str, by: str, tmp_path: Path) -> None:
    config = released_config("chatglm2-6b")
    weights = released_weights(config)
    change(weights)
    write_checkpoint(tmp_path, config, weights)
    with pytest.raises(UserError, match=message):
        load(tmp_path) if by == "load_model" else ChatGLM2ForCausalLM.from_pretrained(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path)
    write_checkpoint(tmp_path, released_config("chatglm2-6b"), shards=2)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"do not exist: pytorch_model-00002-of-00002\.bin"):
        load(tmp_path)
    write_checkpoint(tmp_path, released_config("chatglm2-6b"), shards=2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="model_type is 'llama'"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_broken_file_is_named(shards: int, tmp_path: Path) -> None:
    for layout in ("bin", "safetensors"):
        folder = tmp_path / layout
        write_checkpoint(folder, released_config("chatglm2-6b"), layout=layout, shards=shards)
        file = sorted(folder.glob(f"*.{layout}"))[0]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match=f"{file.name}.*cannot be read"):
            load(folder)
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(UserError, match="git lfs pull"):
            load(folder)


class _Touch:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_bin_is_run(tmp_path: Path) -> None:
    config = released_config("chatglm2-6b")
    weights = {**released_weights(config), "transformer.output_layer.weight": _Touch(tmp_path / "was here")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*cannot be read"):
        load(tmp_path)
    assert not (tmp_path / "was here").exists()


def test_scaling_on_load(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "plain", released_config("chatglm2-6b"))
    model = load(tmp_path / "plain", rope=RopeScaling("linear", 4, 2048))
    assert model.config.rope_parameters == linear_rope(4)
    assert model.config.seq_length == 8192
    write_checkpoint(tmp_path / "scaled", released_config("chatglm2-6b-32k"))
    with pytest.raises(UserError, match="already has linear scaling by 16"):
        load(tmp_path / "scaled", rope=RopeScaling("linear", 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_is_loaded_by_every_route(dtype: torch.dtype, tmp_path: Path) -> None:
    rope = RopeScaling("yarn", 8)
    model = new_model("tiny", 300, dtype=dtype, rope=rope, initialization="retrieval", seed=1)
    torch.nn.init.normal_(model.transformer.output_layer.weight)  # it starts at zero
    model.save_pretrained(tmp_path)
    ids = torch.arange(30)[None]
    expected = model(ids).logits
    assert expected.abs().max() > 1
    for again in (
        load(tmp_path, dtype=dtype),
        ChatGLM2ForCausalLM.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
    ):
        assert type(again) is ChatGLM2ForCausalLM
        assert again.dtype == dtype
        assert again(ids).logits.equal(expected)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_fingerprint(tmp_path: Path) -> None:
    config = released_config("chatglm2-6b")
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, config)
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "auto_map": {}}))
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "rope_ratio": 16}))
    assert fingerprint(tmp_path / "b") != first
    write_checkpoint(tmp_path / "a", config, released_weights(config, seed=1))
    assert fingerprint(tmp_path / "a") != first


MEASURE = """
import sys, threading, time, torch
from pathlib import Path
from glm2core.model.loading import load_model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

load_model(Path(sys.argv[2]), dtype=torch.bfloat16, notice=str)  # a tiny one: what the libraries load on first use
start, peak, done = anonymous(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[3]), notice=str)
done.set()
watcher.join()
print((peak[0] - start) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 240 MB of fp16 in both layouts, and a tiny network beside them."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"num_layers": 8, "hidden_size": 1024, "ffn_hidden_size": 3072, "padded_vocab_size": 8192}
    config = released_config("chatglm2-6b", **sizes, kv_channels=64, num_attention_heads=16)
    weights = write_checkpoint(folder / "bin", config, shards=3)
    write_checkpoint(folder / "safetensors", config, weights, layout="safetensors", shards=3)
    write_checkpoint(folder / "tiny", released_config("chatglm2-6b"))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_loading_takes_the_memory_of_the_weights(layout: str, large: Path) -> None:
    """Anonymous memory at its peak, against the weights in the target dtype: bf16 from fp16 files."""
    command = [sys.executable, "-c", MEASURE, str(large / layout), str(large / "tiny"), "bfloat16"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert 0.9 < float(run.stdout.split()[-1]) <= 1.15
