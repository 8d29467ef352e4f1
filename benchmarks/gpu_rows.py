"""Measures the rows of benchmarks/gpu.py: ours, and the alternative on the same weights and training rows."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from transformers import GlmForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.train_data import write_released_weights
from benchmarks.train_small import Figures, NoCheckpoints, padded
from glm2core.estimate.fit import available_memory, with_recomputation
from glm2core.estimate.memory import GIB, Workload, network_config, training_memory
from glm2core.evaluation.retrieval import answer_questions, read_context
from glm2core.hardware import peak_memory_gib
from glm2core.labels import IGNORED
from glm2core.model.convert_glm import glm_config, glm_state_dict
from glm2core.model.cost import Cost
from glm2core.model.loading import load_model
from glm2core.model.quantization import quantization_config
from glm2core.params import FIT, LoraParams, ModelParams, TrainParams
from glm2core.text.dataset import TokenizedDataset, TokenizedInfo
from glm2core.training.measure import matrix_rate
from glm2core.training.methods import prepare
from glm2core.training.run import Run

GLM_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
SUPERVISED = 0.4  # of a row's tokens
QUESTIONS, QUESTION_TOKENS, NEW_TOKENS = 25, 20, 24
_FULL: dict[str, Any] = {"memory": "low", "optimizer": "adafactor", "max_grad_norm": None}


@dataclass(frozen=True)
class Row:
    """What is trained.

    Args:
        words: the row's name in the table.
        lengths: numbers of tokens in the training rows of one batch, longest first.
        beside: whether to measure the alternative, too, which is transformers' Glm with peft's LoRA under Trainer.
        steps: number of steps, of which the fastest counts.
    """

    words: str
    method: str
    lengths: tuple[int, ...]
    bits: int | None = None
    rank: int = 8
    dtype: str = "bfloat16"
    beside: bool = False
    steps: int = 6


ALPACA = tuple(range(500, 100, -57))  # 8 rows, 300 tokens on average
TRAINED = {
    "lora-8192": Row("LoRA bf16, 8,192", "lora", (8192,), beside=True),
    "record": Row("LoRA bf16, 4,096 x 2, rank 16", "lora", (4096, 4096), rank=16),
    "qlora-8192": Row("QLoRA nf4, 8,192", "qlora", (8192,), bits=4, beside=True),
    "lora-2048": Row("LoRA bf16, 2,048", "lora", (2048,), beside=True),
    "alpaca": Row("LoRA bf16, 8 rows of 300 in the mean", "lora", ALPACA, beside=True),
    "full-2048": Row("full, memory low, 2,048", "full", (2048,)),
    "float16-2048": Row("LoRA float16 with loss scaling, 2,048", "lora", (2048,), dtype="float16"),
    "int8-2048": Row("QLoRA int8, 2,048", "qlora", (2048,), bits=8, beside=True),
    "ptuning-2048": Row("P-tuning bf16, 2,048", "ptuning", (2048,)),
    "lora-65536": Row("LoRA bf16, 65,536", "lora", (65536,), steps=2),
}
READ = {"read-32768": 32768}


def measure(name: str, work: Path, preset: str, device: torch.device, shorter: int) -> Figures:
    """Measure one row; the prefix `glm-` means the alternative, and `weights` writes the weights that all rows load.

    Args:
        work: the folder of the weights.
        shorter: number by which the lengths are divided.
    """
    weights, glm = work / "weights", work / "glm"
    if name == "weights":
        write_released_weights(weights, preset, device)
        _write_glm(weights, glm)
        return {}
    if name == "rate":
        return {str(dtype).removeprefix("torch."): matrix_rate(dtype, device) for dtype in (torch.bfloat16,)}
    if name in READ:
        return _read(weights, device, READ[name] // shorter)
    row = TRAINED[name.removeprefix("glm-")]
    lengths = tuple(max(16, length // shorter) for length in row.lengths)
    rows = rows_of(lengths)
    if name.startswith("glm-"):
        return _glm_trainer(glm, row, rows, device)
    return _ours(weights, work, row, rows, device)


def rows_of(lengths: tuple[int, ...]) -> TokenizedDataset:
    """Make rows of random ids, and supervise the last two fifths of each row."""
    random, flat = np.random.default_rng(0), []
    labels = []
    for length in lengths:
        ids = random.integers(3, 1000, length).astype(np.int32)
        flat.append(ids)
        labels.append(np.where(np.arange(length) < length - round(length * SUPERVISED), IGNORED, ids))
    ends, counts = np.cumsum([0, *lengths]), np.arange(len(lengths) + 1)
    values = {
        "input_ids": np.concatenate(flat),
        "labels": np.concatenate(labels).astype(np.int32),
        "segments": np.zeros(len(lengths), np.int32),
    }
    names = pa.chunked_array([[f"row{number}" for number in range(len(lengths))]])
    offsets = {"input_ids": ends, "labels": ends, "segments": counts}
    return TokenizedDataset(
        names, pa.chunked_array([["rows"] * len(lengths)]), values, offsets, TokenizedInfo("", "", "", "")
    )


def _ours(weights: Path, work: Path, row: Row, rows: TokenizedDataset, device: torch.device) -> Figures:
    """Train as the train stage does, and recompute only as many blocks as memory requires."""
    tokens, dtype = int(rows.lengths.sum()), getattr(torch, row.dtype)
    params = TrainParams.model_validate(
        {
            "method": row.method,
            "quantization_bits": row.bits,
            "device": device.type,
            "dtype": row.dtype,
            "batch_tokens": int(rows.lengths.max()) * len(rows),
            "gradient_checkpointing": False if row.method == "ptuning" else FIT,
            "max_steps": row.steps,
            "logging_steps": 1,
            "learning_rate": 1e-4,
            "lora": {"rank": row.rank},
            **(_FULL if row.method == "full" else {}),
        }
    )
    model = ModelParams(base=str(weights), family="chatglm2")
    longest = int(rows.lengths.max())
    workload = Workload(network_config(model, 0), dtype, device.type, longest, SUPERVISED, from_files=True)
    params = with_recomputation(params, workload, available_memory(device))
    prepared = prepare(model, params, vocab_size=0, dtype=dtype, device=device, work_folder=work)
    checkpoints = NoCheckpoints(work / "run")
    with checkpoints.locked():
        outcome = Run(prepared, params, rows, rows, dtype=dtype, device=device, checkpoints=checkpoints).train()
    step = min(tokens / rate for _, rate in outcome.progress.curve("tokens_per_second")[1:])
    cost = Cost(prepared.network.config, backward_factor=2 if row.method == "full" else 1)
    return {
        "step": step,
        "tokens": float(tokens),
        "operations": cost.operations(torch.from_numpy(np.asarray(rows.lengths)), rows.supervised_tokens),
        "peak_gib": peak_memory_gib(device),
        "estimate_gib": training_memory(workload, params).total / GIB,
        "recomputed": params.recomputed_blocks(prepared.network.config.num_layers),
    }


def _glm_trainer(weights: Path, row: Row, rows: TokenizedDataset, device: torch.device) -> Figures:
    """Train transformers' Glm with peft's LoRA under Trainer: the same weights and rank, with users' usual settings."""
    lora, dtype = LoraParams(rank=row.rank), getattr(torch, row.dtype)
    quantized = {"quantization_config": quantization_config(row.bits, dtype, device)} if row.bits else {}  # type: ignore[arg-type]
    model: Any = GlmForCausalLM.from_pretrained(weights, dtype=dtype, device_map=device, **quantized)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=GLM_TARGETS
    )
    model = get_peft_model(model, adapter)
    timer = _Timer(device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=row.steps,
            per_device_train_batch_size=len(rows),
            learning_rate=1e-4,
            bf16=row.dtype == "bfloat16",
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=device.type == "cpu",
        )
        data = [rows.row(index) for index in range(len(rows))] * row.steps
        Trainer(model, arguments, train_dataset=data, data_collator=padded, callbacks=[timer]).train()
    return {"step": min(timer.seconds[1:]), "peak_gib": peak_memory_gib(device)}


