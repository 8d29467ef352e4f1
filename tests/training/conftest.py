"""A tokenized project of short random rows, and a small network, for tests around training."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from glm2core.labels import IGNORED
from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from glm2core.params import TrainParams
from glm2core.text.dataset import SCHEMA, TokenizedDataset, TokenizedInfo
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer
from tests.workspace import folder_bytes as folder_bytes

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {
    "device": "cpu",
    "dtype": "bfloat16",
    "max_steps": 12,
    "batch_tokens": 192,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "eval_steps": 4,
    "save_steps": 2,
    "threads": 1,
    "lora": {"rank": 4, "dropout": 0.1},
    "prefix": {"length": 5},
}


def train_params(**changes: object) -> TrainParams:
    return TrainParams.model_validate(TRAIN | changes)


def small_tokenizer() -> SpTokenizer:
    return train_tokenizer((f"question {i} answer {i * 7} 问题 {i}\n" for i in range(200)), 300)


def tiny_model(dtype: torch.dtype = torch.float32, **changes: object) -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "num_layers": 2,
        "padded_vocab_size": 320,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "kv_channels": 16,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "seq_length": 2048,
    }
    return ChatGLM2ForCausalLM(ChatGLM2Config(**(sizes | changes))).to(dtype)


def write_rows(path: Path, tokenizer_sha256: str, rows: int, seed: int = 0, sources: Sequence[str] = ()) -> None:
    """Rows whose answer repeats the question's ids, so that there is something to learn."""
    random = np.random.default_rng(seed)
    table: dict[str, list[object]] = {"id": [], "source": [], "input_ids": [], "labels": [], "segments": []}
    for index in range(rows):
        words = random.integers(10, 300, int(random.integers(4, 20))).tolist()
        ids = [5, 6, *words, 7, *words, 2]
        table["id"].append(f"row{index}")
        table["source"].append(sources[index] if sources else "rows.json")
        table["input_ids"].append(ids)
        table["labels"].append([IGNORED] * (len(words) + 3) + ids[len(words) + 3 :])
        table["segments"].append([0, 2, len(words) + 2])
    info = TokenizedInfo(tokenizer_sha256, "chatglm2", "0" * 64, "glm2")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pydict(table, SCHEMA.with_metadata(vars(info))), path)


def write_project(folder: Path, train: dict[str, object] | None = None, model: dict[str, object] | None = None) -> None:
    """A project after its tokenize stage."""
    tokenizer = small_tokenizer()
    tokenizer.save(folder / "data/tokenized/tokenizer", "chatglm2")
    write_rows(folder / "data/tokenized/train.parquet", tokenizer.sha256, 60)
    write_rows(folder / "data/tokenized/validation.parquet", tokenizer.sha256, 8, seed=1)
    write_params(folder, train, model)


def write_params(folder: Path, train: dict[str, object] | None = None, model: dict[str, object] | None = None) -> None:
    sections = {
        "convert": {"sources": [{"path": "data/raw/rows.json"}]},
        "tokenize": {},
        "model": model or {},
        "train": TRAIN | (train or {}),
        "evaluate": {},
    }
    (folder / "params.yaml").write_text(json.dumps(sections), encoding="utf-8")


def start_stage(folder: Path, processes: int = 1) -> subprocess.Popen[str]:
    """The train stage in a process of its own, or in several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DVC_ROOT": str(folder)}
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "stages.train"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def rows(tmp_path: Path) -> TokenizedDataset:
    write_rows(tmp_path / "train.parquet", "0" * 64, 60)
    return TokenizedDataset.load(tmp_path / "train.parquet")


@pytest.fixture
def held_out(tmp_path: Path) -> TokenizedDataset:
    write_rows(tmp_path / "validation.parquet", "0" * 64, 8, seed=1)
    return TokenizedDataset.load(tmp_path / "validation.parquet")
