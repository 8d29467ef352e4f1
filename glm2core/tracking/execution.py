"""The pipeline execution that a stage belongs to, and the process that runs it. This module does not use MLflow."""

import hashlib
import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel
from ruamel.yaml import YAML

from glm2core.errors import UserError
from glm2core.params import PARAMS_FILE, Params, flatten, parse_params, unsettled

PIPELINE_FILE = Path("dvc.yaml")
LOCK_FILE = Path("dvc.lock")
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Execution:
    """One run of the pipeline, identified the same way in all of its stages.

    Attributes:
        key: an id that is the same for all stages of the execution, even if it is resumed after a kill.
        name: a readable name, made of the params that differ from the commit's and of DVC's experiment name, if any.
        commit: the git commit that the workspace is based on; None outside git.
        dirty: whether the workspace differs from that commit. Outs and params don't count; they are recorded anyway.
        experiment: DVC's experiment name; None under `dvc repro`.
    """

    key: str
    name: str
    commit: str | None
    dirty: bool
    experiment: str | None


def current_execution(params: Params) -> Execution:
    """The execution that this process belongs to.

    A DVC experiment is identified by its commit and name; a `dvc repro` is identified by its params, commit and diff.
    """
    commit = (git_output("rev-parse", "HEAD") or "").strip() or None
    diff = (
        git_output("diff", "HEAD", "--full-index", "--", ".", *(f":(exclude){out}" for out in _apart_from_code())) or ""
    )
    experiment = os.environ.get("DVC_EXP_NAME")
    if experiment:
        commit = os.environ.get("DVC_EXP_BASELINE_REV") or commit
        key = _digest([commit, experiment])
    else:
        key = _digest([flat_params(params), commit, diff])
    return Execution(key, _name(changed_params(params, commit), experiment, commit), commit, bool(diff), experiment)


def changed_params(params: Params, commit: str | None) -> dict[str, str]:
    """Dotted key -> value, for the keys whose value differs from the one in the commit's params.yaml or is new."""
    committed = git_output("show", f"{commit}:./{PARAMS_FILE}") if commit else None
    if committed is None:
        return {}
    try:
        before = _texts(parse_params(committed))
    except UserError:  # the commit's params are of a different version of this project
        return {}
    return {key: text for key, text in _texts(params).items() if before.get(key) != text}


def _texts(params: Params) -> dict[str, str]:
    values = flatten(params)
    return {key: f"{value:g}" if isinstance(value, float) else param_text(value) for key, value in values.items()}


def _name(changes: dict[str, str], experiment: str | None, commit: str | None) -> str:
    """A name such as `method=qlora, rope.type=yarn (salty-tern)`, or `params of 1a2b3c4` if nothing was changed."""
    said = ", ".join(f"{key.partition('.')[2]}={text}" for key, text in changes.items())
    said = said if len(said) <= _LONGEST_NAME else f"{said[:_LONGEST_NAME]}..."
    if experiment:
        return f"{said} ({experiment})" if said else experiment
    return said or (f"params of {commit[:7]}" if commit else "params without a commit")


def flat_params(params: Params) -> dict[str, str]:
    """Dotted key -> value as in params.yaml (null, true, 1.0, lists as JSON), without keys that are not yet settled."""
    later = unsettled(params)
    return {key: param_text(value) for key, value in flatten(params).items() if key not in later}


def stages_before(stage: str) -> dict[str, str]:
    """Each stage before `stage` in dvc.yaml -> digest of the inputs that dvc.lock records for its current outs."""
    stages = list(read_yaml(PIPELINE_FILE).get("stages", {}))
    locked = read_yaml(LOCK_FILE).get("stages", {})
    earlier = stages[: stages.index(stage)] if stage in stages else []
    return {name: _inputs_digest(locked[name]) for name in earlier if name in locked}


def this_process() -> str:
    """Host, process id and start time, which identify this process even if its id is reused."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_gone(process: str) -> bool:
    """Whether a process named by `this_process` has ended; False for another host's process, which can't be checked."""
    host, pid, started = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


def _inputs_digest(entry: dict[str, Any]) -> str:
    deps = [(dep["path"], dep.get("md5") or dep.get("etag") or dep.get("checksum")) for dep in entry.get("deps", [])]
    return _digest([entry.get("cmd"), deps, entry.get("params")])


def _apart_from_code() -> list[str]:
    """Paths that the diff of the code leaves out: those that runs change; and params, which are compared separately."""
    paths = [str(LOCK_FILE), str(PARAMS_FILE)]
    for stage in read_yaml(PIPELINE_FILE).get("stages", {}).values():
        for kind in ("outs", "metrics", "plots"):
            paths += [next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])]
    return paths


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; empty if the file does not exist."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def git_output(*arguments: str) -> str | None:
    """The output of a git command; None if it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no commit yet
    return done.stdout


def param_text(value: Any) -> str:
    """A value as it is written in params.yaml; lists are written as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(
        value, default=lambda item: item.model_dump(exclude_defaults=True) if isinstance(item, BaseModel) else str(item)
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
