"""Replaces the train stage's process with its launcher, without a shell, to pass on signals and exit codes."""

import os
import sys
from pathlib import Path

from glm2core.errors import UserError, printable
from glm2core.files import project_root, resolve_path
from glm2core.params.launcher import CONFIG_FILE, launcher_command
from glm2core.params.yaml_text import parse_yaml, read_yaml_file

_LAUNCHED = "GLM2CORE_LAUNCHED"
_RANK = "RANK"  # set by every launcher, including one started by hand
_MOST_BYTES = 65_536
_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
_STARTS_OTHERS = ("commands", "command_file", "mpirun_config", "tpu_use_cluster", "tpu_use_sudo")


def is_launched() -> bool:
    """Whether a launcher has already started this process."""
    return _LAUNCHED in os.environ or _RANK in os.environ


def become_launcher(launcher: str, module: str) -> None:
    """Replace this process with the launcher, which runs `module`.

    Nothing is done if the launcher is plain python, or if a launcher has already started this process.

    Raises:
        UserError: accelerate's config file is missing, is outside the project, or would start something other than
            training on this machine.
    """
    program, options = launcher_command(launcher)
    if not program or is_launched():
        return
    if CONFIG_FILE in options:
        place = options.index(CONFIG_FILE) + 1
        options[place] = str(_checked_config(options[place]))
    command = [sys.executable, "-m", program, *options, "-m", module]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, _LAUNCHED: "1"})


def _checked_config(name: str) -> Path:
    file = resolve_path(name)
    if not file.is_file():
        raise UserError(
            f"train.launcher: {name} does not exist. Put accelerate's config file into the project's folder."
        )
    if not any(file.resolve().is_relative_to(place) for place in (Path.cwd().resolve(), project_root())):
        raise UserError(f"train.launcher: {name} is outside the project. Copy the file into the project's folder.")
    values = parse_yaml(read_yaml_file(file, _MOST_BYTES), file)
    values = values if isinstance(values, dict) else {}
    wanted = {"compute_environment": ("LOCAL_MACHINE",), "distributed_type": _KINDS}
    wrong = [
        f"{key}: {values.get(key)}" for key, allowed in wanted.items() if values.get(key, allowed[0]) not in allowed
    ]
    wrong += [key for key in _STARTS_OTHERS if values.get(key)]
    if wrong:
        raise UserError(
            f"{file}: {printable(wrong[0][:80])} is not supported. compute_environment must be LOCAL_MACHINE, "
            f"distributed_type must be one of {', '.join(_KINDS)}, and {', '.join(_STARTS_OTHERS)} must not be set."
        )
    return file.resolve()