class _Timer(TrainerCallback):
    """Records the seconds of each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(self._now() - self._started)

    def of(self, work: Callable[[], Any]) -> Any:
        """Time `work`, and return its result."""
        self.on_step_begin()
        result = work()
        self.on_step_end()
        return result

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _read(weights: Path, device: torch.device, tokens: int) -> Figures:
    """Read a context once, in one chunk, and answer all questions about it."""
    model = load_model(weights, dtype=torch.bfloat16, device=device, family="chatglm2")
    ids = torch.randint(3, 1000, (tokens,)).tolist()
    questions = [torch.randint(3, 1000, (QUESTION_TOKENS,)).tolist() for _ in range(QUESTIONS)]
    read_context(model, ids[:512], 512)  # the first call chooses kernels
    timer = _Timer(device)
    context = timer.of(lambda: read_context(model, ids, tokens))
    timer.of(lambda: answer_questions(context, questions, NEW_TOKENS, frozenset()))
    return {"read": timer.seconds[0], "answered": timer.seconds[1], "peak_gib": peak_memory_gib(device)}


def _write_glm(weights: Path, folder: Path) -> None:
    model = load_model(weights, dtype=torch.bfloat16, family="chatglm2")
    with torch.device("meta"):
        glm = GlmForCausalLM(glm_config(model.config)).to(torch.bfloat16)
    glm.load_state_dict(glm_state_dict(model.state_dict(), model.config), assign=True)
    glm.save_pretrained(folder)
