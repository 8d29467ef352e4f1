"""Limits on memory below what the machine has: a container's (cgroups of both versions), and a shell's (ulimit)."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Of a version: the files of the limit and of what is used, and in the latter the line that leaves page cache out.
_V2 = ("memory.max", "memory.stat", "anon")
_V1 = ("memory.limit_in_bytes", "memory.stat", "total_rss")
_NO_LIMIT = 1 << 60  # version 1 has a number near 2^63 where there is none


def left_to_container(groups: Path = _GROUPS, own: Path = _OWN_GROUPS) -> float | None:
    """Bytes that the tightest limit on this process's control groups leaves; None = no limit.

    Args:
        groups: where control groups are mounted.
        own: names those of this process, a line each: `number:controllers:path`.
    """
    left = [found for group, names in _levels(groups, own) if (found := _left(group, *names)) is not None]
    return min(left, default=None)


def left_to_process() -> float | None:
    """Bytes that `ulimit -v` (address space) and `ulimit -d` (data) leave this process; None = no limit."""
    used = psutil.Process().memory_info()
    limits = {resource.RLIMIT_AS: used.vms, resource.RLIMIT_DATA: getattr(used, "data", used.rss)}
    left = [
        float(max(0, soft - taken))
        for limit, taken in limits.items()
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]
    return min(left, default=None)


def _levels(groups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The groups of this process and all above them; in a container its own group may be mounted as the top."""
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
