"""`doctor`: shows this machine's properties, what params.yaml needs, and what will go wrong (also for bug reports)."""

import argparse
import locale
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from rich.console import Console

from glm2core.cli import memory
from glm2core.console import closing_table
from glm2core.errors import UserError, masked
from glm2core.estimate.fit import available_memory, in_gib
from glm2core.files import project_root
from glm2core.hardware import computes_in, cpu_class
from glm2core.process import available_cores
from glm2core.tracking.address import is_sqlite, sqlite_file, store_uri
from glm2core.tracking.execution import git_output
from glm2core.training.measure import product_rate

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "dvc", "mlflow", "polars", "pyarrow")
_LEAST_DISK = 6 << 30  # bytes for the packages and one default run
_CPU = torch.device("cpu")


def run(arguments: argparse.Namespace) -> None:
    """Print this machine's properties, then the output of `memory`, then what is likely to fail and how to fix it."""
    console = Console()
    closing_table("this machine", dict(machine()), {})
    problems = list(project_problems())
    try:
        memory.run(arguments)
    except UserError as error:
        problems.append(f"params: {error}")
    if not problems:
        console.print("nothing here is known to fail")
    for problem in problems:
        console.print(f"! {problem}", style="bold", markup=False, highlight=False)


def machine() -> dict[str, str]:
    """This machine's properties, each with its name and the text to print."""
    rates = {dtype: product_rate(dtype, _CPU) / 1e9 for dtype in (torch.float32, torch.bfloat16)}
    bf16 = "" if computes_in(torch.bfloat16, _CPU) else " (emulated, so glm2core multiplies in fp32)"
    whole = psutil.virtual_memory().total
    return {
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "CPU": f"{cpu_class()}, {available_cores()} cores",
        "matmul speed": f"{rates[torch.float32]:,.0f} GFLOP/s in fp32, {rates[torch.bfloat16]:,.0f} in bf16{bf16}",
        "memory": f"{in_gib(whole)}, {in_gib(available_memory(_CPU))} of it free for a run",
        "GPU": "; ".join(_gpus()) or "none that torch sees",
        "disk": f"{in_gib(shutil.disk_usage(project_root()).free)} free in the project's folder",
        "MLflow": masked(store_uri(project_root())),
        "DVC cache": _cache(),
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    }


def project_problems() -> Iterator[str]:
    """Problems that do not depend on the params, each with the command that fixes it if there is one."""
    for key in ("user.name", "user.email"):
        if not git_output("config", key):
            yield f"git has no {key}, which DVC needs to commit experiments. Run: git config --global {key} ..."
    if git_output("rev-parse", "--git-dir") is None:
        yield "this folder is not a git repository; DVC needs one. Run: git init && git add -A && git commit -m start"
    if shutil.disk_usage(project_root()).free < _LEAST_DISK:
        yield (
            f"less than {in_gib(_LEAST_DISK)} is free on the disk. DVC's cache keeps every result. To delete results "
            "that this workspace does not use, run: dvc gc --workspace"
        )
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        yield "the locale is not UTF-8, so printing text may fail. Run: export LANG=C.UTF-8"
    if sys.prefix == sys.base_prefix:
        yield "no .venv is active, so dvc may run a different Python. Run: source .venv/bin/activate"
    uri = store_uri(project_root())
    database = Path(sqlite_file(uri))
    if is_sqlite(uri) and database.exists() and not os.access(database, os.W_OK):
        yield f"MLflow's store {database} can't be written by this user, so runs will not be recorded"


def _gpus() -> Iterator[str]:
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = "with bf16" if computes_in(torch.bfloat16, torch.device("cuda", index)) else "without bf16"
        yield f"{found.name}, {in_gib(found.total_memory)}, {bf16}"


def _cache() -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    place = Path(done.stdout.strip())
    if done.returncode or not place.is_dir():
        return "none yet"
    return in_gib(sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
