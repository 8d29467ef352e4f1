"""The table of attention kernels: the chosen row, and the committed table can be read."""

from pathlib import Path

import pytest
import torch

from glm2core.model.attention_kernels import KERNELS, chosen_kernel, kernel_in, read_table, with_row, write_table

TABLE = [
    {"capability": "8.0", "torch": "2.11", "kernel": "flash"},
    {"capability": "9.0", "torch": "2.9", "kernel": "flash"},
    {"capability": "9.0", "torch": "2.11", "kernel": "cudnn"},
]


@pytest.mark.parametrize(
    ("capability", "version", "expected"),
    [
        ((9, 0), "2.11.0+cu130", "cudnn"),
        ((9, 0), "2.13.1", "cudnn"),
        ((9, 0), "2.10.0", "flash"),  # 2.9 is older than 2.10, though not as text
        ((9, 0), "2.8.0", None),
        ((8, 0), "2.11.0a0+git12", "flash"),
        ((7, 5), "2.13.0", None),
    ],
)
def test_a_gpu_takes_the_newest_measurement_that_is_not_newer_than_its_torch(
    capability: tuple[int, int], version: str, expected: str | None
) -> None:
    assert kernel_in(TABLE, capability, version) == expected


def test_a_measurement_replaces_the_one_before(tmp_path: Path) -> None:
    table = with_row(TABLE, (9, 0), "2.11.0+cu130", "efficient")
    assert [row["kernel"] for row in table] == ["flash", "flash", "efficient"]
    table = with_row(table, (7, 5), "2.13.0", "efficient")
    assert table[0] == {"capability": "7.5", "torch": "2.13", "kernel": "efficient"}
    write_table(table, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == table


def test_the_committed_table_names_kernels_that_there_are() -> None:
    assert {row["kernel"] for row in read_table()} <= set(KERNELS)


def test_a_cpu_has_no_choice() -> None:
    query = torch.randn(1, 1, 4, 8)
    with chosen_kernel(torch.device("cpu")):
        assert torch.nn.functional.scaled_dot_product_attention(query, query, query).shape == query.shape
