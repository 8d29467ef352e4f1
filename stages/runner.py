"""Runs any stage: checks params first, prints errors as sentences, and returns 0 only on success."""

import sys
from collections.abc import Callable
from pathlib import Path

from glm2core.files import project_root, require_utf8_name
from glm2core.params import Params, load_params
from glm2core.process import prepare_process
from glm2core.sentences import sentence_of

INTERRUPTED = 130
METRICS = Path("metrics")
_ORDER = ("convert", "tokenize", "train", "evaluate")


def run_stage(name: str, stage: Callable[[Params], None], process: str | None = None) -> int:
    """Run one stage and return its exit code: 0 only when its outputs are complete.

    Args:
        process: number of this process, shown in messages; None = there is only one process.
    """
    shown = name if process is None else f"{name}, process {process}"
    try:
        _forget_figures(name)
        require_utf8_name(project_root())
        prepare_process()
        stage(load_params())
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        print(f"\n{shown}: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{shown}: stopped; nothing half-done was kept. Run again to continue.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _forget_figures(name: str) -> None:
    """Remove the metrics of this and later stages: if the run stops here, they would be those of another run."""
    for stage in _ORDER[_ORDER.index(name) :]:
        (METRICS / f"{stage}.json").unlink(missing_ok=True)
