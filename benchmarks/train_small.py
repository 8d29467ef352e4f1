"""Measures rows 1, 2, 3, 6 and 7 of benchmarks/train.py: our trainer and others on a small network and equal data."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GlmForCausalLM, Trainer, TrainingArguments

from glm2core.labels import IGNORED
from glm2core.model.convert_glm import glm_config
from glm2core.model.presets import preset_config
from glm2core.params import ModelParams, TrainParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.methods import prepare
from glm2core.training.run import Outcome, Run

PADDED = 500
BATCH = 8
LEARNING_RATE = 1e-3
CPU = torch.device("cpu")

Figures = dict[str, float]


class TimedCheckpoints(CheckpointFolder):
    """Checkpoints that record the time of their writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=1, notice=print)
        self.seconds: list[float] = []

    def save(self, step: int, write: Callable[[Path], None], *, best_step: int | None = None) -> bool:
        started = time.perf_counter()
        saved = super().save(step, write, best_step=best_step)
        self.seconds.append(time.perf_counter() - started)
        return saved


class NoCheckpoints(CheckpointFolder):
    """Writes no checkpoints, because they are not measured, and 6.24 B parameters take 12.5 GB per write."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=1, notice=print)

    def save(self, step: int, write: Callable[[Path], None], *, best_step: int | None = None) -> bool:
        return False


def ours(preset: str, rows: tuple[TokenizedDataset, TokenizedDataset], steps: int) -> Figures:
    """Train as the train stage does, and return the real tokens per second and the MFU."""
    outcome = _train(preset, rows, steps=steps, dtype="bfloat16")
    points = [record for record in outcome.progress.records if "loss" in record and record["step"] > warm(steps)]
    return {name: statistics.mean(point[name] for point in points) for name in ("tokens_per_second", "mfu")}


def original(preset: str, rows: tuple[TokenizedDataset, TokenizedDataset], steps: int) -> Figures:
    """Train with the original's recipe: fp32, one row per step, padded to 500 and masked, all logits, plain AdamW."""
    model = GlmForCausalLM(glm_config(preset_config(preset))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    order = np.random.default_rng(0).permutation(len(rows[0]))
    meter = _Meter(warm(steps))
    for step in range(steps):
        batch = padded([rows[0].row(int(order[step % len(order)]))], to=PADDED)
        meter.start_step(batch)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"tokens_per_second": meter.rate()}


def glm_trainer(preset: str, rows: tuple[TokenizedDataset, TokenizedDataset], steps: int) -> Figures:
    """Train transformers' own Glm of the same shape under Trainer: bf16 weights, batches of 8 padded to the longest."""
    model = GlmForCausalLM(glm_config(preset_config(preset))).to(torch.bfloat16)
    meter = _Meter(warm(steps))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        data = [rows[0].row(index) for index in range(len(rows[0]))]
        _MeteredTrainer(model, arguments, train_dataset=data, data_collator=padded, meter=meter).train()
    return {"tokens_per_second": meter.rate()}


def validation_losses(preset: str, rows: tuple[TokenizedDataset, TokenizedDataset], steps: int) -> Figures:
    """Return the validation losses after the same batches with bf16 and master weights, and with plain fp32 AdamW."""
    losses = {
        name: _train(preset, rows, steps=steps, dtype=name).metrics["validation_loss"]
        for name in ("bfloat16", "float32")
    }
    return {**losses, "difference": abs(losses["bfloat16"] / losses["float32"] - 1)}


def checkpoint_cost(preset: str, rows: tuple[TokenizedDataset, TokenizedDataset], steps: int) -> Figures:
    """Compare the seconds that writing a checkpoint takes with those of the default number of steps between two."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = TimedCheckpoints(Path(folder) / "run")
        outcome = _train(preset, rows, steps=steps, dtype="bfloat16", checkpoints=checkpoints)
    step = outcome.metrics["seconds"] / steps
    write, interval = statistics.median(checkpoints.seconds), TrainParams().save_steps
    return {"write": write, "step": step, "share": write / (step * interval + write)}


def _train(
    preset: str,
    rows: tuple[TokenizedDataset, TokenizedDataset],
    *,
    steps: int,
    dtype: str,
    checkpoints: CheckpointFolder | None = None,
) -> Outcome:
    points = max(1, steps // 6)
    params = TrainParams.model_validate(
        {
            "device": "cpu",
            "dtype": dtype,
            "max_steps": steps,
            "logging_steps": points,
            "save_steps": max(1, steps // 3),
            "learning_rate": LEARNING_RATE,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        kept = checkpoints or NoCheckpoints(Path(folder) / "run")
        prepared = prepare(
            ModelParams(preset=preset),
            params,
            vocab_size=preset_config(preset).padded_vocab_size,
            dtype=getattr(torch, dtype),
            device=CPU,
            work_folder=Path(folder),
        )
        with kept.locked():
            return Run(prepared, params, *rows, dtype=getattr(torch, dtype), device=CPU, checkpoints=kept).train()


def padded(rows: list[tuple[np.ndarray, ...]], to: int | None = None) -> dict[str, Tensor]:
    """Return input_ids, labels and attention_mask [B, T], right-padded to the longest row or to `to` tokens."""
    longest = to or max(len(row[0]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        tokens = len(row[0])
        ids[index, :tokens] = torch.from_numpy(row[0])
        labels[index, :tokens] = torch.from_numpy(row[1])
        mask[index, :tokens] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def warm(steps: int) -> int:
    """Return how many steps are not timed, because kernels are chosen for every new shape."""
    return steps // 2


class _Meter:
    """Measures the real tokens per second of all steps after the first `warm` steps."""

    def __init__(self, warm: int) -> None:
        self._warm, self._steps, self._tokens, self._started = warm, 0, 0, 0.0

    def start_step(self, batch: dict[str, Tensor]) -> None:
        if self._steps == self._warm:
            self._started = time.perf_counter()
        if self._steps >= self._warm:
            self._tokens += int(batch["attention_mask"].sum())
        self._steps += 1

    def rate(self) -> float:
        """Return the rate; call this when the last step ends."""
        return self._tokens / (time.perf_counter() - self._started)


class _MeteredTrainer(Trainer):
    def __init__(self, *args: Any, meter: _Meter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._meter = meter

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        self._meter.start_step(inputs)
        return super().training_step(model, inputs, *args, **kwargs)
