"""float16 training: gradients that are too small, too large, and never finite; weights on the CPU are float16 too."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from glm2core.errors import UserError
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.loop import Loop
from glm2core.training.loss_scale import LossScale
from glm2core.training.progress import Progress
from tests.training.test_loop import make_run


def test_the_scale_is_halved_until_there_is_none_and_doubled_when_all_goes_well() -> None:
    scale = LossScale(value=4.0)
    scale.lower(7)
    assert scale.value == 2
    for _ in range(999):
        scale.keep()
    assert scale.value == 2
    scale.keep()
    assert (scale.value, scale.good) == (4, 0)
    scale.lower(8)
    scale.lower(8)
    with pytest.raises(UserError, match=r"gradient of step 9 is not finite in float16 at any loss scale.*nothing was"):
        scale.lower(9)
    largest = LossScale(value=2.0**24, good=999)
    largest.keep()
    assert largest.value == 2.0**24


def test_its_state_is_a_checkpoints() -> None:
    scale = LossScale(value=8.0, good=5)
    again = LossScale()
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert again == scale


def loop_of(folder: Path, rows: TokenizedDataset, scale: LossScale | None, **changes: object) -> tuple[Loop, list]:
    run = make_run(folder, rows, rows, gradient_checkpointing=False, **changes)
    loop = run._loop(Progress(every=1, operations_per_second=1.0, report=lambda m, s: None, sources=["rows.json"]))
    assert loop._scale == (LossScale() if run.dtype == torch.float16 else None)
    loop._scale = scale
    return loop, [[batch] for batch in islice(run.batches(), 4)]


def losses(loop: Loop) -> list[float]:
    return [loss for _, loss in loop.progress.curve("loss")]


def moved(loop: Loop) -> dict[str, torch.Tensor]:
    return {n: p.detach().float().clone() for n, p in loop.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_float16_is_the_run_in_float32_to_rounding(
    method: str, tmp_path: Path, rows: TokenizedDataset
) -> None:
    changes = {"method": method, "lora": {"rank": 4, "dropout": 0.0}}
    half, batches = loop_of(tmp_path / "h", rows, LossScale(), dtype="float16", **changes)
    wide, _ = loop_of(tmp_path / "w", rows, None, dtype="float32", **changes)
    for batch in batches:
        half.take_step(batch)
        wide.take_step(batch)
    assert losses(half) == pytest.approx(losses(wide), rel=2e-3)
    assert half.step == 4
    norms = [[norm for _, norm in loop.progress.curve("grad_norm")] for loop in (half, wide)]
    assert norms[0] == pytest.approx(norms[1], rel=0.01)


def test_a_scale_that_is_too_large_is_halved_and_no_row_is_lost(tmp_path: Path, rows: TokenizedDataset) -> None:
    """Multiplying by a power of 2 is exact, so any scale that fits gives the same weights."""
    first, batches = loop_of(tmp_path / "a", rows, LossScale(value=2.0**12), dtype="float16")
    second, _ = loop_of(tmp_path / "b", rows, LossScale(value=2.0**24), dtype="float16")
    for loop in (first, second):
        for batch in batches[:3]:
            loop.take_step(batch)
    assert second._scale is not None and second._scale.value < 2.0**24 and second._scale.good > 0
    assert losses(second) == pytest.approx(losses(first), rel=1e-3)
    assert second.step == 3


def test_without_a_scale_small_gradients_are_lost(tmp_path: Path, rows: TokenizedDataset) -> None:
    """The reason for all this: a loss divided by many tokens, in float16."""
    zeros = []
    for value in (1.0, 2.0**14):
        loop, batches = loop_of(tmp_path / str(value), rows, LossScale(value=value), dtype="float16")
        found = loop._forward_and_backward(batches[0], 1e6)
        assert found is not None
        gradients = torch.cat([p.grad.flatten() for p in loop.network.parameters() if p.grad is not None])
        zeros.append(float((gradients == 0).float().mean()))
    assert zeros[0] > 2 * zeros[1]


def test_a_gradient_that_is_never_finite_ends_the_run_with_a_sentence(tmp_path: Path, rows: TokenizedDataset) -> None:
    loop, batches = loop_of(tmp_path / "c", rows, LossScale(), dtype="float16")
    loop.network.transformer.encoder.final_layernorm.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = moved(loop)
    with pytest.raises(UserError, match=r"gradient of step 1 is not finite in float16 at any loss scale"):
        loop.take_step(batches[0])
    assert all(before[name].equal(tensor) for name, tensor in moved(loop).items())


def test_a_checkpoint_keeps_the_scale(tmp_path: Path, rows: TokenizedDataset) -> None:
    loop, batches = loop_of(tmp_path / "c", rows, LossScale(), dtype="float16", save_steps=1)
    loop.take_step(batches[0])
    assert loop._scale is not None
    loop._scale.value = 512.0
    loop.save()
    again, _ = loop_of(tmp_path / "c", rows, LossScale(), dtype="float16")
    again.restore(loop.checkpoints.path(1))
    assert again._scale == LossScale(value=512.0, good=1)
