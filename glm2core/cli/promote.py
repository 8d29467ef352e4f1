"""`python -m glm2core promote`: registers the tuned model in MLflow's model registry."""

import argparse

from glm2core.console import closing_table
from glm2core.params import load_params
from glm2core.tracking.registry import promote


def run(arguments: argparse.Namespace) -> None:
    """Register models/tuned under `arguments.name` (default: the experiment's name).

    Raises:
        UserError: there is no tuned model, the workspace differs from dvc.lock, or no recorded run made this model.
    """
    params = load_params()
    name = arguments.name or params.tracking.experiment
    kept = promote(name, params)
    title = f"{kept.name}, version {kept.version}" + ("" if kept.new else " (registered before)")
    closing_table(
        title,
        dict(kept.figures),
        {
            "the version and its origin": f"make ui, then /#/models/{kept.name}/versions/{kept.version}",
            "to restore these weights later": kept.restore or "not yet possible, see below",
        },
    )
    if kept.restore is None:
        print(
            "promote: no commit holds this dvc.lock, so these weights can't be found once dvc.lock changes. Commit it "
            "(git add dvc.lock params.yaml && git commit), then promote again to give the version its restore command."
        )
