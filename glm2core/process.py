"""What a process of ours does before anything heavy is imported."""

import io
import os
import sys


def prepare_process() -> None:
    """Let threads share the cores with other processes, and print line by line where the output is a file.

    OpenMP reads the variables when torch is imported. Threads that wait by spinning take the cores from one another:
    two trainings at once (`dvc queue start -j 2`) were eight times slower. Threads that sleep at once wake late: one
    training alone was twice as slow. A short spin costs neither.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else a log has stderr's lines before earlier ones of stdout


def available_cores() -> int:
    """CPU cores that this process may use; of several processes on one machine (torchrun) each has its share."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
