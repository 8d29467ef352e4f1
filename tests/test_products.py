"""No product in half precision on a CPU without that arithmetic: every one is recorded, through all that runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glm2core.cli.answering import Answerer, Sampling
from glm2core.cli.chat import Chat
from glm2core.cli.main import main
from glm2core.data.converted import SCHEMA
from glm2core.evaluation.run import Evaluation
from glm2core.export.hf import export_hf
from glm2core.model.adapters import load_tuned
from glm2core.params import EvaluateParams, ModelParams
from glm2core.text.chat_format import ChatFormat
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.tokenizer import SpTokenizer
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.methods import prepare
from glm2core.training.run import Run
from tests.cli.conftest import make_adapter, make_full
from tests.evaluation.conftest import random_model, small_tokenizer, tiny_config, write_random_rows
from tests.training.conftest import tiny_model, train_params, write_rows

PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addbmm",
    "matmul",
    "linear",
    "mv",
    "addmv",
    "addr",
    "dot",
    "vdot",
    "einsum",
    "convolution",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_scaled_dot_product_fused_attention_overrideable",
    "gemm_4bit",
    "gemv_4bit",
    "int8_mixed_scaled_mm",
}
HALVES = (torch.bfloat16, torch.float16)
LOW = {"memory": "low", "optimizer": "adafactor", "max_grad_norm": None}
TRAINED: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "full", "optimizer": "adamw_8bit"},
    {"method": "full", "optimizer": "adafactor"},
    {"method": "full", "optimizer": "muon"},
    {"method": "full", **LOW},
    {"method": "full", **LOW, "gradient_checkpointing": True},
    {"method": "lora"},
    {"method": "qlora", "quantization_bits": 4},
    {"method": "qlora", "quantization_bits": 8},
    {"method": "ptuning"},
]


class Recorder(TorchDispatchMode):
    """Every product with the dtypes that it multiplies, in backward as well."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            operands = [
                value
                for value in (*args, *(kwargs or {}).values())
                if isinstance(value, Tensor) and value.is_floating_point()
            ]
            self.made |= {(name, operand.dtype) for operand in operands}
        return func(*args, **(kwargs or {}))

    @property
    def in_half(self) -> set[tuple[str, torch.dtype]]:
        return {product for product in self.made if product[1] in HALVES}


@pytest.fixture(autouse=True)
def _without_half_precision_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", "avx2")


@pytest.fixture(scope="module")
def tokenizer() -> SpTokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def half_model(tokenizer: SpTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_full(tmp_path_factory.mktemp("half") / "model", tokenizer, dtype=torch.bfloat16)


def recorded(run: Callable[[], object]) -> Recorder:
    with Recorder() as recorder:
        run()
    assert recorder.made
    assert recorder.in_half == set()
    return recorder


def test_the_recorder_sees_products_of_every_kind() -> None:
    half = torch.ones(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(half, half, half).sum().backward()
        torch.nn.functional.linear(half, half[0, 0]).sum().backward()
        (half[0] @ half[1]).sum().backward()
        (half[0, 0] @ half[0, 0, 0]).sum().backward()

    with Recorder() as recorder:
        run()
    names = {name for name, _ in recorder.in_half}
    assert {"mm", "bmm", "mv", "_scaled_dot_product_flash_attention_for_cpu"} <= names
    assert any(name.endswith("_backward") for name in names)


@pytest.mark.parametrize("train", TRAINED, ids=lambda train: "-".join(str(value) for value in train.values()))
def test_training(train: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(torch.bfloat16).save_pretrained(tmp_path / "base")
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.parquet", "0" * 64, 16)
    rows, held_out = (TokenizedDataset.load(tmp_path / f"{split}.parquet") for split in ("train", "validation"))
    params, cpu = train_params(**train, max_steps=2), torch.device("cpu")
    weights = {"dtype": torch.bfloat16, "device": cpu}

    def run() -> None:
        prepared = prepare(
            ModelParams(base=str(tmp_path / "base")),
            params,
            vocab_size=320,
            work_folder=tmp_path,
            notice=str,
            **weights,
        )
        assert prepared.network.dtype == torch.bfloat16
        checkpoints = CheckpointFolder(tmp_path / "run", keep=1, notice=str)
        with checkpoints.locked():
            Run(prepared, params, rows, held_out, checkpoints=checkpoints, notice=str, **weights).train()

    recorded(run)


def test_evaluation(project: Path, tokenizer: SpTokenizer) -> None:
    model, test, converted = Path("tuned"), Path("test.parquet"), Path("converted.parquet")
    random_model(tiny_config(tokenizer)).to(torch.bfloat16).save_pretrained(model)
    tokenizer.save(model, "chatglm2")
    write_random_rows(test, tokenizer)
    said = [{"role": "user", "content": "question"}]
    rows = [{"id": f"row{i}", "source": "rows.json", "messages": said} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), converted)
    retrieval = {
        "lengths": [600],
        "base_lengths": [600],
        "contexts": 1,
        "questions": 2,
        "depths": 2,
        "max_new_tokens": 3,
    }
    params = EvaluateParams.model_validate(
        {
            "device": "cpu",
            "dtype": "bfloat16",
            "retrieval": retrieval,
            "prefill_chunk": 256,
            "generation": {"rows": 4, "batch_size": 4, "max_new_tokens": 4},
        }
    )
    reports = Path("reports")
    reports.mkdir()

    def run() -> None:
        evaluation = Evaluation.load(model, test, converted, params, ModelParams(base=str(model)))
        assert evaluation.model.dtype == torch.bfloat16
        for part in (evaluation.loss, evaluation.answers, evaluation.retrieval):
            part(reports)

    recorded(run)


@pytest.mark.parametrize(
    ("method", "bits"), [("full", None), ("lora", None), ("qlora", 4), ("qlora", 8), ("ptuning", None)]
)
def test_chat_and_predict(
    method: str, bits: int | None, half_model: Path, tokenizer: SpTokenizer, tmp_path: Path
) -> None:
    folder = half_model
    if method != "full":
        folder = make_adapter(tmp_path / "tuned", tokenizer, half_model, method, bits=bits)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "question"}) + "\n" + json.dumps({"prompt": "another, longer"}) + "\n")

    def chat() -> None:
        model = load_tuned(folder, dtype=torch.bfloat16, notice=str)
        talker = Chat(Answerer(model, ChatFormat.load(folder), Sampling(max_new_tokens=3)))
        talker.ask("hello")
        talker.ask("again")

    recorded(chat)
    arguments = ["predict", str(folder), str(rows), "--dtype", "bfloat16", "--max-new-tokens", "3", "--device", "cpu"]
    recorded(lambda: main(arguments))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_export(method: str, dtype: torch.dtype, half_model: Path, tokenizer: SpTokenizer, tmp_path: Path) -> None:
    folder = half_model
    if method != "full":
        folder = make_adapter(tmp_path / "tuned", tokenizer, half_model, method, bits=4)
    recorded(lambda: export_hf(folder, tmp_path / "out", dtype=dtype, notice=str))
