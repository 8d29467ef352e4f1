"""`python -m glm2core promote`: keep the tuned model as a version in MLflow's model registry."""

import argparse

from glm2core.console import closing_table
from glm2core.params import load_params
from glm2core.tracking.registry import promote


def run(arguments: argparse.Namespace) -> None:
    """Register models/tuned under `arguments.name` (the experiment's name where there is none).

    Raises:
        UserError: no tuned model, a stale workspace, or no run that made it.
    """
    params = load_params()
    name = arguments.name or params.tracking.experiment
    kept = promote(name, params)
    title = f"{kept.name}, version {kept.version}" + ("" if kept.new else " (registered before)")
    closing_table(
        title,
        dict(kept.figures),
        {
            "the version, with what it was made from": f"make ui, then /#/models/{kept.name}/versions/{kept.version}",
            "these weights again, whatever models/tuned holds by then": kept.restore or "not yet possible, see below",
        },
    )
    if kept.restore is None:
        print(
            "promote: no commit holds this dvc.lock, so nothing names these weights once dvc.lock changes. Commit it "
            "(git add dvc.lock params.yaml && git commit), then promote again: the version gets the command."
        )
