"""A run in this process: its loss, its curves, and its ways to stop."""

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glm2core.errors import UserError
from glm2core.labels import IGNORED
from glm2core.text.dataset import TokenizedDataset
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.methods import Prepared, adapt
from glm2core.training.run import Outcome, Run
from tests.training.conftest import tiny_model, train_params, write_rows

LOW = {"memory": "low", "optimizer": "adafactor", "max_grad_norm": None}


def make_run(folder: Path, rows: TokenizedDataset, held_out: TokenizedDataset, **changes: object) -> Run:
    params = train_params(**({"dtype": "float32"} | changes))
    dtype = getattr(torch, params.dtype)
    model = tiny_model(dtype)
    if params.method != "full":
        torch.manual_seed(1)
        model = adapt(model, params.method, params.lora, params.prefix)
    if params.memory == "low":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    return Run(
        Prepared(model),
        params,
        rows,
        held_out,
        dtype=dtype,
        device=torch.device("cpu"),
        notice=said.append,
        checkpoints=CheckpointFolder(folder, keep=params.keep_checkpoints, notice=said.append),
    )


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.prepared.model.named_parameters()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_learns_and_tells_its_curves(tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset) -> None:
    points: list[tuple[int, dict[str, float]]] = []
    outcome = make_run(tmp_path / "c", rows, held_out).train(lambda m, step: points.append((step, m)))
    assert [step for step, m in points if "loss" in m] == [3, 6, 9, 12]
    assert [step for step, m in points if "validation_loss" in m] == [0, 4, 8, 12]
    for _, metrics in points:
        if "loss" in metrics:
            assert set(metrics) == {"loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "peak_memory_gib"}
            assert all(value > 0 for name, value in metrics.items() if name != "learning_rate")
    assert outcome.metrics["validation_loss"] < outcome.metrics["validation_loss_before"]
    assert outcome.metrics["train_loss_last"] < outcome.metrics["train_loss_first"]
    assert outcome.metrics["steps"] == 12


def test_each_source_has_its_validation_loss_and_its_share_of_the_mix(tmp_path: Path) -> None:
    names = ["b.json", "a.json"]
    files = [tmp_path / name for name in ("train.parquet", "validation.parquet")]
    for seed, (file, count) in enumerate(zip(files, (60, 9), strict=True)):
        write_rows(file, "0" * 64, count, seed=seed, sources=[names[index % 3 == 0] for index in range(count)])
    rows, held_out = map(TokenizedDataset.load, files)
    points: list[dict[str, float]] = []
    run = make_run(tmp_path / "c", rows, held_out, eval_steps=None)
    outcome = run.train(lambda metrics, step: points.append(metrics))
    last = points[-1]
    losses, counts = {}, {}
    for name in names:
        chosen = held_out.take([place for place, source in enumerate(held_out.sources) if source == name])
        losses[name] = last[f"validation_loss.{name}"]
        counts[name] = chosen.supervised_tokens
        assert losses[name] == pytest.approx(_validation(replace(run, validation=chosen)), rel=1e-5)
    total = sum(losses[name] * counts[name] for name in names) / sum(counts.values())
    assert last["validation_loss"] == pytest.approx(total, rel=1e-6)

    mix = outcome.metrics["mix"]
    assert list(mix) == ["a.json", "b.json"]
    for key, everything in (("tokens", "tokens"), ("supervised_tokens", "supervised_tokens")):
        assert sum(source[key] for source in mix.values()) == outcome.metrics[everything]
    batches = list(run.batches())
    expected = sum(
        int(length) for b in batches for row, length in zip(b["rows"], b["lengths"], strict=True) if row % 3 == 0
    )
    assert mix["a.json"]["tokens"] == expected
    padded = sum(b["input_ids"].numel() for b in batches)
    assert outcome.metrics["padding_fraction"] == pytest.approx(1 - outcome.metrics["tokens"] / padded)
    outcome.write_curves(tmp_path / "reports")
    lines = (tmp_path / "reports/validation_by_source.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        ["step", "source"],
        *([s, n] for s in ("0", "12") for n in sorted(names)),
    ]
    assert (tmp_path / "reports/mix.csv").read_text().startswith("source,tokens,supervised_tokens\na.json,")


def test_wsd_keeps_the_rate_then_lowers_it_to_nothing(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    changes = {"schedule": "wsd", "warmup_fraction": 0.2, "decay_fraction": 0.5, "max_steps": 10, "logging_steps": 1}
    outcome = make_run(tmp_path / "c", rows, held_out, **changes, eval_steps=None, learning_rate=1e-3).train()
    rates = [rate for _, rate in outcome.progress.curve("learning_rate")]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 8e-4, 6e-4, 4e-4, 2e-4])


