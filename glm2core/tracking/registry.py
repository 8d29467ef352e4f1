"""Registers the tuned model, with its figures and its origin, as a version in MLflow's model registry.

The weights are not copied, because DVC's cache already holds them. The version records their hash in that cache. The
version's source is models/tuned, and its tag `restore` is the command that restores the weights to that folder.
"""

import sqlite3
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from glm2core.errors import UserError, masked
from glm2core.files import project_root
from glm2core.params import Params
from glm2core.tracking.address import is_sqlite, store_uri
from glm2core.tracking.headlines import headlines
from glm2core.tracking.lineage import MODEL, Lineage, current_lineage, restore_command, stage_figures
from glm2core.tracking.store import locked_client, metric_name

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

_ORIGIN = ("git_commit", "git_dirty", "dvc_experiment")  # tags of the training run


@dataclass(frozen=True)
class Promotion:
    """A registered version of a model.

    Attributes:
        name, version: the registered model's name, and the version's number.
        new: False if these weights from this run were already registered; then that version's tags are rewritten.
        figures: `<stage>/<name>` -> value.
        restore: the command that restores the weights; None if neither a commit nor an experiment contains them.
        run: id of the run with these figures.
    """

    name: str
    version: str
    new: bool
    figures: dict[str, float]
    restore: str | None
    run: str


def promote(name: str, params: Params) -> Promotion:
    """Register models/tuned as a version of the model `name`.

    Args:
        params: the workspace's params, which name the MLflow experiment.

    Raises:
        UserError: there is no tuned model, the workspace differs from dvc.lock, the store contains no run with
            these figures, or the store can't be used.
    """
    lineage = current_lineage()
    # Imported here because MLflow takes a second, and problems with the workspace should be reported first.
    from mlflow.exceptions import MlflowException

    try:
        with locked_client(project_root(), store_uri(project_root())) as client:
            return _register(client, name, params.tracking.experiment, lineage)
    except (MlflowException, sqlite3.Error, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"MLflow's store at {masked(store_uri(project_root()))} could not be used: {reason}") from error


def _register(client: "MlflowClient", name: str, experiment: str, lineage: Lineage) -> Promotion:
    train, evaluate = (_run_of(client, experiment, stage) for stage in ("train", "evaluate"))
    row = client.get_run(evaluate.data.tags["mlflow.parentRunId"])
    restore = restore_command(lineage, train.data.tags.get("dvc_experiment"))
    figures = _headlines()
    tags: dict[str, str] = {key: value for key, value in asdict(lineage).items() if value}
    tags |= {key: train.data.tags[key] for key in _ORIGIN if key in train.data.tags}
    tags |= {"train_run": train.info.run_id, "evaluate_run": evaluate.info.run_id}
    tags |= {"restore": restore} if restore else {}
    tags |= {key: f"{value:g}" for key, value in figures.items()}
    version, new = _version(client, name, row, lineage, tags)
    return Promotion(name, str(version.version), new, figures, restore, row.info.run_id)


def _run_of(client: "MlflowClient", experiment: str, stage: str) -> "Run":
    """A stage's newest finished run that has all figures in metrics/<stage>.json, including the seconds."""
    figures = {metric_name(key): float(value) for key, value in stage_figures(stage).items()}
    found = client.get_experiment_by_name(experiment)
    wanted = f"tags.kind = 'stage' and tags.stage = '{stage}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([found.experiment_id], wanted) if found else []
    for run in runs:
        if figures.items() <= run.data.metrics.items():
            return run
    raise UserError(
        f"no run in MLflow's experiment {experiment} at {masked(client.tracking_uri)} has the figures in "
        f"metrics/{stage}.json. That run was deleted, or it was made on a different machine or in a different store. "
        f"Set MLFLOW_TRACKING_URI to the run's store, or run `dvc repro -f {stage}` here."
    )


def _headlines() -> dict[str, float]:
    """`<stage>/<name>` -> figure, for the headline figures."""
    chosen: dict[str, float] = {}
    for stage in ("train", "evaluate"):
        figures = stage_figures(stage)
        chosen |= {f"{stage}/{name}": figures[name] for name in headlines(stage, figures)}
    return chosen


def _version(
    client: "MlflowClient", name: str, row: "Run", lineage: Lineage, tags: dict[str, str]
) -> tuple["ModelVersion", bool]:
    """The version of these weights from this run: the existing one with its `tags` rewritten, or a new one."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(
            name, description="Tuned with glm2core. A version's tag `restore` is the command that restores its weights."
        )
    for there in client.search_model_versions(f"name = '{name}'"):
        if there.run_id == row.info.run_id and there.tags.get("model_md5") == lineage.model_md5:
            for key, value in tags.items():
                client.set_model_version_tag(name, there.version, key, value)
            return there, False
    source = _source(row)
    return client.create_model_version(name, source, row.info.run_id, tags=tags, description=_describe(tags)), True


def _source(row: "Run") -> str:
    """models/tuned itself; for a server, which does not accept paths of other machines, the run's own dvc.lock."""
    root = project_root()
    return (root / MODEL).as_uri() if is_sqlite(store_uri(root)) else f"runs:/{row.info.run_id}/dvc.lock"


def _describe(tags: dict[str, str]) -> str:
    """Markdown for MLflow's page of a version."""
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in tags.items())
    how = (
        f"`{tags['restore']}` restores these weights to {MODEL}."
        if "restore" in tags
        else f"No commit names these weights yet. DVC's cache keeps them as `{tags['model_md5']}`."
    )
    return f"{how}\n\n| | |\n|---|---|\n{rows}\n"
