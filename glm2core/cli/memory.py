"""`memory`: estimates the memory and disk space that the settings in params.yaml need, before anything runs."""

import argparse
import math
import shutil
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm2core.estimate.fit import available_memory, fitting_changes, in_gib, with_recomputation
from glm2core.estimate.memory import (
    TrainingMemory,
    Workload,
    cache_bytes,
    network_config,
    trained_parameter_count,
    training_disk,
    training_memory,
)
from glm2core.files import project_root, resolve_path
from glm2core.hardware import choose_dtype, product_dtype
from glm2core.model.config import ChatGLM2Config
from glm2core.model.loading import parameter_count
from glm2core.model.weight_files import weight_files
from glm2core.params import (
    DEVICE_KINDS,
    DeviceKind,
    Params,
    Settled,
    TrainParams,
    load_params,
    read_base,
    settle,
    shown,
)
from glm2core.text.tokenizer import SPECIAL_TOKENS, SpTokenizer

_NAMES: Mapping[DeviceKind, str] = {"cpu": "CPU", "cuda": "GPU"}
_PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "libraries")


def run(arguments: argparse.Namespace) -> None:
    params = load_params(arguments.params)
    base = read_base(params.model.base, params.model.preset)
    by_device = {device: settle(params, base, device) for device in DEVICE_KINDS}
    workloads = {device: workload_of(params, settled, device) for device, settled in by_device.items()}
    trains = {device: _as_run(settled.train, workloads[device], device) for device, settled in by_device.items()}
    needs = {device: training_memory(workloads[device], train) for device, train in trains.items()}
    console = Console()
    console.print(_settled_table(by_device))
    console.print(_training_table(trains, workloads, needs))
    _print_fit(console, trains, workloads, needs)
    console.print(_use_table(by_device["cpu"], workloads["cpu"]))
    console.print(_disk_table(by_device["cpu"], workloads["cpu"]))


def _as_run(params: TrainParams, workload: Workload, device: str) -> TrainParams:
    """The params with the number of blocks that the run would recompute. For a missing GPU, it would recompute none."""
    there = device == "cpu" or torch.cuda.is_available()
    free = available_memory(torch.device(device)) if there else math.inf
    return with_recomputation(params, workload, free, notice=lambda sentence: None)


def workload_of(params: Params, settled: Settled, device: str) -> Workload:
    """The train stage's workload on a CPU or CUDA device if all rows are as long as tokenize allows."""
    sources = [s for s in params.convert.sources if s.analysis is None or s.analysis.rows]
    trained = [s for s in sources if settled.train.generated_rows or not s.is_generated]
    source = max([params.tokenize.max_source_length, *(s.max_source_length or 0 for s in trained)])
    target = max([params.tokenize.max_target_length, *(s.max_target_length or 0 for s in trained)])
    config = network_config(settled.model, _vocabulary(params))
    return Workload(
        config=config,
        dtype=_dtype(params, config, device),
        device=device,
        row_tokens=source + target,
        supervised=target / (source + target) if params.tokenize.loss_on == "last" else 1.0,
        from_files=params.model.base is not None,
    )


def _vocabulary(params: Params) -> int:
    """Vocabulary size of the existing tokenizer; if there is none, of the tokenizer that tokenize will train."""
    folder = resolve_path("data/tokenized/tokenizer")
    if (folder / "tokenizer.model").is_file():
        return len(SpTokenizer.load(folder))
    return params.tokenize.vocabulary_size + len(SPECIAL_TOKENS)


def _dtype(params: Params, config: ChatGLM2Config, device: str) -> torch.dtype:
    if device == "cuda" and params.train.dtype == "auto":
        return torch.bfloat16  # even if this machine has no GPU
    parameters = parameter_count(config)
    if params.train.dtype == "float16" and device == "cpu":
        return torch.float32  # a CPU refuses float16
    return choose_dtype(params.train.dtype, torch.device(device), parameters=parameters, notice=lambda sentence: None)


