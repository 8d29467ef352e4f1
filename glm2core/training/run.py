"""One training run, from its start or its last checkpoint to its end."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.progress import Progress as Bar
from torch.utils.data import DataLoader

from glm2core.console import Notice, Report, progress_bar
from glm2core.errors import UserError
from glm2core.files import atomic_path
from glm2core.hardware import peak_memory_gib
from glm2core.model.adapters import multiplies_in_half
from glm2core.model.cost import Cost
from glm2core.params import Settled, TrainParams
from glm2core.report_tables import write_table
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.batches import training_batches, validation_batches
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.distributed import (
    anywhere,
    first_decides,
    is_first,
    is_sharded,
    meet,
    rank,
    summed,
    whole_tensors,
    world_size,
)
from glm2core.training.forecast import Forecast
from glm2core.training.interrupt import stop_on_signals
from glm2core.training.loop import Batch, Loop
from glm2core.training.loss_scale import LossScale
from glm2core.training.measure import matrix_rate
from glm2core.training.methods import Prepared, multiply_adapters_in_half
from glm2core.training.progress import BY_SOURCE, Progress

_CURVES = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "peak_memory_gib")
_VALIDATION = ("step", "validation_loss")
_BY_SOURCE = ("step", "source", "validation_loss")
_MIX = ("source", "tokens", "supervised_tokens")


def unreported(metrics: dict[str, float], step: int) -> None:
    """The default `report`, which ignores the points of a run."""


@dataclass(frozen=True)
class Run:
    """One training run; `session.open_run` makes it from params.

    Args:
        dtype: the dtype in which the network computes; `mfu` is relative to the matrix rate in this dtype.
        position_range: number of positions over which PoSE may spread a row; None = plain positions.
        notice: called with every message for the user.
    """

    prepared: Prepared
    params: TrainParams
    training: TokenizedDataset
    validation: TokenizedDataset
    dtype: torch.dtype
    device: torch.device
    checkpoints: CheckpointFolder
    position_range: int | None = None
    notice: Notice = print

    @property
    def writes(self) -> bool:
        """Whether this process writes files and tracks the run; of several processes, only the first does."""
        return is_first()

    def train(self, report: Report = unreported) -> "Outcome":
        """Train to `params.steps`, or until early stopping.

        The checkpoint folder's lock must be held. Weights are changed in place.

        Args:
            report: called with every point of the curves and its step.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM; all steps so far are in a checkpoint.
            UserError: there are no rows, or a loss or gradient isn't finite.
        """
        self._require_rows()
        meet()  # all must measure their rates at the same time, because processes share memory and power
        (rate,) = summed([matrix_rate(self.dtype, self.device)], self.device)
        progress = Progress(
            every=self.params.logging_steps,
            operations_per_second=rate,
            report=report,
            sources=self.training.source_numbers[0],
        )
        last = first_decides(self.checkpoints.newest)
        shown: AbstractContextManager[tuple[Bar, Any] | None] = (
            progress_bar("train", self.params.steps) if is_first() else nullcontext()
        )
        with stop_on_signals(self.notice) as stop, shown as bar:
            loop = self._loop(progress)
            validation = self._validation_batches()
            if last is not None:
                self.notice(f"resuming from {last.name} in {self.checkpoints.folder}")
                loop.restore(last)
            loop.run(self.batches(start=loop.step), validation, stop=stop, after_step=self._teller(loop, bar))
            if anywhere(stop.requested, self.device) and loop.step < self.params.steps:
                self.notice(f"stopped after step {loop.step}; dvc repro resumes from the checkpoint")
                raise KeyboardInterrupt
            self._validate_result(loop, validation)
        return Outcome(self._metrics(loop), progress)

    def write_model(self, folder: Path, tokenizer: Path, settled: Settled | None = None) -> None:
        """Write the tokenizer and the weights or adapter atomically.

        Every process must call this function, but only the first process writes.

        Args:
            tokenizer: folder with the tokenizer's files, which are copied.
            settled: the settled params, kept beside the weights for evaluate.
        """
        network = self.prepared.network
        weights = whole_tensors(network.state_dict()) if is_sharded(network) else None
        if not self.writes:
            return
        with atomic_path(folder) as partial:
            self.prepared.save(partial, weights)
            if settled is not None:
                settled.write_record(partial)
            for file in sorted(tokenizer.iterdir()):
                shutil.copy2(file, partial / file.name)

    def finish(self) -> None:
        """Mark the run as finished, after its outs are written. The next run then deletes this run's checkpoints."""
        self.checkpoints.finish()

    def batches(self, *, start: int = 0) -> DataLoader[Batch]:
        """The training batches of this process, starting at step `start` (counted from 0)."""
        params = self.params
        return training_batches(
            self.training,
            batch_tokens=params.batch_tokens,
            total=params.steps * params.gradient_accumulation_steps,
            start=start * params.gradient_accumulation_steps,
            seed=params.seed,
            curriculum=self._curriculum(),
            position_range=self.position_range,
            gaps=params.position_gaps,
            pin_memory=self.device.type == "cuda",
            rank=rank(),
            world=world_size(),
        )

    def _validation_batches(self) -> DataLoader[Batch] | None:
        if not self._validates:
            return None
        return validation_batches(
            self.validation, batch_tokens=self.params.batch_tokens, rank=rank(), world=world_size()
        )

    def _loop(self, progress: Progress) -> Loop:
        params = self.params
        in_half = multiplies_in_half(params.method, self.dtype, self.device.type)
        if in_half:
            multiply_adapters_in_half(self.prepared.model)
        return Loop(
            self.prepared.model,
            params,
            device=self.device,
            autocast=self.dtype if in_half else None,
            loss_scale=LossScale() if self.dtype == torch.float16 else None,
            checkpoints=self.checkpoints,
            progress=progress,
            cost=self._cost,
            training=self.training,
            validation=self.validation,
        )

    @property
    def _validates(self) -> bool:
        return self.validation.supervised_tokens > 0

    @property
    def _cost(self) -> Cost:
        return Cost(self.prepared.network.config, backward_factor=2 if self.params.method == "full" else 1)

    def _step_costs(self) -> list[float]:
        """The number of operations in each step of this process."""
        sampler, size = self.batches().batch_sampler, self.params.gradient_accumulation_steps
        assert sampler is not None
        lengths = [torch.from_numpy(self.training.lengths[[row for _, row in batch]]) for batch in sampler]
        costs = [self._cost.operations(of_batch, int(of_batch.sum())) for of_batch in lengths]
        return [sum(costs[first : first + size]) for first in range(0, len(costs), size)]

    def _teller(self, loop: Loop, bar: tuple[Bar, Any] | None) -> Callable[[], None]:
        """Make the function to call after each step, which updates the progress bar and once prints the time left."""
        if bar is None:
            return lambda: None
        params, (shown, task) = self.params, bar
        shorter = "fewer train.max_steps, a smaller train.batch_tokens, or shorter rows (the tokenize section)"
        if params.method == "full":
            shorter += ", or train.method lora"
        forecast = Forecast(self._step_costs, tell=self.notice, shortened_by=shorter)
        shown.update(task, completed=loop.step)

        def tell() -> None:
            latest = loop.progress.latest
            described = f"  loss {latest['loss']:.3f}  {latest['tokens_per_second']:,.0f} tokens/s" if latest else ""
            shown.update(task, completed=loop.step, description=f"train{described}")
            validations = (params.steps - loop.step) / (params.eval_steps or params.steps)
            forecast.add_step(loop.step, besides=validations * loop.validation_seconds)

        return tell

    def _require_rows(self) -> None:
        if not self.training.supervised_tokens:
            raise UserError("the training split has no supervised row. Add rows.")
        if self._validates:
            return
        if self.params.early_stopping:
            raise UserError(
                "train.early_stopping needs validation, but the validation split has no supervised row. Raise "
                "convert.validation_fraction, add rows, or set train.early_stopping to null."
            )
        self.notice("the validation split has no supervised row: training runs without validation_loss")

    def _curriculum(self) -> list[tuple[float, int]]:
        shortest = int(self.training.lengths.min())
        for number, stage in enumerate(self.params.curriculum):
            if stage.max_tokens < shortest:
                raise UserError(
                    f"train.curriculum[{number}].max_tokens is {stage.max_tokens}, but the shortest training row has "
                    f"{shortest} tokens. Raise max_tokens, or add shorter rows."
                )
        return [(stage.until, stage.max_tokens) for stage in self.params.curriculum]

    def _validate_result(self, loop: Loop, validation: DataLoader[Batch] | None) -> None:
        """Restore the best weights after early stopping, and make sure that the result has a validation loss."""
        if validation is None:
            return
        progress = loop.progress
        best = progress.best_validation()
        if self.params.early_stopping and best and best[0] not in (0, loop.step):
            folder = self.checkpoints.path(best[0])
            if folder.is_dir():
                loop.load_weights(folder)
                self.notice(f"keeping the weights of step {best[0]}, whose validation loss is best: {best[1]:.4f}")
                return
        steps = [step for step, _ in progress.curve("validation_loss")]
        if loop.step not in steps:
            loop.validate(validation)

    def _metrics(self, loop: Loop) -> dict[str, Any]:
        progress = loop.progress
        losses = [loss for _, loss in progress.curve("loss")]
        validations = [loss for _, loss in progress.curve("validation_loss")]
        totals = progress.totals
        trainable = sum(p.numel() for p in self.prepared.model.parameters() if p.requires_grad)
        metrics: dict[str, Any] = {
            "steps": loop.step,
            "supervised_tokens": int(totals["supervised"]),
            "tokens": int(totals["tokens"]),
            "seconds": totals["seconds"],
            "tokens_per_second": totals["tokens"] / max(totals["seconds"], 1e-9),
            "mfu": progress.mfu,
            "padding_fraction": progress.padding,
            "peak_memory_gib": peak_memory_gib(self.device),
            "trainable_parameters": trainable,
            "recomputed_blocks": self.params.recomputed_blocks(self.prepared.network.config.num_layers),
        }
        if validations:
            metrics["validation_seconds"] = totals["validation_seconds"]
            metrics["validation_loss_before"] = validations[0]
            metrics["validation_loss"] = min(validations) if self.params.early_stopping else validations[-1]
        if losses:
            metrics |= {"train_loss_first": losses[0], "train_loss_last": losses[-1]}
        metrics["mix"] = progress.mix
        return metrics


