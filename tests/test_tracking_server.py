"""A tracking server that is away, hangs or dies: a stage loses seconds, and no word of what it has to tell."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from glm2core.params import load_params
from glm2core.tracking import stage_run
from glm2core.tracking.execution import current_execution
from tests.test_tracking import artifacts, client, rows, runs, stage_process
from tests.tracking_server import failing_server
from tests.workspace import Workspace, serving

STEPS = 200


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("train:")]


def own_store_seconds(project: Path) -> float:
    """What a stage takes that makes the project's own store, and does nothing else, on this machine as it is now."""
    started = time.perf_counter()
    stage_process(project, "pass").communicate()
    seconds = time.perf_counter() - started
    (project / "mlflow.db").unlink()
    return seconds


@pytest.mark.parametrize("how", ["refuses", "hangs", "trickles", "breaks"])
def test_a_server_that_fails_costs_seconds_and_nothing_is_lost(project: Path, how: str) -> None:
    (project / "answers").mkdir()
    (project / "answers/all.jsonl").write_text("{}\n")
    body = f"""
        started = time.perf_counter()
        for step in range(1, {STEPS} + 1):
            run.report({{"loss": 1 / step}}, step)
        run.settled({{"train.learning_rate": 3e-3}})
        run.headline({{"loss": 0.25}})
        run.artifact(Path("answers"))
        run.dataset(Path("params.yaml"), context="training")
        print(time.perf_counter() - started)
    """
    with failing_server(how) as server:
        address = server.address.replace("//", "//ann:s3cr%2Ft@")
        own = own_store_seconds(project)
        started = time.perf_counter()
        process = stage_process(project, body, MLFLOW_TRACKING_URI=address)
        out, err = process.communicate()
        lost = time.perf_counter() - started - own
        asked = len(server.connections)
    assert process.returncode == 0, err
    assert float(out) < 0.5, "the stage waited for the network"
    assert lost < 10
    assert asked <= 2  # a try and one more
    (sentence,) = said(err)
    assert f"MLflow's server http://***@127.0.0.1:{server.port} does not answer" in sentence
    assert "ann" not in out + err and "s3cr" not in out + err
    assert "Traceback" not in err

    (row,), (train,) = rows(project), runs(project, kind="stage")
    assert row.info.run_name == current_execution(load_params()).name
    assert {row.info.status, train.info.status} == {"FINISHED"}
    loss = client(project).get_metric_history(train.info.run_id, "loss")
    assert [point.step for point in loss] == [*range(1, STEPS + 1), STEPS]
    assert row.data.metrics == {"train/loss": 0.25, "loss": 1 / STEPS}
    assert train.data.params["train.learning_rate"] == row.data.params["train.learning_rate"] == "0.003"
    assert artifacts(project, train) == {"answers"} and "params.yaml" in artifacts(project, row)
    assert [given.dataset.name for given in train.inputs.dataset_inputs] == ["params.yaml"]
    assert train.data.tags["tracking_server_failed"] == f"http://***@127.0.0.1:{server.port}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_real_server_that_dies_in_the_midst(project: Path, tmp_path: Path, number: signal.Signals) -> None:
    """What it took stays there, and the rest is in the project's store: together every point once or twice."""
    elsewhere = tmp_path / "server"
    elsewhere.mkdir()
    folder = Workspace(elsewhere, {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    store = f"sqlite:///{elsewhere / 'mlflow.db'}"
    command = f"mlflow server --workers 1 --backend-store-uri {store} --artifacts-destination {elsewhere / 'kept'}"
    body = """
        for step in range(1, 101):
            run.report({"loss": 1 / step}, step)
            time.sleep(0.002)
        run.artifact(Path("params.yaml"))
        while not os.path.exists("taken"):
            time.sleep(0.1)
        print("half", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        for step in range(101, 201):
            run.report({"loss": 1 / step}, step)
        run.headline({"loss": 0.5})
        print(time.perf_counter() - started)
    """
    own = own_store_seconds(project)
    with serving(folder, command) as address:
        process = stage_process(project, body, MLFLOW_TRACKING_URI=address)
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + 120
        while not any(
            list(elsewhere.glob(f"kept/*/{run.info.run_id}/*/params.yaml")) for run in _stage_runs(elsewhere)
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.5)
        (project / "taken").touch()
        assert process.stdout.readline() == "half\n"
        server = _processes_of(address)
        for member in server:
            member.send_signal(number)
        try:
            print("go", file=process.stdin, flush=True)
            assert float(process.stdout.readline()) < 0.5
            started = time.perf_counter()
            _, err = process.communicate()
            assert time.perf_counter() - started - own < 10
        finally:  # one that stands still would never end
            for member in server:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGCONT)
    assert process.returncode == 0, err
    assert len(said(err)) == 1 and "does not answer" in said(err)[0]
    (there,), (here,) = _stage_runs(elsewhere), runs(project, kind="stage")
    steps = [
        {point.step for point in client(where).get_metric_history(run.info.run_id, "loss")}
        for where, run in ((elsewhere, there), (project, here))
    ]
    assert steps[0] >= set(range(1, 100))
    assert steps[0] | steps[1] == set(range(1, 201))
    assert here.info.status == "FINISHED" and here.data.metrics["loss"] == 0.5
    assert here.info.run_name == there.info.run_name


def _processes_of(address: str) -> list[psutil.Process]:
    """A server, and the processes that it has started; the server first, that it starts none anew."""
    port = address.rpartition(":")[2]
    (server,) = [child for child in psutil.Process().children() if port in child.cmdline()]
    return [server, *server.children(recursive=True)]


def _stage_runs(folder: Path) -> list:
    if not (folder / "mlflow.db").exists() or client(folder).get_experiment_by_name("glm2core") is None:
        return []
    return runs(folder, kind="stage")


def test_a_server_that_answers_but_refuses_a_word_stays_in_use(project: Path, tmp_path: Path) -> None:
    from mlflow.exceptions import RestException

    from glm2core.tracking.store import server_is_gone

    refused = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"})
    broken = RestException({"error_code": "INTERNAL_ERROR", "message": "oh"})
    assert not server_is_gone(refused) and server_is_gone(broken)
    assert server_is_gone(ConnectionResetError()) and not server_is_gone(ImportError("boto3"))
    with pytest.raises(FileNotFoundError) as missing:
        (project / "no such file").read_bytes()
    assert not server_is_gone(missing.value)


def test_a_users_own_limits_are_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "9")
    with stage_run("train", load_params()):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "9"
