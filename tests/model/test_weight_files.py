"""Files of weights: only tensors by name; errors are reported before anything is built."""

import json
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glm2core.errors import UserError
from glm2core.model.loading import load_model
from glm2core.model.weight_files import mapped_weights, weight_files
from tests.model.released_layout import released_config, released_weights, write_checkpoint

NAME = "transformer.output_layer.weight"
HUGE = 1 << 20


def load(folder: Path) -> torch.nn.Module:
    return load_model(folder, dtype=torch.float32, notice=lambda _: None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "a list, not tensors by name"),
        ({1: torch.ones(2)}, "1 is not a tensor"),
        ({NAME: 1.0}, f"{NAME} is not a tensor"),
        ({NAME: torch.eye(3).to_sparse()}, "sparse"),
        ({NAME: torch.ones(3, dtype=torch.long)}, "int64"),
        ({NAME: torch.ones(3, dtype=torch.complex64)}, "complex64"),
        ({NAME: torch.ones(3, device="meta")}, "dense floats"),
        ({NAME: torch.zeros(1).expand(HUGE, HUGE)}, "more memory than the file has bytes"),
        ({"\x1b[31m": 5}, r"x1b\[31m is not a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bin_holds_tensors_by_name(content: Any, said: str, tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=rf"pytorch_model\.bin cannot be read as weights.*{said}"):
            mapped_weights(weight_files(tmp_path))


def test_a_packed_bin_is_refused(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.bin", tmp_path / "pytorch_model.bin"
    torch.save({NAME: torch.zeros(100)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for part in source.infolist():
            out.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        mapped_weights([packed])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({NAME: torch.ones(2)}, tmp_path / name)
    index = {"weight_map": {NAME: "a.safetensors", "x": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"b\.safetensors repeats tensors of an earlier file: {NAME}"):
        mapped_weights(weight_files(tmp_path))


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_an_index_names_files_of_its_folder(layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "outside", released_config("chatglm2-6b"), layout=layout, shards=1)
    [outside] = (path for path in (tmp_path / "outside").iterdir() if path.suffix == f".{layout}")
    folder = tmp_path / "model"
    write_checkpoint(folder, released_config("chatglm2-6b"), layout=layout)
    [index] = folder.glob("*.index.json")
    for name in (f"../outside/{outside.name}", str(outside)):
        index.write_text(json.dumps({"weight_map": {NAME: name}}))
        with pytest.raises(UserError, match="must be the plain name"):
            load(folder)


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_are_refused_by_name(layout: str, value: float, tmp_path: Path) -> None:
    config = released_config("chatglm2-6b")
    weights = released_weights(config)
    weights[NAME][3, 5] = value
    write_checkpoint(tmp_path, config, weights, layout=layout)
    with pytest.raises(UserError, match=rf"hold NaN or infinity \(in {NAME}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_layers": 10**9}, "num_layers must be at most 512"),
        ({"num_layers": 512}, r"missing transformer\.encoder\.layers\.10\..*and 3,555 more"),
        ({"hidden_size": 65536, "padded_vocab_size": 1 << 21}, r"is \[\d+, 64\] but should be \[\d+, 65536\]"),
    ],
)
def test_sizes_are_compared_with_the_files_before_anything_is_built(
    sizes: dict[str, int], said: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, released_config("chatglm2-6b"))
    (tmp_path / "config.json").write_text(json.dumps(released_config("chatglm2-6b", **sizes)))
    started = time.perf_counter()
    with pytest.raises(UserError, match=said):
        load(tmp_path)
    assert time.perf_counter() - started < 30  # 512 layers take about a second; built, the last would take a TB


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/repo"}'),
        lambda folder: (folder / "evil.py").write_text("raise SystemExit"),
        lambda folder: (folder / "training_args.bin").write_bytes(b"\x80"),
    ],
)
def test_other_files_of_the_folder_are_not_looked_at(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    config = released_config("chatglm2-6b", attn_implementation="evil/kernel", quantization_config={"bits": 4})
    written = write_checkpoint(tmp_path, config)
    spoil(tmp_path)
    network = load(tmp_path)
    assert network.state_dict()[NAME].equal(written[NAME].float())
    assert network.config._attn_implementation == "sdpa" and not hasattr(network.config, "quantization_config")
    assert network.name_or_path == network.config.name_or_path == str(tmp_path)


def test_generation_settings_of_the_folder_are_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, released_config("chatglm2-6b"))
    values = {"eos_token_id": [2, 5], "do_sample": True, "top_p": 0.5, "custom_generate": "evil"}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    generation = load(tmp_path).generation_config
    assert (generation.eos_token_id, generation.do_sample, generation.top_p) == ([2, 5], True, 0.5)
    assert not hasattr(generation, "custom_generate")
    (tmp_path / "generation_config.json").write_text('{"top_p": 5}')
    with pytest.raises(UserError, match=r"generation_config\.json: top_p must be at most 1"):
        load(tmp_path)


def doubled(levels: int) -> bytes:
    """A dict whose key is a tuple of the same tuple twice, and so on: its hash takes 2 ** levels steps."""
    steps = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(levels))
    return b"\x80\x02})" + steps + b"K\x01s."


def in_an_archive(file: Path, content: bytes) -> None:
    torch.save({NAME: torch.ones(2)}, file)
    with zipfile.ZipFile(file) as source:
        parts = {part.filename: source.read(part) for part in source.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for name, part in parts.items():
            out.writestr(name, content if name.endswith("data.pkl") else part)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_can_not_keep_a_reader_busy(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    assert len(pickle.loads(doubled(3))) == 1  # it is a pickle
    if zipped:
        in_an_archive(file, doubled(100))
    else:
        file.write_bytes(doubled(100))
    with pytest.raises(UserError, match="it repeats a part of itself"):
        mapped_weights([file])


def test_a_header_has_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(UserError, match="its list of tensors is too long"):
        mapped_weights([file])
