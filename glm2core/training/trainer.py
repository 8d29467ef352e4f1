"""transformers' Trainer with small overrides: our batches, loss checks, curves and checkpoints."""

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from glm2core.errors import UserError
from glm2core.hardware import peak_memory_gib
from glm2core.labels import IGNORED
from glm2core.params import TrainParams
from glm2core.training.adafactor import RoundingAdafactor
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.interrupt import StopRequest
from glm2core.training.measure import Cost
from glm2core.training.optimizer import make_optimizer
from glm2core.training.processes import anywhere, gathered, is_first, meet, rank, summed, world_size
from glm2core.training.progress import Progress
from glm2core.training.sharding import (
    is_sharded,
    put,
    put_optimizer_state,
    whole,
    whole_optimizer_state,
    whole_tensors,
)

_WEIGHTS = "weights.safetensors"
_PROGRESS = "progress.json"
_STATE = "trainer_state.json"
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # as Trainer calls them
_NOT_FOR_THE_MODEL = ("rows", "lengths")


class GlmTrainer(Trainer):
    """Trainer for token-budget batches.

    Args:
        batches, validation: loaders of batching.py's batches.
        row_ids: of the training rows, to name the guilty ones.
        checkpoints: where this run is kept.
        progress: gets every step and validation.
        cost: operations of a batch.
        params: for the optimizer, and when to stop.
        stop: looked at after every step.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        batches: DataLoader[Any],
        validation: DataLoader[Any],
        row_ids: list[str],
        checkpoints: CheckpointFolder,
        progress: Progress,
        cost: Cost,
        params: TrainParams,
        stop: StopRequest,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=batches.dataset,
            eval_dataset=validation.dataset,
            callbacks=[_Flow(params, progress, stop)],
        )
        self.remove_callback(PrinterCallback)
        # The network divides the summed loss by the supervised tokens of the whole accumulation.
        self.model_accepts_loss_kwargs = True
        self._batches, self._validation, self._row_ids = batches, validation, row_ids
        self._checkpoints, self._progress, self._cost, self._params = checkpoints, progress, cost, params

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self._batches

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return self._validation

    @property
    def _network(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    @property
    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                self._network if model is None else model,
                name=self._params.optimizer,
                learning_rate=self.args.learning_rate,
                weight_decay=self._params.weight_decay,
                bias_rate=self._params.bias_rate,
                in_backward=self._params.memory == "low",
                seed=self._params.seed,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As Trainer's, but a loss that isn't finite stops the run here: before backward, before any update."""
        given = {name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_MODEL}
        result = super().compute_loss(model, given, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        supervised, lengths = int((inputs["labels"] != IGNORED).sum()), inputs["lengths"]
        operations = self._cost.operations(lengths, supervised)
        broken = not torch.isfinite(loss)
        tokens, supervised_tokens, operations, any_broken = summed(
            [int(lengths.sum()), supervised, operations, broken], self.args.device
        )
        if any_broken:
            self._refuse_loss(loss.item(), inputs["rows"])
        self._progress.add_batch(tokens, supervised_tokens, operations)
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Each step's loss, and nothing of Trainer's own."""
        if "loss" in logs:
            self._progress.add_step(
                self.state.global_step,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=self._grad_norm(logs),
                peak_memory=peak_memory_gib(self.args.device),
            )

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Validation loss: the sum over all supervised tokens divided by their number."""
        self._network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in dataloader:
                inputs = self._prepare_inputs({k: v for k, v in batch.items() if k not in _NOT_FOR_THE_MODEL})
                supervised = int((batch["labels"] != IGNORED).sum())
                total += torch.tensor([float(self._network(**inputs, num_items_in_batch=1).loss), supervised])
        total = self.accelerator.reduce(total.to(self.args.device))
        loss = float(total[0] / total[1].clamp(min=1))
        self._progress.add_validation(self.state.global_step, loss)
        return EvalLoopOutput(np.empty(0), None, {"eval_loss": loss}, len(dataloader))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Counted by Progress, from real tokens."""
        return 0

    def _refuse_loss(self, loss: float, rows: Tensor) -> None:
        found = gathered((loss, rows.tolist()))
        loss, guilty = next((loss, rows) for loss, rows in found if not math.isfinite(loss))
        ids = ", ".join(self._row_ids[row] for row in guilty)
        raise UserError(
            f"the loss of step {self.state.global_step + 1} is {loss} on the rows {ids}; nothing was updated. "
            "Look at these rows, lower train.learning_rate, or set train.dtype to float32. "
            "The last checkpoint remains."
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called before the update: a gradient that isn't finite must not reach the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = whole(norm) if isinstance(norm, Tensor) else norm
        if not torch.isfinite(torch.as_tensor(norm)):
            raise UserError(
                f"the gradient of step {self.state.global_step + 1} is not finite; nothing was updated. "
                "Lower train.learning_rate, or set train.dtype to float32. The last checkpoint remains."
            )
        return norm

    def _grad_norm(self, logs: dict[str, float]) -> float:
        inner = self._inner_optimizer
        if isinstance(inner, RoundingAdafactor) and inner.in_backward:
            return inner.take_grad_norm()
        return float(logs.get("grad_norm", 0.0))

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._network.named_parameters() if p.requires_grad}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything that resuming needs, atomically; frozen weights are not part of it."""
        best = self._progress.best_validation() if self._params.early_stopping else None
        # Before the first process goes on alone: what all of them take part in.
        random_states = gathered(self._random_state())
        weights = whole_tensors(self._trainable())
        sharded = self._sharded_optimizer_state()

        def write(folder: Path) -> None:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)
            self._write_optimizer(folder, sharded)
            for name, content in random_states:
                (folder / name).write_bytes(content)
            (folder / _PROGRESS).write_text(json.dumps(self._progress.state_dict()), encoding="utf-8")
            self.state.save_to_json(str(folder / _STATE))

        if is_first():
            self._checkpoints.save(self.state.global_step, write, best_step=best[0] if best else None)
        meet()
        self._progress.restart_clock()

    def _random_state(self) -> tuple[str, bytes]:
        """File name and content of this process's random state, as Trainer reads them."""
        state: dict[str, Any] = {
            "python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state(),
        }  # fmt: skip
        several = world_size() > 1
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.random.get_rng_state_all() if several else torch.cuda.random.get_rng_state()
        content = io.BytesIO()
        torch.save(state, content)
        return f"rng_state_{rank()}.pth" if several else "rng_state.pth", content.getvalue()

    def _sharded_optimizer_state(self) -> dict[str, Any] | None:
        if not is_sharded(self._network):
            return None
        assert self.optimizer is not None
        return whole_optimizer_state(self._network, self._inner_optimizer)

    def _write_optimizer(self, folder: Path, sharded: dict[str, Any] | None) -> None:
        if sharded is None:
            self._save_optimizer_and_scheduler(str(folder))
            return
        assert self.lr_scheduler is not None
        torch.save(sharded, folder / _OPTIMIZER)
        torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self._network):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.lr_scheduler is not None
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True)
        put_optimizer_state(self._network, self._inner_optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.load_weights(folder)
        self._progress.load_state_dict(json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))

    def load_weights(self, folder: Path) -> None:
        """Put a checkpoint's trainable weights in place."""
        # Tensor by tensor: a second copy of a large network would not fit.
        with safe_open(folder / _WEIGHTS, framework="pt") as saved:
            for name, parameter in self._trainable().items():
                put(parameter, saved.get_tensor(name))


class _Flow(TrainerCallback):
    """When to stop: somebody asked for it, or validation no longer gets better."""

    def __init__(self, params: TrainParams, progress: Progress, stop: StopRequest) -> None:
        self._patience, self._progress, self._stop = params.early_stopping, progress, stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.restart_clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if anywhere(self._stop.requested, args.device):
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._patience is None or not state.global_step:
            return
        since_best = self._progress.validations_since_best()
        control.should_save = control.should_save or since_best == 0
        control.should_training_stop = control.should_training_stop or since_best >= self._patience
