"""Makes a run from params.

`open_run` settles the params on this machine, checks that the run fits, opens its checkpoints, and builds its network.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glm2core.errors import UserError
from glm2core.estimate.fit import available_memory, check_fits, with_recomputation
from glm2core.estimate.memory import Workload, network_config
from glm2core.family import template_of
from glm2core.files import project_root, resolve_path, run_fingerprint, sha256_file, source_fingerprint
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.config import ChatGLM2Config
from glm2core.model.loading import fingerprint, parameter_count
from glm2core.params import Params, Settled, TrainParams, read_base, settle
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.tokenizer import SpTokenizer
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.distributed import (
    first_decides,
    is_first,
    joined,
    require_shardable,
    sharding_is_asked_for,
    world_size,
)
from glm2core.training.methods import prepare
from glm2core.training.run import Run
from glm2core.training.selection import with_steps, without_generated

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCE = ("training", "model", "family.py", "text/batching.py", "text/stretch.py")
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
# The schedule of checkpoints does not change the result.
_WITHOUT_EFFECT = {"save_steps", "keep_checkpoints"}


@contextmanager
def open_run(params: Params, tokenized: Path) -> Iterator[tuple[Run, Settled]]:
    """Settle the params on this machine, take the run's lock, and build the network; yields the run and settled params.

    Args:
        params: the params before they are settled; the value that each `auto` becomes is printed.
        tokenized: the tokenize stage's folder.

    Raises:
        UserError: a device is missing, a tokenized file was made with a different tokenizer, another process
            is training the same run, or the base can't be loaded.
    """
    device = choose_device(params.train.device)
    base = read_base(params.model.base, params.model.preset)
    settled = settle(params, base, "cuda" if device.type == "cuda" else "cpu")
    notice("\n".join(["settled:", *settled.lines("model", "train")]))
    torch.set_num_threads(settled.train.threads)
    training, validation = _load_rows(settled, tokenized)
    train = with_steps(settled.train, training, world_size(), notice) if len(training) else settled.train
    config = network_config(settled.model, len(SpTokenizer.load(tokenized / "tokenizer")))
    dtype = choose_dtype(
        train.dtype, device, parameters=parameter_count(config), half_steps=train.steps_in_half, notice=notice
    )
    _require_one_process_for_low_memory(train)
    if sharding_is_asked_for():
        require_shardable(train, dtype)
    if len(training):  # otherwise the run raises its own error, which says what to do
        _require_rows_for_tokenizer(settled, config, tokenized)
        workload = _workload(config, settled, training, dtype, device)
        train = with_recomputation(train, workload, available_memory(device), notice)
        check_fits(workload, train, device=device, folder=project_root())
    with ExitStack() as stack:
        stack.enter_context(joined(device))
        key = first_decides(lambda: _fingerprint(settled, tokenized, dtype, device))
        folder = project_root() / ".checkpoints" / key
        checkpoints = CheckpointFolder(folder, keep=train.keep_checkpoints, notice=notice)
        if is_first():  # the first process holds the lock for all processes
            stack.enter_context(checkpoints.locked())
            checkpoints.remove_other_finished()
        prepared = prepare(
            settled.model,
            train,
            vocab_size=len(SpTokenizer.load(tokenized / "tokenizer")),
            dtype=dtype,
            device=device,
            work_folder=folder,
            notice=notice,
        )
        rope = settled.model.rope
        run = Run(
            prepared,
            train,
            training,
            validation,
            dtype=dtype,
            device=device,
            checkpoints=checkpoints,
            position_range=round(rope.factor * rope.unit) if train.position_stretch else None,
            notice=notice,
        )
        yield run, settled


def notice(sentence: str) -> None:
    """Print a message once, in the first process only."""
    if is_first():
        print(sentence, flush=True)


def _load_rows(params: Settled, tokenized: Path) -> tuple[TokenizedDataset, TokenizedDataset]:
    tokenizer = tokenized / "tokenizer" / "tokenizer.model"
    if params.model.base is not None:
        tokenizer = resolve_path(params.model.base) / "tokenizer.model"
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} is missing. Copy the base's tokenizer.model there, or run dvc repro tokenize.")
    sha = sha256_file(tokenizer)
    training, validation = (
        TokenizedDataset.load(tokenized / f"{split}.parquet", sha) for split in ("train", "validation")
    )
    return without_generated(training, params.train.generated_rows, notice), validation


def _require_rows_for_tokenizer(params: Settled, config: ChatGLM2Config, tokenized: Path) -> None:
    tokenizer = SpTokenizer.load(tokenized / "tokenizer")
    template, _ = template_of(tokenized / "tokenizer")
    tokenizer.require_rows(
        config.padded_vocab_size, template, params.tokenize.pair_format, resolve_path(params.model.base or tokenized)
    )


def _workload(
    config: ChatGLM2Config, params: Settled, training: TokenizedDataset, dtype: torch.dtype, device: torch.device
) -> Workload:
    return Workload(
        config=config,
        dtype=dtype,
        device=device.type,
        row_tokens=int(training.lengths.max()),
        supervised=training.supervised_tokens / int(training.lengths.sum()),
        from_files=params.model.base is not None,
        processes=world_size(),
        sharded=sharding_is_asked_for(),
    )


def _require_one_process_for_low_memory(params: TrainParams) -> None:
    if params.memory == "low" and world_size() > 1:
        raise UserError(
            f"train.memory is low, but {world_size()} processes were started. With low memory, each tensor is "
            "updated during backward, before the gradients of the other processes could be added. Start one process "
            "(train.launcher python), or set train.memory to normal."
        )


def _fingerprint(params: Settled, tokenized: Path, dtype: torch.dtype, device: torch.device) -> str:
    train: dict[str, Any] = params.train.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    base = params.model.base
    return run_fingerprint(
        {
            "train": train,
            "model": params.model.model_dump(mode="json"),
            "data": {file: sha256_file(tokenized / file) for file in ("train.parquet", "validation.parquet")},
            "base": None if base is None else fingerprint(resolve_path(base)),
            "machine": [str(dtype), device.type, params.train.threads, world_size(), sharding_is_asked_for()],
            "libraries": {name: version(name) for name in _LIBRARIES},
            "source": source_fingerprint(*(_PACKAGE / name for name in _SOURCE)),
        }
    )
