"""Reads the memory limits that a container (cgroups, version 1 or 2) or a shell sets for this process."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# For each version: the file with the limit, the file with the usage, and its line that excludes the page cache.
_V2 = ("memory.max", "memory.stat", "anon")
_V1 = ("memory.limit_in_bytes", "memory.stat", "total_rss")
_NO_LIMIT = 1 << 60  # version 1 shows a number near 2^63 for no limit


def left_to_container(groups: Path = _GROUPS, own: Path = _OWN_GROUPS) -> float | None:
    """Return how many bytes the tightest limit on this process's control groups leaves; None = no limit.

    Args:
        groups: the folder where control groups are mounted.
        own: the file that lists this process's groups, one per line in the form `number:controllers:path`.
    """
    left = [found for group, names in _levels(groups, own) if (found := _left(group, *names)) is not None]
    return min(left, default=None)


def left_to_process() -> float | None:
    """Return how many bytes `ulimit -v` (address space) and `ulimit -d` (data) leave this process; None = no limit."""
    used = psutil.Process().memory_info()
    limits = {resource.RLIMIT_AS: used.vms, resource.RLIMIT_DATA: getattr(used, "data", used.rss)}
    left = [
        float(max(0, soft - taken))
        for limit, taken in limits.items()
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]
    return min(left, default=None)


def _levels(groups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield this process's groups and all their parents. In a container, its own group may be mounted as the top."""
    lines = own.read_text().splitlines() if own.is_file() else []
    paths = {"": Path(), "memory": Path()}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for kind in {"", "memory"} & set(controllers.split(",")):
            paths[kind] = Path(path.lstrip("/"))
    for kind, top, names in (("", groups, _V2), ("memory", groups / "memory", _V1)):
        for level in (paths[kind], *paths[kind].parents):
            yield top / level, names


def _left(group: Path, limit_file: str, used_file: str, used_name: str) -> float | None:
    try:
        limit = (group / limit_file).read_text().strip()
        lines = (group / used_file).read_text().splitlines()
        used = dict(line.split() for line in lines)[used_name]
    except (OSError, KeyError, ValueError):
        return None
    return None if limit == "max" or int(limit) >= _NO_LIMIT else float(int(limit) - int(used))
