"""A small random network and a tokenizer trained on the wording of the tasks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from glm2core.labels import IGNORED
from glm2core.lines.records import generate_conversations
from glm2core.model import ChatGLM2Config, ChatGLM2ForCausalLM
from glm2core.model.rope import linear_rope
from glm2core.params import GeneratedLines
from glm2core.text.dataset import SCHEMA, TokenizedInfo
from glm2core.text.tokenizer import SpTokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> SpTokenizer:
    return small_tokenizer()


def small_tokenizer() -> SpTokenizer:
    spec = GeneratedLines(conversations=20, lines=[40], questions=3)
    return train_tokenizer((message["content"] for row in generate_conversations(spec) for message in row), 700)


def tiny_config(tokenizer: SpTokenizer, **changes: object) -> ChatGLM2Config:
    sizes = {
        "num_layers": 2,
        "padded_vocab_size": len(tokenizer),
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "kv_channels": 16,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "seq_length": 2048,
        "rope_parameters": linear_rope(4),
    }
    return ChatGLM2Config(**(sizes | changes))


def random_model(config: ChatGLM2Config) -> ChatGLM2ForCausalLM:
    """Weights large enough that every earlier token matters to the next."""
    torch.manual_seed(0)
    model = ChatGLM2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=2.0 / parameter.shape[1] ** 0.5 if "embedding" not in name else 1.0)
    return model


@pytest.fixture(scope="session")
def model(tokenizer: SpTokenizer) -> ChatGLM2ForCausalLM:
    return random_model(tiny_config(tokenizer))


def write_random_rows(path: Path, tokenizer: SpTokenizer) -> None:
    """A tokenized file of 12 rows of 5 to 60 tokens; every third has two answers."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        length = int(rng.integers(5, 60))
        input_ids = rng.integers(3, 600, length)
        labels = np.where(np.arange(length) >= length // 2, input_ids, IGNORED)
        if index % 3 == 0:
            labels[1] = input_ids[1]
        rows.append({"id": f"row{index}", "input_ids": input_ids, "labels": labels, "segments": [0]})
    info = TokenizedInfo(tokenizer.sha256, "chatglm2", "-", "glm2")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(vars(info))), path)