def test_a_stage_of_the_curriculum_that_no_row_fits_is_named(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    run = make_run(tmp_path / "c", rows, held_out, curriculum=[{"until": 0.5, "max_tokens": 1}])
    with pytest.raises(UserError, match=r"train\.curriculum\[0\]\.max_tokens is 1, .*shortest training row"):
        run.train()


def test_the_loss_is_divided_by_the_supervised_tokens_of_the_whole_accumulation(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    """Two batches of different size are weighted by their tokens: the gradient equals that of one joint batch."""
    changes = {"max_steps": 1, "gradient_accumulation_steps": 2, "eval_steps": None, "logging_steps": 1}
    run = make_run(tmp_path / "c", rows, held_out, **changes, warmup_fraction=0.0, max_grad_norm=None)
    before = weights(run)
    reference = tiny_model()
    batches = list(run.batches())
    supervised = sum(int((b["labels"] != IGNORED).sum()) for b in batches)
    assert len({int((b["labels"] != IGNORED).sum()) for b in batches}) == 2
    total = (
        sum(reference(input_ids=b["input_ids"], labels=b["labels"], num_items_in_batch=1).loss for b in batches)
        / supervised
    )
    total.backward()
    outcome = run.train()
    assert outcome.progress.curve("loss") == [(1, pytest.approx(total.item(), rel=1e-5))]
    norm = torch.stack([p.grad.norm() for p in reference.parameters()]).norm().item()
    assert outcome.progress.curve("grad_norm") == [(1, pytest.approx(norm, rel=1e-4))]
    assert any(not torch.equal(before[name], p) for name, p in weights(run).items())


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "gradient_accumulation_steps": 3},
        {"dtype": "bfloat16", **LOW},
        {"dtype": "bfloat16", "optimizer": "adafactor"},
        {"optimizer": "adamw_8bit"},
        {"gradient_accumulation_steps": 3, "early_stopping": 3},
        {"optimizer": "adafactor", "schedule": "wsd"},
        {"method": "lora"},  # with dropout, so the random state counts
        {"method": "lora", "lora": {"rank": 4, "dropout": 0.0}, "dtype": "bfloat16"},
        {"dtype": "float16"},
        LOW,
        {"dtype": "bfloat16", "optimizer": "muon", "curriculum": [{"until": 0.5, "max_tokens": 24}]},
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset, changes: dict[str, object]
) -> None:
    straight = make_run(tmp_path / "straight", rows, held_out, **changes)
    outcome = straight.train()

    def interrupt(metrics: dict[str, float], step: int) -> None:
        if step == 6 and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = make_run(tmp_path / "stopped", rows, held_out, **changes)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(interrupt)
    again = make_run(tmp_path / "stopped", rows, held_out, **changes)
    resumed = again.train()
    assert_equal(weights(again), weights(straight))
    assert resumed.metrics["mix"] == outcome.metrics["mix"]
    for name in ("loss", "validation_loss", "grad_norm", "learning_rate"):
        assert resumed.progress.curve(name) == outcome.progress.curve(name)
    assert resumed.metrics["tokens"] == outcome.metrics["tokens"]


