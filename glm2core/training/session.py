"""Everything around one training run: what the params mean on this machine, its checkpoints, its outs."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glm2core.errors import UserError
from glm2core.estimate.fit import check_fits
from glm2core.estimate.memory import Workload, network_config, trained_parameter_count
from glm2core.family import template_of
from glm2core.files import atomic_path, project_root, resolve_path, run_fingerprint, sha256_file, source_fingerprint
from glm2core.hardware import choose_device, choose_dtype, set_threads
from glm2core.model.loading import fingerprint, parameter_count
from glm2core.params import Params, TrainParams
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.tokenizer import SpTokenizer
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.methods import Prepared, default_learning_rate, prepare
from glm2core.training.processes import first_decides, is_first, joined, world_size
from glm2core.training.progress import Report
from glm2core.training.run import Run
from glm2core.training.sharding import is_asked_for, is_sharded, require_shardable, whole_tensors

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
# When checkpoints are written changes nothing about the result.
_WITHOUT_EFFECT = {"save_steps", "keep_checkpoints"}
# What helps a small network find its way after a change of RoPE would ruin a large one in a few steps.
_SMALL_NETWORK = 200_000_000


@dataclass(frozen=True)
class Session:
    """A prepared network with its data and checkpoints; made by `open_session`."""

    params: Params
    tokenized: Path
    prepared: Prepared
    training: TokenizedDataset
    validation: TokenizedDataset
    dtype: torch.dtype
    device: torch.device
    checkpoints: CheckpointFolder

    @property
    def writes(self) -> bool:
        """Only the first of several processes writes and tracks."""
        return is_first()

    def run(self, report: Report) -> Run:
        """The run itself; `report` gets the points of its curves."""
        train, rope = self.params.train, self.params.model.rope
        rate = train.learning_rate or default_learning_rate(train.method, self.params.model.base is None)
        return Run(
            self.prepared,
            train,
            self.training,
            self.validation,
            learning_rate=rate,
            dtype=self.dtype,
            device=self.device,
            checkpoints=self.checkpoints,
            report=report,
            position_range=round(rope.factor * rope.unit) if train.position_stretch else None,
            notice=notice,
        )

    def write_model(self, folder: Path) -> None:
        """Weights or adapter, and the tokenizer: whole or not at all; every process calls this, the first writes."""
        network = self.prepared.network
        weights = whole_tensors(network.state_dict()) if is_sharded(network) else None
        if not self.writes:
            return
        with atomic_path(folder) as partial:
            self.prepared.save(partial, weights)
            for file in sorted((self.tokenized / "tokenizer").iterdir()):
                shutil.copy2(file, partial / file.name)

    def finish(self) -> None:
        """The outs are written: these checkpoints may go when another run starts."""
        self.checkpoints.finish()


@contextmanager
def open_session(params: Params, tokenized: Path) -> Iterator[Session]:
    """Resolve device, dtype and threads, take the run's lock, and build the network.

    Args:
        tokenized: the tokenize stage's folder.

    Raises:
        UserError: a device that isn't there, a tokenized file made with another tokenizer, another
            trainer at work on the same run, or what loading a base raises.
    """
    device = choose_device(params.train.device)
    threads = set_threads(params.train.threads)
    training, validation = _load_rows(params, tokenized)
    config = network_config(params.model, len(SpTokenizer.load(tokenized / "tokenizer")))
    dtype = choose_dtype(params.train.dtype, device, parameters=parameter_count(config), notice=notice)
    _require_one_process_for_low_memory(params.train)
    if is_asked_for():
        require_shardable(params.train, dtype)
    _require_room(params, tokenized, training, dtype, device)
    with ExitStack() as stack:
        stack.enter_context(joined(device))
        key = first_decides(lambda: _fingerprint(params, tokenized, dtype, device, threads))
        folder = project_root() / ".checkpoints" / key
        checkpoints = CheckpointFolder(folder, keep=params.train.keep_checkpoints, notice=notice)
        if is_first():  # it holds the lock for all of them
            stack.enter_context(checkpoints.locked())
            checkpoints.remove_other_finished()
        prepared = prepare(
            params.model,
            params.train,
            vocab_size=len(SpTokenizer.load(tokenized / "tokenizer")),
            dtype=dtype,
            device=device,
            work_folder=folder,
            notice=notice,
        )
        yield Session(params, tokenized, prepared, training, validation, dtype, device, checkpoints)


def notice(sentence: str) -> None:
    """Say something once, however many processes train."""
    if is_first():
        print(sentence, flush=True)


def _load_rows(params: Params, tokenized: Path) -> tuple[TokenizedDataset, TokenizedDataset]:
    tokenizer = tokenized / "tokenizer" / "tokenizer.model"
    if params.model.base is not None:
        tokenizer = resolve_path(params.model.base) / "tokenizer.model"
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} is missing. Copy the base's tokenizer.model there, or run dvc repro tokenize.")
    sha = sha256_file(tokenizer)
    training, validation = (
        TokenizedDataset.load(tokenized / f"{split}.parquet", sha) for split in ("train", "validation")
    )
    return training, validation


def _require_room(
    params: Params, tokenized: Path, training: TokenizedDataset, dtype: torch.dtype, device: torch.device
) -> None:
    """Before hours are spent: too few rows for the tokenizer, or too little memory or disk."""
    if not len(training):
        return  # told by the run, with what to do about it
    tokenizer = SpTokenizer.load(tokenized / "tokenizer")
    config = network_config(params.model, len(tokenizer))
    template, _ = template_of(tokenized / "tokenizer")
    tokenizer.require_rows(
        config.padded_vocab_size, template, params.tokenize.pair_format, resolve_path(params.model.base or tokenized)
    )
    workload = Workload(
        config=config,
        dtype=dtype,
        device=device.type,
        row_tokens=int(training.lengths.max()),
        supervised=training.supervised_tokens / int(training.lengths.sum()),
        from_files=params.model.base is not None,
        processes=world_size(),
        sharded=is_asked_for(),
    )
    _require_settings_for_size(trained_parameter_count(workload, params.train), params.train)
    check_fits(workload, params.train, device=device, folder=project_root())


def _require_one_process_for_low_memory(params: TrainParams) -> None:
    if params.memory == "low" and world_size() > 1:
        raise UserError(
            f"train.memory is low, and {world_size()} processes were started: each tensor is stepped inside its own "
            "backward, before the others' gradients could be added. Start one process (train.launcher python), or "
            "set train.memory to normal."
        )


def _require_settings_for_size(parameters: int, params: TrainParams) -> None:
    usual = {}
    if params.optimizer == "muon":
        usual["optimizer"] = "adamw"
    if params.bias_rate > 1:
        usual["bias_rate"] = "1"
    if (params.learning_rate or 0) > 10 * default_learning_rate(params.method, from_scratch=False):
        usual["learning_rate"] = "null"
    if parameters > _SMALL_NETWORK and usual:
        found = ", ".join(f"{name} {getattr(params, name)}" for name in usual)
        raise UserError(
            f"train: {found}: that is for small networks such as models/base, and this one has "
            f"{parameters / 1e9:.1f} billion parameters. Run it with "
            + " ".join(f"-S train.{name}={value}" for name, value in usual.items())
        )


def _fingerprint(params: Params, tokenized: Path, dtype: torch.dtype, device: torch.device, threads: int) -> str:
    train: dict[str, Any] = params.train.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    base = params.model.base
    return run_fingerprint(
        {
            "train": train,
            "model": params.model.model_dump(mode="json"),
            "data": {file: sha256_file(tokenized / file) for file in ("train.parquet", "validation.parquet")},
            "base": None if base is None else fingerprint(resolve_path(base)),
            "machine": [str(dtype), device.type, threads, world_size(), is_asked_for()],
            "libraries": {name: version(name) for name in _LIBRARIES},
            "source": source_fingerprint(*(_PACKAGE / name for name in ("training", "model", "family.py"))),
        }
    )
