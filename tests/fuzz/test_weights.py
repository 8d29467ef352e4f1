"""Hostile model folders through what `chat`, `predict`, `export` and settling do with one: an answer, or a sentence.

No traceback, no hang, no crash, and no code of a file runs. `python -m pytest -m slow tests/fuzz --seed 7` tries other
folders than the fixed seeds do.
"""

import argparse
import faulthandler
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glm2core.cli.answering import load_answerer
from glm2core.errors import UserError
from glm2core.export.hf import export_hf
from glm2core.files import sha256_folder
from glm2core.model.adapters import adapt, reference_to, save_adapter
from glm2core.model.config import ChatGLM2Config
from glm2core.model.initialization import initialize
from glm2core.model.loading import load_model
from glm2core.model.modeling import ChatGLM2ForCausalLM
from glm2core.params import LoraParams, PrefixParams, read_base
from glm2core.text.tokenizer import train_tokenizer
from tests.fuzz.harness import peak_mib, refused, run_fuzzer
from tests.fuzz.spoiler import CONFIG, Spoiler, save_tensors

FOLDERS = 500
SECONDS = 30  # for one folder
MOST_MIB = 2048
ARGUMENTS = {"device": "cpu", "dtype": "float32", "seed": 0, "max_new_tokens": 2, "temperature": 0.0, "top_p": 0.8}
QUESTION = [{"role": "user", "content": "Hi"}]


def make_good_folders(folder: Path) -> dict[str, Path]:
    """One folder of each kind that is taken: whole, as .bin, sharded both ways, LoRA and prefix."""
    tokenizer = train_tokenizer(["one text and another, with 12 lines\nand more"] * 5, 300)
    network = ChatGLM2ForCausalLM(ChatGLM2Config(**CONFIG))
    initialize(network, "default", 1)
    good = {kind: folder / kind for kind in ("whole", "bin", "shards", "bin-shards", "lora", "ptuning")}
    network.save_pretrained(good["whole"])
    tokenizer.save(good["whole"], "chatglm2")
    weights = load_file(good["whole"] / "model.safetensors")
    for kind in ("bin", "shards", "bin-shards"):
        shutil.copytree(good["whole"], good[kind])
        (good[kind] / "model.safetensors").unlink()
    torch.save(weights, good["bin"] / "pytorch_model.bin")
    halves = list(weights)[: len(weights) // 2], list(weights)[len(weights) // 2 :]
    for kind, stem, suffix in (("shards", "model", "safetensors"), ("bin-shards", "pytorch_model", "bin")):
        names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
        for name, half in zip(names, halves, strict=True):
            save_tensors({key: weights[key] for key in half}, good[kind] / name)
        weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        (good[kind] / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for method in ("lora", "ptuning"):
        base = load_model(good["whole"], dtype=torch.float32, notice=silent)
        model = adapt(base, method, LoraParams(rank=2), PrefixParams(length=3))
        good[method].mkdir()
        save_adapter(model, good[method], reference_to(good["whole"], own=True), good["whole"])
        tokenizer.save(good[method], "chatglm2")
    return good


def silent(_: str) -> None:
    pass


def refingerprint(folder: Path) -> None:
    """Let an adapter take its base as it is now, so that more than the fingerprint is tried."""
    file = folder / "base.json"
    try:
        values = json.loads(file.read_text())
        values["fingerprint"] = reference_to(folder / "base", own=True).fingerprint
        file.write_text(json.dumps(values))
    except (UserError, OSError, ValueError, TypeError, RecursionError):
        pass


def check(folder: Path, out: Path, *, exported: bool = False) -> str:
    """Use a folder as the commands do; returns `answered` or `refused`. Anything else is a fault."""
    try:
        read_base(folder)
        sha256_folder(folder)
        answerer = load_answerer(argparse.Namespace(base=None, model=folder, **ARGUMENTS), silent)
        answerer.answer([QUESTION])
        if exported:
            export_hf(folder, out, notice=silent)
            shutil.rmtree(out)
    except UserError as error:
        return refused(error, 4000)
    return "answered"


def fuzz(seed: int, count: int, work: Path) -> None:
    """Try `count` folders and print what became of them; the first fault's folder stays."""
    torch.set_num_threads(1)
    good = make_good_folders(work / "good")
    mark = work / "code-ran"
    spoiler, tally = Spoiler(seed, mark), Counter[str]()
    for kind, folder in good.items():
        assert check(folder, work / "out") == "answered", kind
    for number in range(count):
        kind = spoiler.rng.choice(sorted(good))
        folder = work / "tried" / f"{seed}-{number}-{kind}"
        shutil.copytree(good[kind], folder)
        how, must_be_refused = spoiler.change(folder)
        if (folder / "base").is_dir() and (how == "ignored" or spoiler.rng.random() < 0.7):
            refingerprint(folder)
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # in C code, too, which no signal handler would end
        exported = spoiler.rng.random() < (0.5 if how == "tokenizer" else 0.01)
        found = check(folder, work / "out", exported=exported)
        faulthandler.cancel_dump_traceback_later()
        assert found == "refused" or not must_be_refused, f"{folder.name}: {how} was taken"
        assert found == "answered" or how != "ignored", f"{folder.name}: {how} was refused"
        assert not mark.exists(), f"{folder.name}: code ran"
        tally[found] += 1
        tally[f"{how} {found}"] += 1
        shutil.rmtree(folder)
    print(json.dumps({**tally, "peak_mib": peak_mib()}))


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(3))
def test_hostile_folders_answer_or_are_refused(tmp_path: Path, nth: int, request: pytest.FixtureRequest) -> None:
    found = run_fuzzer("test_weights", nth, FOLDERS, tmp_path, request)
    assert found["answered"] > FOLDERS // 10 and found["refused"] > FOLDERS // 3
    assert found["peak_mib"] < MOST_MIB


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
