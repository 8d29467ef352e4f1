"""Measure a user's main path in a clone: wall time and peak memory of each command.

    python -m benchmarks.pipeline                          the embedded default, and a second run with nothing to do
    python -m benchmarks.pipeline --sources a.json b.json  the same pipeline on these Alpaca files

The committed state is cloned into a temporary folder, so the working tree and its MLflow store stay
unchanged. Peak memory is the largest sum of resident memory over the whole process tree, which is
sampled ten times per second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import print_machine

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("convert", "tokenize", "train", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", type=Path, help="Alpaca files to use instead of the embedded data")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="params to change, as with dvc -S")
    parser.add_argument("--keep", type=Path, help="copy metrics, reports and dvc.lock to this folder")
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "glm2core"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        changes = list(arguments.set)
        if arguments.sources:
            changes.append("convert.sources=" + _sources(arguments.sources))
        print(f"{'command':<34}{'seconds':>9}{'peak GiB':>10}")
        for stage in STAGES:
            # `exp run` takes changes of params; one stage at a time, each skipping the ones before it
            changed = [part for change in changes for part in ("-S", change)] if stage == STAGES[0] else []
            _measure(f"stage {stage}", ["dvc", "exp", "run", *changed, "--single-item", stage], clone)
        _measure("dvc repro, everything up to date", ["dvc", "repro"], clone)
        for stage in STAGES:
            print(stage, json.dumps(json.loads((clone / "metrics" / f"{stage}.json").read_text()), indent=1))
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for name in ("metrics", "reports", "dvc.lock", "params.yaml"):
                subprocess.run(["cp", "-r", str(clone / name), str(arguments.keep)], check=True)


def _sources(files: list[Path]) -> str:
    entries = [f"{{path: '{file.resolve()}', format: alpaca}}" for file in files]
    return f"[{', '.join(entries)}]"


def _measure(name: str, command: list[str], folder: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = folder.parent / "log.txt"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _resident(process))
            time.sleep(0.1)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-5000:]}")
    print(f"{name:<34}{seconds:>9.1f}{peak / 2**30:>10.2f}", flush=True)


def _resident(process: psutil.Process) -> int:
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
