"""The training loop: `take_step` is one optimizer step; `run` decides when to validate, save and stop.

accelerate wraps the network in FSDP2 if accelerate's config asks for it, and otherwise in DDP if there are several
processes.

In shapes, `B` is the number of rows, and `T` the number of tokens in the longest row.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from glm2core.errors import UserError
from glm2core.hardware import peak_memory_gib, sent
from glm2core.labels import IGNORED
from glm2core.model.cost import Cost
from glm2core.params import TrainParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.adafactor import RoundingAdafactor
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.distributed import (
    anywhere,
    gathered,
    is_first,
    is_sharded,
    meet,
    put,
    put_optimizer_state,
    rank,
    summed,
    whole,
    whole_optimizer_state,
    whole_tensors,
)
from glm2core.training.interrupt import StopRequest
from glm2core.training.loss_scale import LossScale
from glm2core.training.optimizer import MasterWeights, TrainingOptimizer, make_optimizer
from glm2core.training.progress import Progress
from glm2core.training.random_states import State, random_state, set_random_state
from glm2core.training.schedule import schedule_of

Batch = dict[str, Tensor]  # from batches.collate

_WEIGHTS, _OPTIMIZER, _RANDOM, _STATE = "weights.safetensors", "optimizer.pt", "random.pt", "state.json"
_SENT = ("input_ids", "position_ids")  # these are sent to the device


class Loop:
    """A network in training, with its weights, its optimizer, its progress and the number of finished steps.

    Args:
        model: changed in place; parameters that require a gradient are trained.
        autocast: the dtype to which fp32 weights are cast for multiplications; None = they are not cast.
        loss_scale: the loss scale for a float16 network; None = the loss is not scaled.
        checkpoints: the folder in which the run is saved.
        progress: records every step and every validation.
        cost: counts the operations of a batch.
        training: the training rows, used for the row ids in error messages and for the counts by source.
        validation: the validation rows, used for the loss by source.
    """

    def __init__(
        self,
        model: nn.Module,
        params: TrainParams,
        *,
        device: torch.device,
        autocast: torch.dtype | None,
        loss_scale: LossScale | None = None,
        checkpoints: CheckpointFolder,
        progress: Progress,
        cost: Cost,
        training: TokenizedDataset,
        validation: TokenizedDataset,
    ) -> None:
        self.network, self.params, self.device = model, params, device
        self.checkpoints, self.progress, self.cost, self.row_ids = checkpoints, progress, cost, training.ids
        self._sources, self._validation_sources = training.source_numbers, validation.source_numbers
        self.step, self.validation_seconds = 0, 0.0
        self._autocast, self._scale = autocast, loss_scale
        self._random_state: State | None = None
        set_seed(params.seed)  # so that dropout does not depend on how many random numbers initialization used
        if rank():  # otherwise all processes would drop the same channels; the first keeps the seed
            torch.manual_seed(params.seed + 1_000_003 * rank())
        optimizer = make_optimizer(
            model,
            name=params.optimizer,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            bias_rate=params.bias_rate,
            in_backward=params.memory == "low",
            seed=params.seed,
        )
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.model, self.optimizer = _prepare(self.accelerator, model, optimizer)
        self._schedule = schedule_of(params)
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]

    def run(
        self,
        batches: Iterable[Batch],
        validation: Iterable[Batch] | None,
        *,
        stop: StopRequest,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to `max_steps`, or until a stop request or early stopping.

        Args:
            batches: training batches, beginning with the next step; a step takes `gradient_accumulation_steps` of them.
            validation: validation batches; None = there are no validation rows.
            stop: the request to stop, which is checked after every step; a checkpoint is saved before stopping.
        """
        params = self.params
        coming = iter(batches)  # this draws a random number, so a checkpoint's random state is restored only afterwards
        if self._random_state is not None:
            set_random_state(self._random_state)
        if self.step == 0 and validation is not None:
            self.validate(validation)
        self.progress.restart_clock()
        stopping = self._no_longer_improves()
        while self.step < params.steps and not stopping:
            self.take_step(list(islice(coming, params.gradient_accumulation_steps)))
            after_step()
            stopping = anywhere(stop.requested, self.device)
            improved = False
            if validation is not None and params.eval_steps and self.step % params.eval_steps == 0:
                self.validate(validation)
                improved = params.early_stopping is not None and self.progress.validations_since_best() == 0
                stopping = stopping or self._no_longer_improves()
            if stopping or improved or self.step % params.save_steps == 0 or self.step == params.steps:
                self.save()

    def take_step(self, batches: list[Batch]) -> None:
        """Update the weights once, from the batches of one accumulation.

        The order is: set the learning rates, count the tokens, run forward and backward, clip and check the gradients,
        update the weights, record the step.

        Raises:
            UserError: a loss or gradient isn't finite; nothing was updated.
        """
        self.model.train()
        rate = self._set_rates()
        supervised = self._count(batches)
        found = self._forward_and_backward(batches, supervised)
        while found is None:  # only in float16: repeat with half the loss scale
            self.optimizer.zero_grad()
            found = self._forward_and_backward(batches, supervised)
        loss, norm = found
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        (loss_of_all,) = summed([loss], self.device)
        self.progress.add_step(
            self.step, loss=loss_of_all, learning_rate=rate, grad_norm=norm, peak_memory=peak_memory_gib(self.device)
        )

    def _forward_and_backward(self, batches: list[Batch], supervised: float) -> tuple[float, float] | None:
        """Run forward and backward, then clip and check the gradients.

        Returns:
            The loss, and the gradients' norm before clipping; None if the loss scale was too large and was lowered.
        """
        scale = 1.0 if self._scale is None else self._scale.value
        parts: list[Tensor] = []
        for batch, synchronized in self._with_synchronization(batches):
            with synchronized:
                # The summed loss is divided by the number of supervised tokens in the whole step, over all processes.
                part = self._loss(batch, divided_by=supervised)
                parts.append(part.detach())
                if self._updates_in_backward:
                    self._check_losses([float(parts[-1])], batches)
                # DDP averages the processes' gradients, but their sum is needed.
                self.accelerator.backward(part * (self.accelerator.num_processes * scale))
        if self._updates_in_backward:
            assert isinstance(self.optimizer, RoundingAdafactor)
            return float(parts[0]), self.optimizer.take_grad_norm()
        norm = clip_gradients(self.model, self.params.max_grad_norm, scale)
        loss, found = self._read(parts, norm, batches)
        if math.isfinite(found):
            self._unscale(scale)
            return loss, found
        if self._scale is None:
            raise UserError(
                f"the gradient of step {self.step + 1} is not finite; nothing was updated. "
                "Lower train.learning_rate, or set train.dtype to float32. The last checkpoint is kept."
            )
        self._scale.lower(self.step + 1)
        return None

    def _unscale(self, scale: float) -> None:
        if self._scale is None:
            return
        self._scale.keep()
        if isinstance(self.optimizer, MasterWeights):
            self.optimizer.gradient_scale = scale  # divided by the scale in fp32
        else:
            torch._foreach_mul_([p.grad for p in self.network.parameters() if p.grad is not None], 1 / scale)

    @torch.no_grad()
    def validate(self, validation: Iterable[Batch]) -> None:
        """Measure the validation loss, which is the mean over all supervised tokens."""
        start = time.perf_counter()
        self.model.eval()
        names, numbers = self._validation_sources
        sums = np.zeros((2, len(names)))  # for each source: loss, supervised tokens
        for batch in validation:
            found = numbers[batch["rows"].numpy()]
            losses = self._loss(batch, divided_by=1, by_row=True).double().cpu().numpy()
            np.add.at(sums, (0, found), losses)
            np.add.at(sums, (1, found), _supervised_by_row(batch))
        totals, counts = np.reshape(summed(sums.ravel().tolist(), self.device), sums.shape)
        by_source = {
            name: total / count
            for name, total, count in zip(names, totals.tolist(), counts.tolist(), strict=True)
            if count
        }
        self.validation_seconds = time.perf_counter() - start
        loss = float(totals.sum() / max(counts.sum(), 1))
        self.progress.add_validation(self.step, loss, by_source, self.validation_seconds)

    def _set_rates(self) -> float:
        """Set every group's learning rate for the next step; returns the first group's rate."""
        share = self._schedule(self.step)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * share
        return float(self._peak_rates[0] * share)

    def _count(self, batches: list[Batch]) -> float:
        """Add the batches' tokens and operations to the progress; returns the supervised tokens of all processes."""
        names, numbers = self._sources
        padded = operations = 0.0
        mix = np.zeros((len(names), 2))
        for batch in batches:
            supervised = _supervised_by_row(batch)
            padded += batch["input_ids"].numel()
            operations += self.cost.operations(batch["lengths"], int(supervised.sum()))
            found = numbers[batch["rows"].numpy()]
            np.add.at(mix, (found, 0), batch["lengths"].numpy())
            np.add.at(mix, (found, 1), supervised)
        padded, operations, *counted = summed([padded, operations, *mix.ravel().tolist()], self.device)
        return self.progress.add_batch(
            padded=padded, operations=operations, mix=np.reshape(counted, mix.shape).tolist()
        )

    def _with_synchronization(self, batches: list[Batch]) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch with a context for its backward; processes exchange gradients only in the last backward."""
        *before, last = batches
        yield from ((batch, self.accelerator.no_sync(self.model)) for batch in before)
        yield last, nullcontext()

    def _loss(self, batch: Batch, *, divided_by: float, by_row: bool = False) -> Tensor:
        inputs: dict[str, Any] = {name: sent(batch[name], self.device) for name in _SENT if name in batch}
        inputs["labels"] = batch["labels"]  # counted on the CPU
        if by_row:
            inputs["loss_by_row"] = True
        # Only the forward runs under autocast, which keeps its copies of the weights until it ends.
        with torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext():
            loss: Tensor = self.model(**inputs, num_items_in_batch=divided_by).loss
        return loss

    @property
    def _updates_in_backward(self) -> bool:
        """Whether backward checks and updates each tensor as soon as its gradient is ready (`memory: low`)."""
        return isinstance(self.optimizer, RoundingAdafactor) and self.optimizer.in_backward

    def _read(self, parts: list[Tensor], norm: Tensor, batches: list[Batch]) -> tuple[float, float]:
        """Read the loss, check that it is finite, and read the norm. A step waits for the device only here."""
        values = (*parts, sum(parts[1:], parts[0]), norm)
        *losses, loss, found = torch.stack([value.double() for value in values]).tolist()
        self._check_losses(losses, batches)
        return loss, found

    def _check_losses(self, losses: list[float], batches: list[Batch]) -> None:
        """Raise the error for a loss that isn't finite, with the ids of the rows that gave this loss."""
        if not anywhere(not all(map(math.isfinite, losses)), self.device):
            return
        found = gathered([(loss, batch["rows"].tolist()) for loss, batch in zip(losses, batches, strict=False)])
        value, rows = next((loss, rows) for of_one in found for loss, rows in of_one if not math.isfinite(loss))
        ids = ", ".join(self.row_ids[row] for row in rows)
        raise UserError(
            f"the loss of step {self.step + 1} is {value} on the rows {ids}; nothing was updated. "
            "Check these rows, lower train.learning_rate, or set train.dtype to float32. "
            "The last checkpoint is kept."
        )

    def _no_longer_improves(self) -> bool:
        """Whether the last `early_stopping` validations brought no improvement."""
        patience = self.params.early_stopping
        return patience is not None and self.progress.validations_since_best() >= patience

    def save(self) -> None:
        """Save everything needed to resume, atomically; frozen weights are not included."""
        best = self.progress.best_validation() if self.params.early_stopping else None
        # Collective operations come first, because after them only the first process continues.
        weights, random_states = whole_tensors(self._trainable()), gathered(random_state())
        optimizer = self._optimizer_state()
        state = {"step": self.step, "progress": self.progress.state_dict()}
        if self._scale is not None:
            state["loss_scale"] = self._scale.state_dict()

        def write(folder: Path) -> None:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)
            torch.save(optimizer, folder / _OPTIMIZER)
            torch.save(random_states, folder / _RANDOM)
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")

        if is_first():
            self.checkpoints.save(self.step, write, best_step=best[0] if best else None)
        meet()
        self.progress.restart_clock()

    def restore(self, folder: Path) -> None:
        """Restore what `save` wrote; `run` then continues from that step."""
        self.load_weights(folder)
        optimizer = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        if is_sharded(self.network):
            put_optimizer_state(self.network, self._torch_optimizer, optimizer)
        else:
            self.optimizer.load_state_dict(optimizer)
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        self.step = state["step"]
        self.progress.load_state_dict(state["progress"])
        if self._scale is not None:
            self._scale.load_state_dict(state["loss_scale"])
        self._random_state = torch.load(folder / _RANDOM, map_location="cpu", weights_only=True)[rank()]

    def load_weights(self, folder: Path) -> None:
        """Load a checkpoint's trainable weights."""
        # Load tensor by tensor, because a second copy of a large network would not fit into memory.
        with safe_open(folder / _WEIGHTS, framework="pt") as saved:
            for name, parameter in self._trainable().items():
                put(parameter, saved.get_tensor(name))

    def _optimizer_state(self) -> dict[str, Any]:
        if is_sharded(self.network):
            return whole_optimizer_state(self.network, self._torch_optimizer)
        return self.optimizer.state_dict()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        assert isinstance(self.optimizer, torch.optim.Optimizer)  # require_shardable allows only AdamW
        return self.optimizer

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}


def clip_gradients(model: nn.Module, limit: float | None, scale: float = 1.0) -> Tensor:
    """Clip gradients, sharded or not, to a global norm of `limit`; None = no clipping.

    The gradients are `scale` times too large; `limit` and the returned norm refer to the gradients divided by `scale`.

    Returns:
        The norm before clipping, a scalar on the gradients' device; not finite if any gradient is not finite.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if scale != 1:
        norm = norm.float() / scale
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: TrainingOptimizer
) -> tuple[nn.Module, TrainingOptimizer]:
    if not accelerator.is_fsdp2:
        return accelerator.prepare_model(model), optimizer
    # FSDP2 replaces the parameters with shards, in the optimizer as well. accelerate's wrapper around the optimizer is
    # not used, because it serves accelerate's own way of accumulating gradients.
    model, wrapped = accelerator.prepare(model, optimizer)
    return model, wrapped.optimizer


def _supervised_by_row(batch: Batch) -> np.ndarray:
    counted: np.ndarray = (batch["labels"] != IGNORED).sum(1).numpy()
    return counted
