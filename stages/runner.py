"""Runs any stage: checks params first, prints error messages instead of tracebacks, and returns 0 only on success."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from glm2core.errors import UserError
from glm2core.files import project_root, require_utf8_name
from glm2core.params import PARAMS_FILE, Params, load_params
from glm2core.process import prepare_process
from glm2core.sentences import sentence_of

INTERRUPTED = 130
METRICS = Path("metrics")
_ORDER = ("convert", "tokenize", "train", "evaluate")


def run_stage(name: str, stage: Callable[[Params], None], process: str | None = None) -> int:
    """Run one stage and return its exit code, which is 0 only if the stage's outputs are complete.

    Args:
        process: the number of this process, which messages contain; None = there is only one process.
    """
    shown = name if process is None else f"{name}, process {process}"
    try:
        _forget_figures(name)
        require_utf8_name(project_root())
        prepare_process()
        stage(_checked_params())
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        print(f"\n{shown}: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{shown}: stopped; nothing half-done was kept. Run again to continue.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _checked_params() -> Params:
    """Load the params. An error message also explains how to undo a value that `-S` wrote into params.yaml.

    Raises:
        UserError: some keys are wrong.
    """
    try:
        return load_params()
    except UserError as error:
        if not _is_committed(PARAMS_FILE):
            raise UserError(
                f"{error}\n`-S` leaves its values in {PARAMS_FILE}, so the next run uses them, too. This command goes "
                f"back to your last commit, and also undoes your own changes to the file: git checkout {PARAMS_FILE}"
            ) from None
        raise


def _is_committed(file: Path) -> bool:
    """Whether the file equals its version in the last commit; True if git can't tell."""
    try:
        return subprocess.run(["git", "diff", "--quiet", "HEAD", "--", file], capture_output=True).returncode != 1
    except OSError:  # no git
        return True


def _forget_figures(name: str) -> None:
    """Remove the metrics of this stage and later ones, because they would be an earlier run's if this run stops."""
    for stage in _ORDER[_ORDER.index(name) :]:
        (METRICS / f"{stage}.json").unlink(missing_ok=True)
