"""Sets up the process, before heavy libraries are imported."""

import io
import os
import sys

from glm2core.errors import UserError

# Variables that limit which instructions torch's own kernels, oneDNN and MKL use. MKL heeds its variable only on Intel
# CPUs.
_CAPS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    # torch would follow its variable even on CPUs without AVX-512
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}

# Nothing is downloaded by name, because a hub's answer would be an untrusted file, and the request would reveal
# something about the user.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def prepare_process() -> None:
    """Keep libraries off the network, let threads share cores, apply `GLM2CORE_CPU`, and flush every printed line.

    Libraries read their environment variables when torch is imported. Threads that spin while they wait take cores from
    each other, which made two trainings at once (`dvc queue start -j 2`) eight times slower. Threads that sleep
    immediately wake up late, which made a single training twice as slow. A short spin avoids both.

    Raises:
        UserError: `GLM2CORE_CPU` names an unknown class of CPUs.
    """
    os.environ.update(_OFFLINE)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    cap = cpu_cap()
    for name, value in _CAPS.get(cap or "", {}).items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # otherwise a log shows stderr's lines before earlier stdout lines


def cpu_cap() -> str | None:
    """The class of CPUs that `GLM2CORE_CPU` names; wider instructions than this class has are not used. None = no cap.

    Raises:
        UserError: the variable names an unknown class.
    """
    cap = os.environ.get("GLM2CORE_CPU")
    if cap and cap not in _CAPS:
        raise UserError(f"GLM2CORE_CPU is {cap!r}; it must be {' or '.join(_CAPS)}, or unset.")
    return cap or None


def available_cores() -> int:
    """Number of CPU cores that this process may use; processes on one machine (torchrun) share cores equally."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
