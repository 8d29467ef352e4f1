"""Train three steps for real, in a process of its own, and print the peak of resident memory and the estimate.

python measured_peak.py '{"method": "full", ...}' dtype: a train section for the `small` preset (86 M parameters).
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from glm2core.estimate.memory import GIB, Workload, training_memory
from glm2core.hardware import peak_memory_gib
from glm2core.labels import IGNORED
from glm2core.model.presets import preset_config
from glm2core.params import ModelParams, TrainParams
from glm2core.text.dataset import TokenizedDataset, TokenizedInfo
from glm2core.training.checkpoints import CheckpointFolder
from glm2core.training.methods import prepare
from glm2core.training.run import Run

ROW, VOCABULARY, SUPERVISED = 128, 8192, 0.4


def rows(count: int) -> TokenizedDataset:
    ids = np.random.default_rng(0).integers(300, VOCABULARY, (count, ROW)).astype(np.int32)
    labels = ids.copy()
    labels[:, : round(ROW * (1 - SUPERVISED))] = IGNORED
    ends = np.arange(count + 1)
    flat = {"input_ids": ids.ravel(), "labels": labels.ravel(), "segments": np.zeros(count, np.int32)}
    offsets = {"input_ids": ends * ROW, "labels": ends * ROW, "segments": ends}
    names = pa.chunked_array([[f"row {number}" for number in range(count)]])
    return TokenizedDataset(names, names, flat, offsets, TokenizedInfo("", "", "", ""))


def main() -> None:
    params = TrainParams(max_steps=3, device="cpu", **json.loads(sys.argv[1]))
    dtype, cpu = getattr(torch, sys.argv[2]), torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        prepared = prepare(
            ModelParams(preset="small"), params, vocab_size=VOCABULARY, dtype=dtype, device=cpu, work_folder=Path(work)
        )
        checkpoints = CheckpointFolder(Path(work) / "checkpoints", keep=1, notice=print)
        with checkpoints.locked():
            Run(prepared, params, rows(32), rows(4), dtype=dtype, device=cpu, checkpoints=checkpoints).train()
    workload = Workload(preset_config("small", VOCABULARY), dtype, "cpu", ROW, SUPERVISED, from_files=False)
    estimate = training_memory(workload, params)
    print(json.dumps({"measured": peak_memory_gib(cpu), "estimated": estimate.resident / GIB}))


if __name__ == "__main__":
    main()
