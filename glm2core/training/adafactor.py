"""Adafactor for large bf16 networks, with one block's fp32 copy and one parameter's gradient in memory at a time.

The second moment is factored (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235). Updates of bf16 weights
are rounded up or down at random so that their expectation is exact (Gupta et al. 2015,
https://arxiv.org/abs/1502.02551). Rounding to the nearest number would lose small updates.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from glm2core.errors import UserError
from glm2core.model.parameters import BLOCK_ELEMENTS

# Random numbers are drawn once, into a table that each block reads from a random offset. Drawing them for every weight
# took an eighth of an update's time.
_TABLE_ELEMENTS = 1 << 20
_FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col")


class RoundingAdafactor(Optimizer):
    """transformers' Adafactor, applied to the fp32 copy of one block at a time; results are rounded at random to bf16.

    A matrix of more than 1 Mi elements is split into blocks of rows, each with its own factored second
    moment, so the fp32 copies never exceed one block.

    With `in_backward`, each parameter is updated in its post-accumulate-grad hook, and `step()` does nothing. Only one
    parameter's gradient is then in memory at a time. Gradient accumulation, clipping by the global norm, and several
    processes are impossible with `in_backward`.

    Raises:
        UserError: a parameter's gradient isn't finite; the parameter was not updated.
    """

    def __init__(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], *, lr: float, in_backward: bool, seed: int
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        device = next(iter(named.values())).device
        self._names = {p: n for n, p in named.items()}
        self._group_of = {p: group for group in self.param_groups for p in group["params"]}
        self._states = _fresh_states(named, device)
        self._lent = nn.Parameter(torch.empty(0, device=device))
        self._inner = Adafactor([self._lent], lr=lr, scale_parameter=False, relative_step=False)
        longest = max(block.numel() for p in named.values() for (block,) in _row_blocks(p))
        self._weights, self._gradients = (torch.empty(longest, device=device) for _ in range(2))
        table = torch.Generator(device).manual_seed(seed)
        self._noise = torch.randint(
            1 << 16, (_TABLE_ELEMENTS + longest,), dtype=torch.int32, device=device, generator=table
        )
        self._places = torch.Generator().manual_seed(seed)
        self._squared_norms: list[Tensor] = []
        self.in_backward = in_backward
        if in_backward:
            for parameter in named.values():
                parameter.register_post_accumulate_grad_hook(self._step_parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if not self.in_backward:
            for parameter in self._names:
                if parameter.grad is not None:
                    self._step_parameter(parameter)

    def take_grad_norm(self) -> float:
        """The global norm of the gradients used since the last call."""
        norm = sum(self._squared_norms, torch.zeros(())).sqrt().item() if self._squared_norms else 0.0
        self._squared_norms.clear()
        return norm

    @torch.no_grad()
    def _step_parameter(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        blocks = list(_row_blocks(parameter, parameter.grad))
        self._check_gradient(parameter, [gradient for _, gradient in blocks])
        group = self._group_of[parameter]
        self._inner.param_groups[0].update(lr=float(group["lr"]), weight_decay=group["weight_decay"])
        states = self._states[self._names[parameter]]
        places = torch.randint(_TABLE_ELEMENTS, (len(blocks),), generator=self._places).tolist()
        for (weight, gradient), state, place in zip(blocks, states, places, strict=True):
            self._step_block(weight, gradient, state, place)
        parameter.grad = None

    def _check_gradient(self, parameter: nn.Parameter, blocks: list[Tensor]) -> None:
        """Record the gradient's norm. Reject a gradient that isn't finite before the parameter changes."""
        norms = [torch.linalg.vector_norm(_in_fp32(block, self._gradients)) for block in blocks]
        squared_norm = torch.stack(norms).square().sum()
        if not torch.isfinite(squared_norm):
            raise UserError(
                f"the gradient of {self._names[parameter]} is not finite; it was not applied. "
                "Lower train.learning_rate, or set train.dtype to float32. The last checkpoint is kept."
            )
        self._squared_norms.append(squared_norm)

    def _step_block(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], place: int) -> None:
        """Take one Adafactor step, for which the inner optimizer borrows the block and its state."""
        copy = _in_fp32(weight, self._weights)
        self._lent.data, self._lent.grad = copy, _in_fp32(gradient, self._gradients)
        self._inner.state[self._lent] = state
        self._inner.step()
        state["RMS"] = 0  # frees a tensor that nothing reads
        if weight.dtype != torch.float32:
            round_stochastically(copy, weight, self._noise[place : place + weight.numel()].view(weight.shape))
        self._lent.grad, self._lent.data = None, torch.empty(0, device=weight.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "blocks": self._states,
            "generator": self._places.get_state(),
            "param_groups": [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, states in state_dict["blocks"].items():
            for own, loaded in zip(self._states[name], states, strict=True):
                own["step"] = loaded["step"]
                for key in own.keys() & {"exp_avg_sq", *_FACTORS}:
                    own[key].copy_(loaded[key])
        self._places.set_state(state_dict["generator"].cpu())
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)


def _fresh_states(named: dict[str, nn.Parameter], device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """The initial state of transformers' Adafactor for each block, all in one piece of memory.

    If these small tensors were allocated block by block, they would lie between the large tensors that a step frees.
    glibc would then leave some of the freed memory unused, which was 0.8 GiB in a step over 2.2 B weights.
    """
    blocks = {name: [block for (block,) in _row_blocks(p)] for name, p in named.items()}
    sizes = [sum(block.shape) if block.dim() > 1 else block.numel() for of_one in blocks.values() for block in of_one]
    pieces = iter(torch.zeros(sum(sizes), device=device).split(sizes))
    return {name: [_fresh_state(block, next(pieces)) for block in of_one] for name, of_one in blocks.items()}


def _fresh_state(block: Tensor, memory: Tensor) -> dict[str, Any]:
    if block.dim() < 2:
        moments = {"exp_avg_sq": memory}
    else:
        moments = dict(zip(_FACTORS, memory.split(list(block.shape)), strict=True))
    return {"step": 0, "RMS": 0, **moments}


def round_stochastically(source: Tensor, target: Tensor, noise: Tensor) -> None:
    """Write fp32 `source` into bf16 `target`, rounding each number up or down at random so that its mean is exact.

    bf16 is the upper half of fp32's bits. Adding random bits to the lower half carries into the upper half with a
    probability equal to the fraction that bf16 can't represent.

    Args:
        source: the fp32 numbers, which are overwritten.
        noise: int32 of the same shape, uniform in [0, 2^16).
    """
    source.view(torch.int32).add_(noise).bitwise_and_(-0x10000)
    target.copy_(source)


def _in_fp32(tensor: Tensor, buffer: Tensor) -> Tensor:
    """The tensor itself if it is fp32; otherwise an fp32 copy in the buffer."""
    return tensor if tensor.dtype == torch.float32 else buffer[: tensor.numel()].view(tensor.shape).copy_(tensor)


def _row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split the tensors at the same rows into blocks of whole rows, at most `BLOCK_ELEMENTS` elements each."""
    first = tensors[0]
    if first.dim() < 2 or first.numel() <= BLOCK_ELEMENTS:
        yield tensors
        return
    rows = max(1, BLOCK_ELEMENTS // first[0].numel())
    pieces: Iterable[tuple[Tensor, ...]] = zip(*(t.split(rows) for t in tensors), strict=True)
    yield from pieces
