"""One training run: from its start, or from its last checkpoint, to its end."""

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from glm2core.console import progress_bar
from glm2core.errors import UserError
from glm2core.files import atomic_path, write_json
from glm2core.hardware import peak_memory_gib
from glm2core.model.adapters import multiplies_in_half
from glm2core.params import TrainParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.arguments import training_arguments
from glm2core.training.batches import training_batches, validation_batches
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.interrupt import StopRequest, stop_on_signals
from glm2core.training.measure import Cost, matrix_rate
from glm2core.training.methods import Prepared, multiply_adapters_in_half
from glm2core.training.processes import anywhere, first_decides, is_first, meet, rank, summed, world_size
from glm2core.training.progress import Progress, Record, Report
from glm2core.training.trainer import GlmTrainer

Notice = Callable[[str], None]

_CURVES = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "peak_memory_gib")
_VALIDATION = ("step", "validation_loss")


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        learning_rate: peak, after warm-up.
        dtype: that the network computes in; `mfu` is measured against this dtype's matrix rate.
        position_range: positions are stretched over so many; None = plain.
        report: gets every point of the curves with its step.
        notice: is told in sentences what happens besides.
    """

    prepared: Prepared
    params: TrainParams
    training: TokenizedDataset
    validation: TokenizedDataset
    learning_rate: float
    dtype: torch.dtype
    device: torch.device
    checkpoints: CheckpointFolder
    report: Report
    position_range: int | None = None
    notice: Notice = print

    def train(self) -> "Outcome":
        """Train to `params.max_steps`, or until validation no longer gets better.

        The checkpoint folder's lock must be held. Weights are changed in place.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came; all steps so far are in a checkpoint.
            UserError: no rows, or a loss or gradient that isn't finite.
        """
        self._require_rows()
        meet()  # so that the rates are taken at the same time: processes share memory and power
        (rate,) = summed([matrix_rate(self.dtype, self.device)], self.device)
        progress = Progress(every=self.params.logging_steps, operations_per_second=rate, report=self.report)
        last = first_decides(self.checkpoints.newest)
        shown: AbstractContextManager[tuple[Bar, Any] | None] = (
            progress_bar("train", self.params.max_steps) if is_first() else nullcontext()
        )
        with stop_on_signals(self.notice) as stop, shown as bar:
            trainer = self._trainer(progress, stop)
            if bar is not None:
                trainer.add_callback(_ShowProgress(*bar, progress))
            trainer.args.eval_on_start = last is None and self._validates
            if last is not None:
                self.notice(f"going on from {last.name} of {self.checkpoints.folder}")
            if rank():  # else all processes would drop out the same channels; the first keeps its one seed
                torch.manual_seed(self.params.seed + 1_000_003 * rank())
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            if anywhere(stop.requested, self.device) and trainer.state.global_step < self.params.max_steps:
                self.notice(f"stopped after step {trainer.state.global_step}; dvc repro goes on from the checkpoint")
                raise KeyboardInterrupt
            self._validate_result(trainer, progress)
        return Outcome(self._metrics(trainer, progress), progress)

    def _trainer(self, progress: Progress, stop: StopRequest) -> GlmTrainer:
        params, device = self.params, self.device
        half_products = multiplies_in_half(params.method, self.dtype, device.type)
        if half_products:
            multiply_adapters_in_half(self.prepared.model)
        arguments = training_arguments(
            params, learning_rate=self.learning_rate, output=self.checkpoints.folder, device=device,
            half_products=half_products,
        )  # fmt: skip
        if not self._validates:
            arguments.eval_strategy = IntervalStrategy.NO
        shard: dict[str, Any] = {"rank": rank(), "world": world_size()}
        batches = training_batches(
            self.training,
            batch_tokens=params.batch_tokens,
            total=params.max_steps * params.gradient_accumulation_steps,
            seed=params.seed,
            curriculum=self._curriculum(),
            position_range=self.position_range,
            pin_memory=self.device.type == "cuda",
            **shard,
        )
        return GlmTrainer(
            self.prepared.model,
            arguments,
            batches=batches,
            validation=validation_batches(self.validation, batch_tokens=params.batch_tokens, **shard),
            row_ids=self.training.ids,
            checkpoints=self.checkpoints,
            progress=progress,
            cost=Cost(self.prepared.network.config, backward_factor=2 if params.method == "full" else 1),
            params=params,
            stop=stop,
        )

    @property
    def _validates(self) -> bool:
        return self.validation.supervised_tokens > 0

    def _require_rows(self) -> None:
        if not self.training.supervised_tokens:
            raise UserError("the training split has no supervised row. Add rows.")
        if self._validates:
            return
        if self.params.early_stopping:
            raise UserError(
                "train.early_stopping needs validation, and the validation split has no supervised row. Raise "
                "convert.validation_fraction, add rows, or set train.early_stopping to null."
            )
        self.notice("the validation split has no supervised row: training goes without validation_loss")

    def _curriculum(self) -> list[tuple[float, int]]:
        shortest = int(self.training.lengths.min())
        for number, stage in enumerate(self.params.curriculum):
            if stage.max_tokens < shortest:
                raise UserError(
                    f"train.curriculum[{number}].max_tokens is {stage.max_tokens}, and the shortest training row has "
                    f"{shortest} tokens. Raise it, or add shorter rows."
                )
        return [(stage.until, stage.max_tokens) for stage in self.params.curriculum]

    def _validate_result(self, trainer: GlmTrainer, progress: Progress) -> None:
        """With early stopping the best weights are the result; whatever it is gets its validation loss."""
        if not self._validates:
            return
        best = progress.best_validation()
        if self.params.early_stopping and best and best[0] not in (0, trainer.state.global_step):
            folder = self.checkpoints.path(best[0])
            if folder.is_dir():
                trainer.load_weights(folder)
                self.notice(f"the weights of step {best[0]} are kept: validation loss {best[1]:.4f} was the best")
                return
        steps = [step for step, _ in progress.curve("validation_loss")]
        if trainer.state.global_step not in steps:
            trainer.evaluate()

    def _metrics(self, trainer: GlmTrainer, progress: Progress) -> dict[str, float]:
        losses = [loss for _, loss in progress.curve("loss")]
        validations = [loss for _, loss in progress.curve("validation_loss")]
        totals = progress.totals
        trainable = sum(p.numel() for p in self.prepared.model.parameters() if p.requires_grad)
        metrics: dict[str, float] = {
            "steps": trainer.state.global_step,
            "supervised_tokens": int(totals["supervised"]),
            "tokens": int(totals["tokens"]),
            "seconds": totals["seconds"],
            "tokens_per_second": totals["tokens"] / max(totals["seconds"], 1e-9),
            "mfu": progress.mfu,
            "peak_memory_gib": peak_memory_gib(self.device),
            "trainable_parameters": trainable,
        }
        if validations:
            metrics["validation_loss_before"] = validations[0]
            metrics["validation_loss"] = min(validations) if self.params.early_stopping else validations[-1]
        if losses:
            metrics |= {"train_loss_first": losses[0], "train_loss_last": losses[-1]}
        return metrics


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say: its flat metrics and its curves."""

    metrics: dict[str, float]
    progress: Progress

    def write_metrics(self, path: Path) -> None:
        """The metrics as JSON, for `dvc metrics` and later stages."""
        write_json(path, self.metrics)

    def write_curves(self, folder: Path) -> None:
        """curves.csv (a point every logging_steps) and validation.csv, for `dvc plots`."""
        with atomic_path(folder) as partial:
            partial.mkdir()
            _write_csv(partial / "curves.csv", [r for r in self.progress.records if "loss" in r], _CURVES)
            _write_csv(
                partial / "validation.csv", [r for r in self.progress.records if "validation_loss" in r], _VALIDATION
            )


class _ShowProgress(TrainerCallback):
    """The bar: steps done, time left, loss and speed."""

    def __init__(self, bar: Bar, task: Any, progress: Progress) -> None:
        self._bar, self._task, self._progress = bar, task, progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        latest = self._progress.latest
        described = f"  loss {latest['loss']:.3f}  {latest['tokens_per_second']:,.0f} tokens/s" if latest else ""
        self._bar.update(self._task, completed=state.global_step, description=f"train{described}")


def _write_csv(path: Path, records: list[Record], columns: tuple[str, ...]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