@dataclass(frozen=True)
class Outcome:
    """The results of a finished run: its metrics, with the counts by source under `mix`, and its curves."""

    metrics: dict[str, Any]
    progress: Progress

    def write_curves(self, folder: Path) -> None:
        """Write curves.csv (one row per logging_steps), validation.csv, validation_by_source.csv and mix.csv."""
        validations = [p for p in self.progress.points if "validation_loss" in p]
        by_source = [
            {"step": point["step"], "source": name.removeprefix(BY_SOURCE), "validation_loss": loss}
            for point in validations
            for name, loss in point.items()
            if name.startswith(BY_SOURCE)
        ]
        mix = [{"source": source, **counted} for source, counted in self.progress.mix.items()]
        with atomic_path(folder) as partial:
            partial.mkdir()
            _write_csv(partial / "curves.csv", [p for p in self.progress.points if "loss" in p], _CURVES)
            _write_csv(partial / "validation.csv", validations, _VALIDATION)
            _write_csv(partial / "validation_by_source.csv", by_source, _BY_SOURCE)
            _write_csv(partial / "mix.csv", mix, _MIX)


def _write_csv(path: Path, records: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    table = pl.DataFrame(records, infer_schema_length=None) if records else pl.DataFrame(schema=columns)
    write_table(table.select(columns), path)
