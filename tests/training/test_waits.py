"""A step waits for its device only once; counted on the CPU as reads of tensors that a GPU would hold."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glm2core.text.dataset import TokenizedDataset
from glm2core.training.loop import Loop
from glm2core.training.progress import Progress
from tests.training.conftest import tiny_model
from tests.training.test_loop import make_run

aten = torch.ops.aten
# What needs values, or a size that depends on values
READING_OPERATORS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero}
# What doesn't get as far as an operator on the CPU
READING_METHODS = {Tensor.tolist, Tensor.cpu, Tensor.numpy}


class OnDevice:
    """Tensors that a GPU would hold, by their memory: some to begin with, then whatever is computed from them."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}  # alive, so that an address stands for one memory
        self.waits: list[str] = []

    def add(self, tensors: Iterable[object]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._kept[storage._cdata] = storage

    def holds(self, *values: object) -> bool:
        return any(isinstance(v, Tensor) and v.untyped_storage()._cdata in self._kept for v in values)


class Operators(TorchDispatchMode):
    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_leaves((args, kwargs))
        held = self._device.holds(*given)
        packet = func.overloadpacket
        masks = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool and self._device.holds(index) for index in args[1]
        )
        if masks or (held and packet in READING_OPERATORS):
            self._device.waits.append(str(packet))
        made = func(*args, **(kwargs or {}))
        if held:
            self._device.add(tree_leaves(made))
        return made


class Methods(TorchFunctionMode):
    def __init__(self, device: OnDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READING_METHODS and self._device.holds(*args):
            self._device.waits.append(func.__name__)
        return func(*args, **(kwargs or {}))


def waits_of_a_step(loop: Loop, batches: list[Any]) -> list[str]:
    device = OnDevice()
    device.add(loop.network.parameters())
    device.add(loop.network.buffers())

    def sent(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device.add(value for name, value in kwargs.items() if name != "labels")

    hook = loop.model.register_forward_pre_hook(sent, with_kwargs=True)
    with Methods(device), Operators(device):
        loop.take_step(batches)
    hook.remove()
    return device.waits


def loop_of(folder: Path, rows: TokenizedDataset, **changes: object) -> tuple[Loop, list[list[Any]]]:
    """A loop, and the batches of two steps."""
    run = make_run(folder, rows, rows, **changes)
    loop = run._loop(Progress(every=1, operations_per_second=1.0, report=lambda m, s: None, sources=["rows.json"]))
    size = run.params.gradient_accumulation_steps
    batches = list(islice(run.batches(), 2 * size))
    return loop, [batches[:size], batches[size:]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"dtype": "bfloat16"},
        {"optimizer": "muon"},
        {"max_grad_norm": None},
        {"method": "lora"},
        {"method": "lora", "lora": {"rank": 4, "dropout": 0.0}, "gradient_checkpointing": True},
        {"method": "ptuning", "learning_rate": 1e-2},
    ],
    ids=str,
)
def test_a_step_waits_once(tmp_path: Path, rows: TokenizedDataset, changes: dict[str, object]) -> None:
    loop, (first, second) = loop_of(tmp_path / "c", rows, **changes)
    loop.take_step(first)  # what is made once
    assert waits_of_a_step(loop, second) == ["tolist"]


def test_a_read_inside_the_network_is_counted(tmp_path: Path, rows: TokenizedDataset) -> None:
    """Each way to wait that this file detects, so that the count above can fail."""
    reads: list[tuple[Callable[[Tensor], object], str]] = [
        (lambda hidden: hidden.sum().item(), "aten._local_scalar_dense"),
        (lambda hidden: bool((hidden > 0).any()), "aten._local_scalar_dense"),
        (lambda hidden: hidden[hidden > 0], "aten.index"),
        (lambda hidden: hidden.nonzero(), "aten.nonzero"),
        (lambda hidden: hidden.detach().flatten()[:1].tolist(), "tolist"),
        (lambda hidden: hidden.detach().cpu(), "cpu"),
    ]
    for read, name in reads:
        loop, (first, second) = loop_of(tmp_path / "c", rows)
        loop.take_step(first)

        def after(module: torch.nn.Module, args: object, out: Tensor, read: Callable[[Tensor], object] = read) -> None:
            read(out)

        loop.network.transformer.encoder.final_layernorm.register_forward_hook(after)
        assert waits_of_a_step(loop, second) == [name, "tolist"]


def test_labels_may_be_on_the_device_of_the_network() -> None:
    """Labels as other trainers pass them: the same loss, at the cost of a wait."""
    model = tiny_model()
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    device = OnDevice()
    device.add([*model.parameters(), ids])
    with Methods(device), Operators(device):
        model(input_ids=ids, labels=ids).loss.backward()
    assert device.waits
