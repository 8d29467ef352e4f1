"""Limits of a container in both layouts, and of a shell."""

import subprocess
import sys
from pathlib import Path

import pytest

from glm2core.estimate.limits import left_to_container

ROOT = Path(__file__).resolve().parents[2]
NONE_V1 = str((1 << 63) - 4096)


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", {"memory.max": "1000", "memory.stat": "anon 300\nfile 600\n"}, 700),
        ("0::/\n", {"memory.max": "max", "memory.stat": "anon 300\n"}, None),
        (
            "0::/user/job\n",  # the group above is the tighter one
            {
                "user/memory.max": "900",
                "user/memory.stat": "anon 500\n",
                "user/job/memory.max": "1000",
                "user/job/memory.stat": "anon 400\n",
            },
            400,
        ),
        (
            "12:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            {"memory/memory.limit_in_bytes": "2000", "memory/memory.stat": "cache 900\ntotal_rss 500\n"},
            1500,
        ),
        (
            "5:memory:/slurm/job_1\n",
            {
                "memory/memory.limit_in_bytes": NONE_V1,
                "memory/memory.stat": "total_rss 5000\n",
                "memory/slurm/job_1/memory.limit_in_bytes": "3000",
                "memory/slurm/job_1/memory.stat": "total_rss 1000\n",
            },
            2000,
        ),
        ("", {}, None),
        ("0::/\n", {"memory.max": "1000"}, None),
    ],
)
def test_what_a_container_leaves(tmp_path: Path, own: str, files: dict[str, str], left: float | None) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert left_to_container(tmp_path / "groups", tmp_path / "own") == left


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_a_shell_leaves(limit: str) -> None:
    code = f"""
import resource, torch
from glm2core.estimate.fit import available_memory
resource.setrlimit(resource.{limit}, (6 << 30, 6 << 30))
before = available_memory(torch.device("cpu"))
kept = torch.ones(1 << 28)  # 1 GiB: its own stays available to it
print(before / 2**30, available_memory(torch.device("cpu")) / 2**30)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert 1 < before <= 6.5
    assert after == pytest.approx(before, abs=0.2)
