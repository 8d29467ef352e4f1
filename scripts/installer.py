"""Install packages into an environment with uv, which is much faster than pip, or with pip if uv is not available.

uv does not read pip's configuration, so the settings that choose packages and their sources are passed on. Otherwise, a
machine on which pip takes torch's CPU build from a folder would download gigabytes of the CUDA build. This module needs
only the standard library.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV = "uv==0.13.9"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BACKENDS = {"cpu": "cpu", "cuda": "auto"}  # what `--torch` means to uv: auto is the build that fits the driver

# pip's settings (https://pip.pypa.io/en/stable/cli/pip_install/) -> uv's options, one for each value
_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
    "no-binary": "--no-binary",
    "only-binary": "--only-binary",
}
_VARIABLES = {
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
}
_OWN_SECTION = {":env:": 2, "install": 1}  # variables override a command's section, which overrides the general one


def install(python: Path, lock: Path, *, torch: str | None = None, pass_fds: Sequence[int] = ()) -> None:
    """Install all packages that a lock file lists.

    Args:
        python: the interpreter of the environment, in which pip is installed.
        torch: the build of torch, cpu or cuda; None = the build on the configured indexes.
        pass_fds: file descriptors that the installers keep open.

    Raises:
        subprocess.CalledProcessError: both uv and pip failed.
    """
    settings = pip_settings(python)
    uv = _find_uv(python, pass_fds)
    if uv is not None:
        options, variables = uv_settings(settings)
        command = [uv, "pip", "install", "--python", str(python), *options]
        environment = {**os.environ, **variables}
        backend = ["--torch-backend", BACKENDS[torch]] if torch else []
        if backend and _resolves([*command, *backend], lock, environment):
            command += backend
        elif backend:
            print(
                f"set-up: no {torch} build found (see above), so the package index's build is taken. To name a "
                "mirror of PyTorch's wheels, set PIP_FIND_LINKS.",
                flush=True,
            )
        else:
            _tell_of_gigabytes(command, lock, environment)
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        done = subprocess.run([*command, *quiet, "-r", str(lock)], env=environment, check=False, pass_fds=pass_fds)
        if done.returncode == 0:
            return
        print("set-up: uv could not install the packages (see above); trying pip", file=sys.stderr, flush=True)
    _by_pip(python, lock, torch, pass_fds)


def pip_settings(python: Path) -> dict[str, str]:
    """Return pip's settings from its files and the environment, keyed by their names without a section."""
    command = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        key, equals, value = line.partition("=")
        if not equals:  # a message of pip
            continue
        section, _, name = key.partition(".")
        rank = _OWN_SECTION.get(section, 0)
        if rank >= found.get(name, (0, ""))[0]:
            found[name] = (rank, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def uv_settings(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the options and environment variables with which uv uses pip's settings."""
    options = ["--index-strategy", "unsafe-best-match"]  # pip also takes the best of all indexes
    for name, option in _OPTIONS.items():
        options += [part for value in settings.get(name, "").split() for part in (option, value)]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    variables = {
        variable: settings[name]
        for name, names in _VARIABLES.items()
        if name in settings
        for variable in names
        if variable not in os.environ
    }
    return options, variables


def _find_uv(python: Path, pass_fds: Sequence[int]) -> str | None:
    """Return the user's own uv, or install one into the environment with pip; None if both fail."""
    own = shutil.which("uv") or shutil.which("uv", path=str(python.parent))
    if own is not None:
        return own
    done = subprocess.run([*_pip(python), UV], capture_output=True, check=False, pass_fds=pass_fds)
    found = shutil.which("uv", path=str(python.parent))
    if done.returncode or found is None:
        print("set-up: the package index has no uv; pip takes a few minutes", flush=True)
        return None
    return found


def _resolves(command: Sequence[str], lock: Path, environment: Mapping[str, str]) -> bool:
    """Whether uv finds the lock's torch; False if PyTorch's own index can't be reached, as behind some firewalls."""
    patience = {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "15"}
    tried = [*command, "--quiet", "--dry-run", "--no-deps", *torch_of(lock)]
    return subprocess.run(tried, env={**patience, **environment}, check=False).returncode == 0


def _tell_of_gigabytes(command: Sequence[str], lock: Path, environment: Mapping[str, str]) -> None:
    """Print a hint if CUDA's libraries would be installed on a machine without a GPU."""
    if any((shutil.which("nvidia-smi"), Path("/proc/driver/nvidia").exists(), Path("/dev/kfd").exists())):
        return
    tried = subprocess.run(
        [*command, "--dry-run", *torch_of(lock)], env=environment, capture_output=True, text=True, check=False
    )
    if " + nvidia-" in tried.stderr:
        print(
            "set-up: there is no GPU here, but the package index offers torch's CUDA build, which is gigabytes larger. "
            "For the CPU build, press Ctrl-C and enter make setup TORCH=cpu",
            flush=True,
        )


def torch_of(lock: Path) -> list[str]:
    """The line of a lock that pins torch, if it has one."""
    return [line for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]


def _by_pip(python: Path, lock: Path, torch: str | None, pass_fds: Sequence[int]) -> None:
    index = ["--extra-index-url", CPU_INDEX] if torch == "cpu" else []
    # torch comes first, because its build must be fixed before packages that accept any torch. It comes alone, because
    # pip asks an index that can't be reached several times for each package that torch needs
    for line in torch_of(lock):
        subprocess.run([*_pip(python), *index, "--no-deps", line], check=True, pass_fds=pass_fds)
    subprocess.run([*_pip(python), "--requirement", str(lock)], check=True, pass_fds=pass_fds)


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
