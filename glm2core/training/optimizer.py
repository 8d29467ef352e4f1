"""Makes the optimizers. One keeps fp32 master weights; an Adafactor updates the weights during the backward pass.

A bf16 weight has 8 bits of mantissa, so an update below 1/256 of the weight is rounded away. At a learning rate of
1e-5, nearly all updates are so small. There are two remedies, depending on the memory available:

- `MasterWeights` lets the optimizer work on fp32 copies. With AdamW, the copies of weight and gradient and the two
  moments take 16 bytes per parameter, and the bf16 weight and gradient take another 4. On a CPU, fp32 is also faster.
  For 85.7 M parameters, AdamW's fused kernel takes 0.05 s in fp32 and 0.36 s in bf16, and both casts together add
  0.05 s. The validation loss differs by at most 0.1% from the loss of fp32 training (docs/training.md).
- `RoundingAdafactor` (adafactor.py) keeps no copies, and it factors the second moment.

`MuonAndAdamW` is for small networks (docs/long-context.md).
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from glm2core.model.parameters import is_block_matrix
from glm2core.training.adafactor import RoundingAdafactor
from glm2core.training.muon import Muon

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "muon"]
Named = list[tuple[str, nn.Parameter]]


class TrainingOptimizer(Protocol):
    """The interface that the loop requires of an optimizer; torch's own optimizers already provide it.

    The loop sets `lr` in each of `param_groups` before a step.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def make_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    bias_rate: float = 1.0,
    in_backward: bool = False,
    seed: int = 0,
) -> TrainingOptimizer:
    """Make the optimizer for the model's trainable parameters.

    Args:
        learning_rate: the absolute rate, which Adafactor does not scale by the weights' size.
        weight_decay: decoupled weight decay, which is not applied to biases and norm weights.
        bias_rate: multiplier of `learning_rate` for biases. After linear scaling, the biases of queries and keys must
            grow severalfold before a head can distinguish neighbouring tokens again. At the plain rate, this growth
            takes longer than everything else (figures in docs/long-context.md).
        in_backward: update each parameter as soon as its gradient is ready, then free the gradient
            (`train.memory: low`); Adafactor only.
        seed: seed of the stochastic rounding.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = _groups(named, learning_rate, weight_decay, bias_rate)
    if name == "adafactor":
        return RoundingAdafactor(groups, dict(named), lr=learning_rate, in_backward=in_backward, seed=seed)
    makers: dict[str, Callable[[list[dict[str, Any]], float], TrainingOptimizer]] = {
        "adamw": _adamw,
        "adamw_8bit": _adamw_8bit,
        "muon": MuonAndAdamW,
    }
    make = makers[name]
    if any(p.dtype in (torch.bfloat16, torch.float16) for _, p in named):
        return MasterWeights(groups, lambda g: make(g, learning_rate))
    return make(groups, learning_rate)


def _adamw(groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _adamw_8bit(groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=learning_rate)


def _groups(named: Named, rate: float, weight_decay: float, bias_rate: float) -> list[dict[str, Any]]:
    blocks = [p for n, p in named if is_block_matrix(n, p)]
    others = [p for n, p in named if p.dim() > 1 and not is_block_matrix(n, p)]
    biases = [p for n, p in named if n.endswith("bias")]
    norms = [p for n, p in named if p.dim() <= 1 and not n.endswith("bias")]
    groups = [
        {"params": blocks, "lr": rate, "weight_decay": weight_decay, "kind": "block matrices"},
        {"params": others, "lr": rate, "weight_decay": weight_decay, "kind": "embedding and output"},
        {"params": norms, "lr": rate, "weight_decay": 0.0, "kind": "norms"},
        {"params": biases, "lr": rate * bias_rate, "weight_decay": 0.0, "kind": "biases"},
    ]
    return [group for group in groups if group["params"]]


class MuonAndAdamW:
    """Muon for the blocks' matrices, and AdamW for the embedding, the output layer, the norms and the biases.

    Muon's updates are scaled so that both optimizers use the same learning rate (muon.py).
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        blocks = [group for group in groups if group["kind"] == "block matrices"]
        others = [group for group in groups if group["kind"] != "block matrices"]
        self._parts: list[Optimizer] = []
        if blocks:
            self._parts.append(Muon(blocks, lr=learning_rate))
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), fused=True))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, saved in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)


class MasterWeights:
    """An optimizer over fp32 copies of the parameters; each step's result is cast back to the network's dtype."""

    def __init__(
        self, groups: list[dict[str, Any]], make_inner: Callable[[list[dict[str, Any]]], TrainingOptimizer]
    ) -> None:
        self._weights = [p for group in groups for p in group["params"]]
        self._masters = [nn.Parameter(p.detach().float().clone()) for p in self._weights]
        self.gradient_scale = 1.0  # the loss scale in the network's gradients (only in float16, see loss_scale.py)
        masters = iter(self._masters)
        self.inner = make_inner([{**group, "params": [next(masters) for _ in group["params"]]} for group in groups])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        pairs = [(w, m) for w, m in zip(self._weights, self._masters, strict=True) if w.grad is not None]
        for _, master in pairs:
            if master.grad is None:
                master.grad = torch.empty_like(master)
        gradients = [(m.grad, w.grad) for w, m in pairs if m.grad is not None and w.grad is not None]
        torch._foreach_copy_([into for into, _ in gradients], [g for _, g in gradients])
        if self.gradient_scale != 1:
            torch._foreach_mul_([into for into, _ in gradients], 1 / self.gradient_scale)
        self.inner.step()
        torch._foreach_copy_([w for w, _ in pairs], [m for _, m in pairs])

    def zero_grad(self) -> None:
        """Clear the network's gradients; the fp32 buffers are overwritten by the next step."""
        for weight in self._weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "masters": [m.detach() for m in self._masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        for master, saved in zip(self._masters, state_dict["masters"], strict=True):
            master.copy_(saved)
