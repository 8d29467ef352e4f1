"""MLflow's web pages for the runs, on a local port."""

import os
import socket
import sys

from glm2core.errors import UserError
from glm2core.files import project_root
from glm2core.tracking.address import is_sqlite, store_uri
from glm2core.tracking.store import locked_client

_HOST = "127.0.0.1"
_FIRST, _LAST = 5000, 5099


def become_pages(experiment: str, port: int | None = None) -> None:
    """Print the addresses of an experiment's runs, then replace this process with MLflow's server.

    Args:
        port: the port to listen on; None = the first free port from 5000 on.

    Raises:
        UserError: no port is free, or the store is the user's own MLflow server, which has its own pages.
    """
    uri = store_uri(project_root())
    if not is_sqlite(uri):
        raise UserError("MLFLOW_TRACKING_URI names a server. Open the server's address in a browser.")
    with locked_client(project_root(), uri) as client:
        found = client.get_experiment_by_name(experiment)
    port = _free_port() if port is None else port
    # Without the workflow parameter MLflow opens a page for GenAI
    address = f"http://{_HOST}:{port}/#/experiments/{found.experiment_id if found else 0}/runs"
    print(f"all runs, one per row:   {address}?workflowType=machine_learning")
    print(f"their figures as charts: {address}?workflowType=machine_learning&compareRunsMode=CHART")
    print("Ctrl-C stops the server.", flush=True)
    command = ["mlflow", "ui", "--backend-store-uri", uri, "--host", _HOST, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _free_port() -> int:
    for port in range(_FIRST, _LAST + 1):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise UserError(f"no port from {_FIRST} to {_LAST} is free. Name a free port: python -m glm2core ui --port N")
