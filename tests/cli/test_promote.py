"""`python -m glm2core promote` on a real repro: the registry's entry, the way back to the weights, refusals."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from glm2core.files import sha256_file
from tests.workspace import Done, Workspace

pytestmark = pytest.mark.xdist_group("pipeline")  # the reproduced project is made once


@pytest.fixture(scope="module")
def workspace(reproduced_project: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the reproduced project, its MLflow store included."""
    folder = tmp_path_factory.mktemp("promote") / "project"
    shutil.copytree(reproduced_project.folder, folder, symlinks=True)
    return Workspace(folder, reproduced_project.environment)


@pytest.fixture(scope="module")
def promoted(workspace: Workspace) -> Done:
    return workspace.must("make", "-o", "setup", "promote")


def promote(workspace: Workspace, *arguments: str) -> Done:
    return workspace.run("python", "-m", "glm2core", "promote", *arguments)


def refusal(workspace: Workspace) -> str:
    done = promote(workspace)
    assert done.code == 1, done.out
    assert "Traceback" not in done.out
    return " ".join(done.out.split())


def weights(workspace: Workspace) -> str:
    return sha256_file(workspace.folder / "models" / "tuned" / "model.safetensors")


def test_a_version_holds_figures_and_lineage(workspace: Workspace, promoted: Done) -> None:
    (version,) = workspace.client().search_model_versions("name = 'glm2core'")
    row = workspace.row(None)
    children = workspace.children(row)
    lock = YAML(typ="safe").load((workspace.folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    commit = workspace.must("git", "rev-parse", "HEAD").out.strip()
    tags = version.tags
    assert version.run_id == row.info.run_id
    assert tags["train_run"] == children["train"].info.run_id
    assert tags["evaluate_run"] == children["evaluate"].info.run_id
    assert tags["model_md5"] == next(out["md5"] for out in lock["train"]["outs"] if out["path"] == "models/tuned")
    assert tags["data_md5"] == next(dep["md5"] for dep in lock["train"]["deps"] if dep["path"] == "data/tokenized")
    assert tags["tokenizer_sha256"] == sha256_file(workspace.folder / "models" / "base" / "tokenizer.model")
    assert tags["params_sha256"] == sha256_file(workspace.folder / "params.yaml")
    assert tags["git_commit"] == row.data.tags["git_commit"]  # which the run started from; its lock came after
    assert tags["git_dirty"] == "false"
    assert tags["lock_commit"] == commit
    assert tags["restore"] == f"git checkout {commit} && dvc checkout"
    for name in ("train/validation_loss", "evaluate/test_loss", "evaluate/retrieval_lines_512"):
        assert float(tags[name]) == pytest.approx(row.data.metrics[name], rel=1e-4)
        assert name in version.description
        assert name.split("/")[1] in (workspace.folder / "metrics" / f"{name.split('/')[0]}.json").read_text()
    assert "glm2core, version 1" in promoted.out
    assert "git checkout" in promoted.out


def test_the_weights_are_not_copied(workspace: Workspace, promoted: Done) -> None:
    (version,) = workspace.client().search_model_versions("name = 'glm2core'")
    assert version.source == (workspace.folder / "models" / "tuned").as_uri()
    assert list((workspace.folder / "mlruns").rglob("*.safetensors")) == []


def test_the_same_weights_are_one_version(workspace: Workspace, promoted: Done) -> None:
    again = promote(workspace)
    assert "version 1 (registered before)" in again.out
    assert len(workspace.client().search_model_versions("name = 'glm2core'")) == 1


def test_another_name_is_another_model(workspace: Workspace, promoted: Done) -> None:
    assert "kept, version 1" in promote(workspace, "--name", "kept").out


def test_an_experiments_version_says_how_to_apply_it_and_old_weights_come_back(
    workspace: Workspace, promoted: Done
) -> None:
    first = weights(workspace)
    workspace.must("dvc", "exp", "run", "-n", "other", "-S", "train.learning_rate=1e-3")
    second = weights(workspace)
    assert second != first
    assert "version 2" in promote(workspace).out
    versions = {v.version: v for v in workspace.client().search_model_versions("name = 'glm2core'")}
    assert versions[2].tags["dvc_experiment"] == "other"
    assert versions[2].tags["restore"] == "dvc exp apply other"
    assert versions[1].tags["model_md5"] != versions[2].tags["model_md5"]

    workspace.must("git", "checkout", "-q", "-f", "HEAD")
    branch = workspace.must("git", "rev-parse", "--abbrev-ref", "HEAD").out.strip()
    workspace.must("bash", "-c", versions[1].tags["restore"])
    assert weights(workspace) == first
    workspace.must("git", "checkout", "-q", branch)
    workspace.must("bash", "-c", versions[2].tags["restore"])
    assert weights(workspace) == second
    workspace.must("git", "checkout", "-q", "-f", "HEAD")
    workspace.must("dvc", "repro")  # from the cache, with the figures, which no commit holds


def test_weights_that_nothing_names_are_registered_with_a_warning(workspace: Workspace, promoted: Done) -> None:
    params = workspace.folder / "params.yaml"
    committed = params.read_text(encoding="utf-8")
    params.write_text(committed + "# a remark that git does not have yet\n", encoding="utf-8")
    done = promote(workspace, "--name", "uncommitted")
    params.write_text(committed, encoding="utf-8")
    assert "no commit holds this dvc.lock" in " ".join(done.out.split())
    (version,) = workspace.client().search_model_versions("name = 'uncommitted'")
    assert "restore" not in version.tags
    assert "lock_commit" not in version.tags

    promote(workspace, "--name", "uncommitted")
    (version,) = workspace.client().search_model_versions("name = 'uncommitted'")
    assert version.tags["restore"].startswith("git checkout ")


def test_a_stale_workspace_is_refused(workspace: Workspace, promoted: Done) -> None:
    config = workspace.folder / "models" / "tuned" / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + "\n")
    assert "train: changed outs models/tuned (modified)" in refusal(workspace)
    workspace.must("dvc", "checkout", "--force", "models/tuned")

    workspace.set_params({"train": {"max_steps": 7}})
    said = refusal(workspace)
    workspace.must("git", "checkout", "-q", "params.yaml")
    assert "train: changed deps params.yaml (" in said
    assert "Run `dvc repro`" in said


def test_no_tuned_model_is_refused(workspace: Workspace, promoted: Done) -> None:
    shutil.rmtree(workspace.folder / "models" / "tuned")
    said = refusal(workspace)
    workspace.must("dvc", "checkout")
    assert "models/tuned does not exist, so there is nothing to promote. Run `dvc repro` first." in said


def test_a_store_without_the_run_is_refused(workspace: Workspace, promoted: Done, tmp_path: Path) -> None:
    elsewhere = {**workspace.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/empty.db"}
    said = refusal(Workspace(workspace.folder, elsewhere))
    assert "no run in MLflow's experiment glm2core" in said
    assert "metrics/train.json" in said
    assert "Set MLFLOW_TRACKING_URI to the run's store, or run `dvc repro -f train` here." in said


def test_a_store_that_can_not_be_opened_is_a_sentence(workspace: Workspace, promoted: Done, tmp_path: Path) -> None:
    nowhere = {**workspace.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/no/folder.db"}
    assert "could not be used: unable to open database file" in refusal(Workspace(workspace.folder, nowhere))