def test_a_run_that_stopped_early_is_not_trained_on(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    """Killed after its last checkpoint, before its result was written."""
    changes = {"learning_rate": 5.0, "eval_steps": 1, "early_stopping": 2, "max_steps": 40, "warmup_fraction": 0.0}
    run, again = (make_run(tmp_path / "c", rows, held_out, **changes) for _ in range(2))
    outcome, once_more = run.train(), again.train()
    assert once_more.metrics["steps"] == outcome.metrics["steps"] < 40
    assert once_more.progress.points == outcome.progress.points
    assert_equal(weights(again), weights(run))


def test_the_time_left_is_told_once(tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset) -> None:
    said: list[str] = []
    run = replace(make_run(tmp_path / "c", rows, held_out, logging_steps=2), notice=said.append)
    run.train(lambda metrics, step: time.sleep(6) if "loss" in metrics and step <= 8 else None)
    (told,) = said
    assert re.fullmatch(r"about \d+ s on this machine", told)


def test_a_loss_that_is_not_finite_stops_before_any_update(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    run = make_run(tmp_path / "c", rows, held_out, eval_steps=None)
    guilty = int(rows.row(17)[0][3])
    with torch.no_grad():
        run.prepared.model.get_input_embeddings().weight[guilty] = float("nan")
    with pytest.raises(UserError, match=r"the loss of step \d+ is nan on the rows .*row\d+") as error:
        run.train()
    step = int(str(error.value).split("step ")[1].split()[0])
    named = str(error.value).split("on the rows ")[1].split(";")[0].split(", ")
    assert any(guilty in rows.row(int(name.removeprefix("row")))[0] for name in named)
    kept = run.checkpoints.newest()
    assert (kept is None) == (step <= 2)
    for name, parameter in run.prepared.model.named_parameters():
        if "embeddings" not in name:
            assert torch.isfinite(parameter).all(), name


@pytest.mark.parametrize("changes", [{}, LOW])
def test_a_gradient_that_is_not_finite_stops_before_its_update(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset, changes: dict[str, object]
) -> None:
    run = make_run(tmp_path / "c", rows, held_out, eval_steps=None, **changes)
    first = run.prepared.model.transformer.encoder.layers[0].mlp.dense_h_to_4h.weight
    before = first.detach().clone()
    first.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="is not finite"):
        run.train()
    assert torch.equal(first, before)


def test_early_stopping_keeps_the_best_weights(
    tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset
) -> None:
    """At a learning rate that is far too high the loss rises from the start."""
    changes = {"learning_rate": 5.0, "eval_steps": 1, "early_stopping": 2, "max_steps": 40, "warmup_fraction": 0.0}
    run = make_run(tmp_path / "c", rows, held_out, **changes)
    outcome = run.train()
    losses = [loss for _, loss in outcome.progress.curve("validation_loss")]
    best = losses.index(min(losses))
    assert outcome.metrics["steps"] < 40
    assert outcome.metrics["validation_loss"] == min(losses)
    assert len(losses) - 1 - best == 2
    if best:
        assert _validation(run) == pytest.approx(min(losses), rel=1e-6)


def _validation(run: Run) -> float:
    from glm2core.training.batches import validation_batches

    total = count = 0.0
    with torch.no_grad():
        for batch in validation_batches(run.validation, batch_tokens=192):
            loss = run.prepared.model(input_ids=batch["input_ids"], labels=batch["labels"], num_items_in_batch=1).loss
            total, count = total + loss.item(), count + int((batch["labels"] != IGNORED).sum())
    return total / count


def test_low_memory_learns_like_adamw(tmp_path: Path, rows: TokenizedDataset, held_out: TokenizedDataset) -> None:
    def loss(name: str, **changes: object) -> float:
        run = make_run(tmp_path / name, rows, held_out, max_steps=40, eval_steps=None, **changes)
        outcome: Outcome = run.train()
        return outcome.metrics["validation_loss"]

    fp32 = loss("fp32")
    assert loss("bf16", dtype="bfloat16") == pytest.approx(fp32, rel=0.01)
    assert loss("low", dtype="bfloat16", **LOW) < fp32 * 1.05


@pytest.fixture
def empty(tmp_path: Path) -> TokenizedDataset:
    write_rows(tmp_path / "empty.parquet", "0" * 64, 0)
    return TokenizedDataset.load(tmp_path / "empty.parquet")


def test_no_rows_to_train_on_is_refused(tmp_path: Path, empty: TokenizedDataset, held_out: TokenizedDataset) -> None:
    with pytest.raises(UserError, match="the training split has no supervised row"):
        make_run(tmp_path / "c", empty, held_out).train()


def test_without_validation_rows_training_goes_without(
    tmp_path: Path, rows: TokenizedDataset, empty: TokenizedDataset
) -> None:
    outcome = make_run(tmp_path / "c", rows, empty, max_steps=4, eval_steps=2, dtype="float32").train()
    assert outcome.metrics["steps"] == 4
    assert not [name for name in outcome.metrics if "validation" in name]
    assert outcome.progress.curve("validation_loss") == []


def test_early_stopping_needs_validation_rows(tmp_path: Path, rows: TokenizedDataset, empty: TokenizedDataset) -> None:
    with pytest.raises(UserError, match=r"train.early_stopping needs validation.*validation_fraction"):
        make_run(tmp_path / "c", rows, empty, early_stopping=2).train()
