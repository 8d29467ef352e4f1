"""The origin of the workspace's tuned model, and how to restore that model. This module does not use MLflow."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm2core.errors import UserError
from glm2core.files import sha256_file
from glm2core.params import PARAMS_FILE
from glm2core.tracking.execution import LOCK_FILE, git_output, read_yaml

MODEL = Path("models/tuned")
METRICS = Path("metrics")
_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class Lineage:
    """The tuned model's identity and origin.

    Attributes:
        model_md5: DVC's hash of models/tuned, which is the model's key in DVC's cache.
        data_md5: DVC's hash of data/tokenized, which contains the training rows.
        tokenizer_sha256: SHA-256 hash of tokenizer.model.
        params_sha256: SHA-256 hash of params.yaml.
        lock_commit: the git commit that contains the workspace's dvc.lock and params.yaml; None if no commit does.
    """

    model_md5: str
    data_md5: str
    tokenizer_sha256: str
    params_sha256: str
    lock_commit: str | None


def current_lineage() -> Lineage:
    """The lineage of models/tuned, which must match dvc.lock.

    Raises:
        UserError: there is no tuned model, or the workspace differs from dvc.lock.
    """
    if not MODEL.is_dir():
        raise UserError(f"{MODEL} does not exist, so there is nothing to promote. Run `dvc repro` first.")
    _require_up_to_date()
    stages = read_yaml(LOCK_FILE)["stages"]
    return Lineage(
        model_md5=_out_md5(stages["train"], MODEL),
        data_md5=_out_md5(stages["tokenize"], Path("data/tokenized")),
        tokenizer_sha256=sha256_file(MODEL / _TOKENIZER),
        params_sha256=sha256_file(PARAMS_FILE),
        lock_commit=_commit_of_lock(),
    )


def stage_figures(stage: str) -> dict[str, float]:
    """The figures in metrics/<stage>.json, without the settled values."""
    values: dict[str, Any] = json.loads((METRICS / f"{stage}.json").read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def restore_command(lineage: Lineage, experiment: str | None) -> str | None:
    """The command that restores this version of models/tuned; None if neither a commit nor an experiment contains it.

    Args:
        experiment: name of the DVC experiment that made this version.
    """
    if lineage.lock_commit:
        return f"git checkout {lineage.lock_commit} && dvc checkout"
    if experiment and git_output("for-each-ref", f"refs/exps/*/*/{experiment}"):
        return f"dvc exp apply {shlex.quote(experiment)}"
    return None


def _require_up_to_date() -> None:
    # DVC's command reads DVC's state of the workspace, so it runs in a separate process, as a user would run it.
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dvc status` failed: {done.stderr.strip()}. Run this command from the project's folder.")
    changes = json.loads(done.stdout or "{}")
    if changes:
        raise UserError(
            f"the workspace differs from dvc.lock ({_in_words(changes)}), so the figures may be for a different model. "
            "Run `dvc repro` (or `dvc checkout` to return to the state in dvc.lock), then promote."
        )


def _in_words(changes: dict[str, list[Any]]) -> str:
    """{'train': [{'changed outs': {'models/tuned': 'modified'}}]} -> 'train: changed outs models/tuned (modified)'."""
    return "; ".join(f"{stage}: {', '.join(map(_change_in_words, found))}" for stage, found in changes.items())


def _change_in_words(change: Any) -> str:
    if not isinstance(change, dict):
        return str(change)
    kind, places = next(iter(change.items()))
    return f"{kind} " + ", ".join(f"{place} ({how})" for place, how in places.items())


def _out_md5(entry: dict[str, Any], path: Path) -> str:
    return next(out["md5"] for out in entry["outs"] if out["path"] == path.as_posix())


def _commit_of_lock() -> str | None:
    """HEAD, if it contains the workspace's dvc.lock and params.yaml."""
    files = ("--", str(LOCK_FILE), str(PARAMS_FILE))
    if git_output("diff", "HEAD", "--name-only", *files) or not git_output("ls-files", *files):
        return None
    return (git_output("rev-parse", "HEAD") or "").strip() or None
