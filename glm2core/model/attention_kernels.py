"""Choose torch's attention kernel on a GPU from a table that `python -m benchmarks.attention_kernels` writes.

A GPU without a row in the table keeps torch's own choice, which is always correct but not always the fastest.
"""

import csv
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

TABLE = Path(__file__).with_name("attention_kernels.csv")
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Row = dict[str, str]


def chosen_kernel(device: torch.device) -> AbstractContextManager[None]:
    """A context in which causal attention on `device` uses the kernel that was measured as fastest."""
    name = _kernel_of(device) if device.type == "cuda" else None
    if name is None:
        return nullcontext()
    # The other kernels follow as fallbacks, because a kernel rejects shapes that it does not support
    order = [KERNELS[name], *(kernel for other, kernel in KERNELS.items() if other != name), SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return context


def read_table(file: Path = TABLE) -> list[Row]:
    """Read the table; each row contains a capability ("9.0"), a torch version ("2.11") and a name in `KERNELS`."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def kernel_in(table: list[Row], capability: tuple[int, int], version: str) -> str | None:
    """The kernel for a GPU of this compute capability, according to the newest measurement with torch <= `version`."""
    name, now = "{}.{}".format(*capability), _numbers(version)
    rows = [row for row in table if row["capability"] == name and _numbers(row["torch"]) <= now]
    return max(rows, key=lambda row: _numbers(row["torch"]))["kernel"] if rows else None


def with_row(table: list[Row], capability: tuple[int, int], version: str, kernel: str) -> list[Row]:
    """Add a measurement to a sorted table; an older measurement with the same kind of GPU and torch is replaced."""
    row = {"capability": "{}.{}".format(*capability), "torch": "{}.{}".format(*_numbers(version)), "kernel": kernel}
    others = [other for other in table if (other["capability"], other["torch"]) != (row["capability"], row["torch"])]
    return sorted([*others, row], key=lambda r: (_numbers(r["capability"]), _numbers(r["torch"])))


def write_table(table: list[Row], file: Path = TABLE) -> None:
    """Write a table for `read_table`."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, ["capability", "torch", "kernel"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


@cache
def _kernel_of(device: torch.device) -> str | None:
    return kernel_in(read_table(), torch.cuda.get_device_capability(device), torch.__version__)


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as 2.11.0+cu130."""
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found is not None
    return int(found[1]), int(found[2])
