"""What a process of ours does before anything heavy is imported."""

import io
import os
import sys

from glm2core.errors import UserError

# What caps the instructions of torch's own kernels, of oneDNN and of MKL (which heeds it on Intel's CPUs only).
_CAPS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    # torch would take its variable at its word, also where there is no AVX-512
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}


def prepare_process() -> None:
    """Let threads share the cores with other processes, heed `GLM2CORE_CPU`, and print line by line into a file.

    Libraries read the variables when torch is imported. Threads that wait by spinning take the cores from one another:
    two trainings at once (`dvc queue start -j 2`) were eight times slower. Threads that sleep at once wake late: one
    training alone was twice as slow. A short spin costs neither.

    Raises:
        UserError: `GLM2CORE_CPU` names no class of CPUs.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    cap = cpu_cap()
    for name, value in _CAPS.get(cap or "", {}).items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else a log has stderr's lines before earlier ones of stdout


def cpu_cap() -> str | None:
    """The class of CPUs that this one is to be taken for at most, from `GLM2CORE_CPU`; None = as it is.

    Raises:
        UserError: the variable names no such class.
    """
    cap = os.environ.get("GLM2CORE_CPU")
    if cap and cap not in _CAPS:
        raise UserError(f"GLM2CORE_CPU is {cap!r}; it must be {' or '.join(_CAPS)}, or not be set.")
    return cap or None
