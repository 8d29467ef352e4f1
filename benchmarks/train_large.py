"""Measures the rows of benchmarks/train.py for a large network, on a CPU with weight files in the released layout."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks.train_data import anonymous_peak
from benchmarks.train_small import CPU, Figures, NoCheckpoints
from glm2core.estimate.fit import with_recomputation
from glm2core.estimate.memory import GIB, Workload, network_config, training_memory
from glm2core.export.hf import export_hf
from glm2core.hardware import computes_in
from glm2core.labels import IGNORED
from glm2core.params import FIT, ModelParams, TrainParams
from glm2core.text.dataset import TokenizedDataset, TokenizedInfo
from glm2core.text.tokenizer import train_tokenizer
from glm2core.training.measure import matrix_rate
from glm2core.training.methods import Prepared, prepare
from glm2core.training.run import Run

LOW = {
    "gradient_checkpointing": FIT,  # into ROOM
    "method": "full",
    "memory": "low",
    "optimizer": "adafactor",
    "max_grad_norm": None,
    "learning_rate": 1e-4,
}
NF4 = {"method": "qlora", "quantization_bits": 4, "gradient_checkpointing": True, "learning_rate": 2e-4}
LORA = {"method": "lora", "learning_rate": 1e-4}
# Memory limit of full tuning; a tenth of it is kept free, as for every run.
ROOM = 17.5 * GIB
# Operations per weight and token: 2 in forward and 4 in backward. A second forward would add 2, which LOW avoids.
OPERATIONS = 6
DTYPE = torch.bfloat16
SUPERVISED = 0.4  # of the row's tokens


def full(weights: Path, work: Path, *, tokens: int, steps: int) -> Figures:
    """Measure full tuning with `memory: low` on one fixed row: peak, share of the matrix rate, step time and loss."""
    rows = fixed_row(tokens)
    params = with_recomputation(_params(LOW, tokens, steps), _workload(weights, tokens), ROOM)
    rate = matrix_rate(DTYPE, CPU)
    with anonymous_peak() as peak:
        prepared = _prepare(weights, work, params)
        both = forward_and_backward(prepared.network, rows)
        figures = _run(prepared, params, rows, work)
    rate = max(rate, matrix_rate(DTYPE, CPU))
    weights_count = sum(parameter.numel() for parameter in prepared.network.parameters())
    return {
        **figures,
        "peak_gib": peak[0],
        "estimate_gib": _estimate(weights, params, tokens),
        "recomputed": params.recomputed_blocks(prepared.network.config.num_layers),
        "forward_and_backward": both,
        "update": figures["step"] - both,
        "rate": rate,
        "share_target": 0.8 if computes_in(DTYPE, CPU) else 0.6,
        "share": OPERATIONS * weights_count * tokens / both / rate,
    }


def quantized(weights: Path, work: Path, *, tokens: int, steps: int) -> Figures:
    """Measure the peak of qlora with nf4 weights on the same row, including loading."""
    params = _params(NF4, tokens, steps)
    with anonymous_peak() as peak:
        figures = _run(_prepare(weights, work, params), params, fixed_row(tokens), work)
    return {**figures, "peak_gib": peak[0], "estimate_gib": _estimate(weights, params, tokens)}


def exported(weights: Path, work: Path, *, data: Path) -> Figures:
    """Measure the seconds and the peak of exporting and checking a LoRA, which is random and not trained."""
    folder = work / "lora"
    prepared = _prepare(weights, work, _params(LORA, tokens=1, steps=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prepared.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.01, generator=generator)
    folder.mkdir()
    prepared.save(folder)
    rows = prepared.network.config.padded_vocab_size
    del prepared
    train_tokenizer(data.read_text("utf-8").splitlines(), min(8000, rows - 64)).save(folder, "chatglm2")
    started = time.perf_counter()
    with anonymous_peak() as peak:
        export_hf(folder, work / "exported")
    return {"seconds": time.perf_counter() - started, "peak_gib": peak[0]}


def forward_and_backward(network: nn.Module, rows: TokenizedDataset) -> float:
    """Return the seconds of one step without its update; each gradient is dropped as soon as it is computed."""
    ids, labels = (torch.from_numpy(part).long()[None] for part in rows.row(0)[:2])

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(drop) for parameter in network.parameters()]
    network.train()
    seconds = []
    for _ in range(2):  # the first chooses kernels and touches pages
        started = time.perf_counter()
        network(input_ids=ids, labels=labels).loss.backward()
        seconds.append(time.perf_counter() - started)
    for handle in handles:
        handle.remove()
    return min(seconds)


def fixed_row(tokens: int) -> TokenizedDataset:
    """Make one row of random ids, and supervise its last two fifths."""
    ids = np.random.default_rng(0).integers(3, 1000, tokens).astype(np.int32)
    labels = ids.copy()
    labels[: tokens - round(tokens * SUPERVISED)] = IGNORED
    ends = np.array([0, tokens])
    flat = {"input_ids": ids, "labels": labels, "segments": np.zeros(1, np.int32)}
    offsets = {"input_ids": ends, "labels": ends, "segments": np.array([0, 1])}
    return TokenizedDataset(
        pa.chunked_array([["row"]]), pa.chunked_array([["row"]]), flat, offsets, TokenizedInfo("", "", "", "")
    )


def _params(changes: dict[str, Any], tokens: int, steps: int) -> TrainParams:
    common = {
        "device": "cpu",
        "dtype": "bfloat16",
        "max_steps": steps,
        "batch_tokens": tokens,
        "logging_steps": 1,
        "warmup_fraction": 0.0,
        "schedule": "constant",
    }
    return TrainParams.model_validate(common | changes)


def _estimate(weights: Path, params: TrainParams, tokens: int) -> float:
    """Estimate the memory of the run in GiB, without file pages."""
    return training_memory(_workload(weights, tokens), params).total / GIB


def _workload(weights: Path, tokens: int) -> Workload:
    config = network_config(ModelParams(base=str(weights), family="chatglm2"), 0)
    return Workload(config, DTYPE, "cpu", tokens, SUPERVISED, from_files=True)


def _prepare(weights: Path, work: Path, params: TrainParams) -> Prepared:
    model = ModelParams(base=str(weights), family="chatglm2")
    return prepare(model, params, vocab_size=0, dtype=DTYPE, device=CPU, work_folder=work)


def _run(prepared: Prepared, params: TrainParams, rows: TokenizedDataset, work: Path) -> Figures:
    checkpoints = NoCheckpoints(work / "run")
    with checkpoints.locked():
        outcome = Run(prepared, params, rows, rows, dtype=DTYPE, device=CPU, checkpoints=checkpoints).train(
            lambda metrics, step: print(f"  step {step}: {metrics}", flush=True)
        )
    losses = [loss for _, loss in outcome.progress.curve("loss")]
    later = [len(rows.row(0)[0]) / rate for _, rate in outcome.progress.curve("tokens_per_second")][1:]
    return {"step": min(later), "first_loss": losses[0], "last_loss": losses[-1]}
