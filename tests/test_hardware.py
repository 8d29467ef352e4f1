"""Peak memory is this process's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASK = "import torch; from glm2core.hardware import peak_memory_gib as peak; print(peak(torch.device('cpu')))"


def test_peak_memory_leaves_out_what_a_large_parent_held() -> None:
    def peak_of_a_child() -> float:
        done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout)

    alone = peak_of_a_child()
    held = np.ones(1 << 27)  # 1 GiB
    assert peak_of_a_child() < alone + 0.3
    assert held[-1] == 1