def _settled_table(by_device: Mapping[DeviceKind, Settled]) -> Table:
    """The value of each key that takes `auto`, and the value's origin. CPU and GPU are shown apart if they differ."""
    table = _table("settled")
    table.add_column("", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    sections = ("model", "train", "evaluate")
    values = {device: settled.values(*sections) for device, settled in by_device.items()}
    for key in values["cpu"]:
        texts = {device: shown(found[key]) for device, found in values.items()}
        same = len(set(texts.values())) == 1
        value = texts["cpu"] if same else ", ".join(f"{_NAMES[device]} {text}" for device, text in texts.items())
        origins = dict.fromkeys(settled.origins[key] for settled in by_device.values())
        table.add_row(key, escape(value), escape("; ".join(origins)))
    return table


def _training_table(
    trains: Mapping[DeviceKind, TrainParams],
    workloads: Mapping[DeviceKind, Workload],
    needs: Mapping[DeviceKind, TrainingMemory],
) -> Table:
    train = trains["cpu"]  # the title's values are the same on both
    bits = f", {train.quantization_bits} bits" if train.quantization_bits else ""
    table = _table(f"train: {train.method}{bits}, {train.optimizer}, memory {train.memory}; memory at the peak")
    table.add_column("")
    for device in needs:
        dtype, products = (
            str(dtype).removeprefix("torch.") for dtype in (workloads[device].dtype, workloads[device].product_dtype)
        )
        how = dtype if dtype == products else f"{dtype}, multiplied in {products}"
        table.add_column(f"{_NAMES[device]}, {how}", justify="right")
    for part in _PARTS:
        table.add_row(part, *(in_gib(getattr(need, part)) for need in needs.values()))
    recomputed = (train.recomputed_blocks(workloads[device].config.num_layers) for device, train in trains.items())
    table.add_row("blocks recomputed", *map(str, recomputed))
    table.add_row("needed at once", *(in_gib(need.total) for need in needs.values()), style="bold")
    return table


def _print_fit(
    console: Console,
    trains: Mapping[DeviceKind, TrainParams],
    workloads: Mapping[DeviceKind, Workload],
    needs: Mapping[DeviceKind, TrainingMemory],
) -> None:
    console.print("  Gradients and activations do not peak at the same time, so the parts sum to more than the total.")
    console.print("  On a CPU, long runs with rows of many lengths need up to 1.4 GiB more (kernels per shape, heap).")
    for device, need in needs.items():
        if device == "cuda" and not torch.cuda.is_available():
            console.print("  GPU: none here; compare with the card you plan to use.")
            continue
        free = available_memory(torch.device(device))
        verdict = "fits" if need.total <= free else "does not fit"
        console.print(f"  {_NAMES[device]}: {in_gib(free)} is free here, so the run {verdict}.")
        if need.total > free:
            console.print(f"  What would fit: {fitting_changes(workloads[device], trains[device], free)}")


def _use_table(params: Settled, workload: Workload) -> Table:
    config, cached = workload.config, product_dtype(workload.dtype, torch.device("cpu"))
    how = "" if cached == workload.dtype else ", with cache and multiplications in float32"
    table = _table(f"using the model in {str(workload.dtype).removeprefix('torch.')}{how}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("weights", in_gib(workload.dtype.itemsize * trained_parameter_count(workload, params.train)))
    longest = max(params.evaluate.retrieval.lengths, default=config.seq_length)
    for tokens in sorted({longest, config.seq_length}):
        table.add_row(f"cache of {tokens:,} tokens", in_gib(cache_bytes(config, tokens, cached)))
    return table


def _disk_table(params: Settled, workload: Workload) -> Table:
    disk = training_disk(workload, params.train)
    base = disk.base
    if params.model.base is not None:
        base = sum(file.stat().st_size for file in weight_files(resolve_path(params.model.base)))
    table = _table(f"disk ({in_gib(shutil.disk_usage(project_root()).free)} free here)", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    there = " (already there)" if params.model.base is not None else ""
    rows = {f"base{there}": base, "checkpoints": disk.checkpoints, "models/tuned": disk.tuned, "DVC cache": disk.cache}
    for name, size in rows.items():
        table.add_row(name, in_gib(size))
    table.add_row("to be written", in_gib(disk.total), style="bold")
    return table


def _table(title: str, *, show_header: bool = True) -> Table:
    return Table(title=title, title_justify="left", show_header=show_header)
