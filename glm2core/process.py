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

# Nothing here is fetched by name: a hub's answer would be a stranger's file, and the question tells of the user.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def prepare_process() -> None:
    """Keep libraries off the network, let threads share the cores, heed `GLM2CORE_CPU`, print line by line into a file.

    Libraries read the variables when torch is imported. Threads that wait by spinning take the cores from one another:
    two trainings at once (`dvc queue start -j 2`) were eight times slower. Threads that sleep at once wake late: one
    training alone was twice as slow. A short spin costs neither.

    Raises:
        UserError: `GLM2CORE_CPU` names no class of CPUs.
    """
    os.environ.update(_OFFLINE)
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


def available_cores() -> int:
    """CPU cores that this process may use; of several processes on one machine (torchrun) each has its share."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
