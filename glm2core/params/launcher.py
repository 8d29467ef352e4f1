"""Checks `train.launcher`, which names the program that starts the train stage, and that program's options.

No part of `train.launcher` reaches a shell.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from glm2core.errors import printable

CONFIG_FILE = "--config_file"
_LONGEST = 500  # characters
_PROCESSES = re.compile(r"[1-9][0-9]{0,3}|gpu|cpu|auto")
_NODES = re.compile(r"[1-9][0-9]{0,3}(:[1-9][0-9]{0,3})?")
_NUMBER = re.compile(r"[1-9][0-9]{0,3}")
_RANK = re.compile(r"[0-9]{1,4}")
_BACKEND = re.compile(r"c10d|static")
_ENDPOINT = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_CONFIG = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*\.ya?ml")

# Each program's name, the module to run for it, and its options with the form of their values
_PROGRAMS: dict[str, tuple[str, dict[str, tuple[re.Pattern[str], str]]]] = {
    "python": ("", {}),
    "torchrun": (
        "torch.distributed.run",
        {
            "--nproc_per_node": (_PROCESSES, "a number from 1 to 9999, gpu, cpu or auto"),
            "--nnodes": (_NODES, "a number from 1 to 9999, or two as in 1:4"),
            "--node_rank": (_RANK, "a number from 0 to 9999"),
            "--rdzv_backend": (_BACKEND, "c10d or static"),
            "--rdzv_endpoint": (_ENDPOINT, "a host, or host:port"),
        },
    ),
    "accelerate launch": (
        "accelerate.commands.launch",
        {
            "--num_processes": (_NUMBER, "a number from 1 to 9999"),
            CONFIG_FILE: (_CONFIG, "a .yaml file inside the project, as a path relative to the project's folder"),
        },
    ),
}


def launcher_command(launcher: str) -> tuple[str, list[str]]:
    """Return the module that starts the stage, and its options, each followed by its value; ("", []) for plain python.

    Raises:
        ValueError: the program or an option is unknown, or a value does not have the required form.
    """
    if not launcher.isprintable():
        raise ValueError("holds a control character or a line break; write the command on one line")
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise ValueError(f"can't be split into words ({str(error).lower()})") from None
    program = " ".join(words[:2]) if words[:1] == ["accelerate"] else "".join(words[:1])
    if program not in _PROGRAMS:
        raise ValueError(f"must begin with one of {', '.join(_PROGRAMS)}; it begins with {printable(program)!r}")
    module, allowed = _PROGRAMS[program]
    return module, list(_checked(program, words[len(program.split()) :], allowed))


def _checked(program: str, words: list[str], allowed: dict[str, tuple[re.Pattern[str], str]]) -> Iterator[str]:
    """Yield the words, with `--option=value` split in two, and check that each option appears at most once."""
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    seen: set[str] = set()
    while rest:
        option, rest = rest[0], rest[1:]
        if option not in allowed:
            known = f"only {', '.join(allowed)}, each with one value" if allowed else "no options"
            raise ValueError(f"{printable(option)!r} is not allowed; {program} takes {known}")
        if option in seen:
            raise ValueError(f"{option} is given twice; keep one of the two")
        seen.add(option)
        pattern, meaning = allowed[option]
        value, rest = (rest[0], rest[1:]) if rest else ("", [])
        if not pattern.fullmatch(value):
            raise ValueError(f"{option} is {printable(value)!r}, but it must be {meaning}")
        yield option
        yield value


def _normal(launcher: str) -> str:
    launcher_command(launcher)
    return shlex.join(shlex.split(launcher))


Launcher = Annotated[str, Field(max_length=_LONGEST), AfterValidator(_normal)]
