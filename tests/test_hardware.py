"""What the hardware computes in, what dtype that means, and that peak memory is this process's own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from glm2core.errors import UserError
from glm2core.hardware import choose_dtype, computes_in, cpu_class, dtype_without_bfloat16, product_dtype, sent
from glm2core.process import cpu_cap

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]
ASK = "import torch; from glm2core.hardware import peak_memory_gib as peak; print(peak(torch.device('cpu')))"
ASK_CAPPED = """
import sys
from glm2core.cli.main import main
assert "torch" not in sys.modules
code = main(["memory"])
import torch
from glm2core.hardware import cpu_class
print(code, torch.backends.cpu.get_cpu_capability(), cpu_class())
"""


def test_peak_memory_leaves_out_what_a_large_parent_held() -> None:
    def peak_of_a_child() -> float:
        done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout)

    alone = peak_of_a_child()
    held = np.ones(1 << 27)  # 1 GiB
    assert peak_of_a_child() < alone + 0.3
    assert held[-1] == 1


@pytest.mark.parametrize("cap", ["avx2", "avx512"])
def test_a_cap_takes_half_precision_away(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", cap)
    for dtype in HALVES:
        assert not computes_in(dtype, CPU)
        assert product_dtype(dtype, CPU) == torch.float32
    assert computes_in(torch.float32, CPU)
    assert cpu_class().endswith("(capped by GLM2CORE_CPU)")


def test_each_half_precision_is_asked_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLM2CORE_CPU", raising=False)
    found = torch.cpu.get_capabilities()
    assert computes_in(torch.bfloat16, CPU) == any(
        found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    )
    assert computes_in(torch.float16, CPU) == any(
        found.get(name, False) for name in ("avx512_fp16", "amx_fp16", "fp16_arith")
    )


def test_a_cap_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", "avx1024")
    with pytest.raises(UserError, match=r"GLM2CORE_CPU is 'avx1024'; it must be avx2 or avx512"):
        cpu_cap()
    done = subprocess.run(
        [sys.executable, "-m", "glm2core", "memory"], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 1
    assert "GLM2CORE_CPU is 'avx1024'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="no x86 CPU")
def test_the_command_line_caps_torch_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK_CAPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GLM2CORE_CPU": "avx2"},
    )
    assert done.stdout.splitlines()[-1] == "0 AVX2 AVX2 (capped by GLM2CORE_CPU)"


@pytest.mark.parametrize(
    ("name", "parameters", "expected", "said"),
    [
        ("float32", 6e9, torch.float32, []),
        ("auto", 9e8, torch.float32, ["dtype auto: float32, as this CPU has no bfloat16 arithmetic"]),
        ("auto", 6.24e9, torch.bfloat16, ["6.2 billion parameters", "multiplies in float32"]),
        ("bfloat16", 1e6, torch.bfloat16, ["weights stay in bfloat16", "multiplies in float32"]),
    ],
)
def test_a_cpu_without_the_arithmetic(
    name, parameters: float, expected: torch.dtype, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM2CORE_CPU", "avx2")
    told: list[str] = []
    assert choose_dtype(name, CPU, parameters=int(parameters), notice=told.append) == expected
    assert len(told) == bool(said)
    assert all(words in told[0] for words in said)


@pytest.mark.parametrize(
    ("name", "half_steps", "expected", "said"),
    [
        ("auto", True, torch.float16, "dtype auto: float16, as this GPU has no bfloat16 arithmetic; in training, the"),
        ("auto", False, torch.float32, "dtype auto: float32, as this GPU has no bfloat16 arithmetic"),
        ("bfloat16", True, torch.bfloat16, "weights stay in bfloat16; this GPU has no bfloat16 arithmetic"),
    ],
)
def test_a_gpu_without_bfloat16(name, half_steps: bool, expected: torch.dtype, said: str) -> None:
    told: list[str] = []
    found = dtype_without_bfloat16(name, "GPU", parameters=10**6, half_steps=half_steps, notice=told.append)
    assert found == expected
    assert len(told) == 1 and told[0].startswith(said)


def test_a_small_network_is_float32_on_any_cpu() -> None:
    told: list[str] = []
    assert choose_dtype("auto", CPU, parameters=1_313_920, notice=told.append) == torch.float32
    assert len(told) == 1 and told[0].startswith("dtype auto: float32, as ")
    assert choose_dtype("bfloat16", CPU, parameters=1_313_920, notice=told.append) == torch.bfloat16
    large = choose_dtype("auto", CPU, parameters=85_700_000, notice=told.append)
    assert large == (torch.bfloat16 if computes_in(torch.bfloat16, CPU) else torch.float32)


def test_float16_is_for_gpus_and_for_optimizers_that_can() -> None:
    with pytest.raises(UserError, match=r"evaluate\.dtype is float16, which is only for GPUs"):
        choose_dtype("float16", CPU, parameters=10**6, key="evaluate.dtype")
    with pytest.raises(UserError, match=r"train\.dtype is float16, but train\.optimizer adafactor"):
        choose_dtype("float16", torch.device("cuda"), parameters=10**6, half_steps=False)
    assert choose_dtype("float16", torch.device("cuda"), parameters=10**6, notice=lambda _: None) == torch.float16


def test_a_tensor_for_the_cpu_is_itself() -> None:
    tensor = torch.ones(3)
    assert sent(tensor, CPU) is tensor
