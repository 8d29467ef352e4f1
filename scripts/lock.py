"""Rewrite requirements.lock and requirements-dev.lock from the packages in this environment (`make lock`).

The first file lists the packages for pyproject.toml's dependencies. The second lists what the extra `dev` also needs.
"""

import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
_OF_PIP = {"pip", "setuptools", "wheel"}  # venv includes them


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    run = _needed(project["dependencies"])
    dev = _needed(_extra(project, "dev"))
    _write(ROOT / "requirements.lock", run)
    _write(ROOT / "requirements-dev.lock", {name: found for name, found in dev.items() if name not in run})
    return 0


def _extra(project: dict[str, Any], name: str) -> list[str]:
    """Return an extra's requirements. If a requirement is the project itself, its extras' requirements replace it."""
    found: list[str] = []
    for text in project["optional-dependencies"][name]:
        wanted = Requirement(text)
        own = canonicalize_name(wanted.name) == canonicalize_name(project["name"])
        found += [one for extra in sorted(wanted.extras) for one in _extra(project, extra)] if own else [text]
    return found


def _needed(requirements: list[str]) -> dict[str, Distribution]:
    """Return the packages that requirements need here, keyed by name, without those that are not installed."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        inner = [Requirement(text) for text in found[name].requires or []]
        waiting += [
            one
            for one in inner
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
    return {name: package for name, package in found.items() if name not in _OF_PIP}


def _write(lock: Path, packages: dict[str, Distribution]) -> None:
    head = [line for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    # torch's build tag is not on the public index
    pins = {package.metadata["Name"]: package.version.removesuffix("+cpu") for package in packages.values()}
    lines = [f"{name}=={pins[name]}" for name in sorted(pins, key=str.lower)]
    lock.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
