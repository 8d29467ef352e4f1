"""Where runs are recorded (in the project's database or on the user's server), and that server's time limits."""

import os
from pathlib import Path

_SQLITE = "sqlite:///"
_SERVER = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}  # seconds and retries; MLflow's defaults are 120 and 7
_PATIENCE = 7.0  # seconds: two tries, and MLflow's wait between them


def store_uri(root: Path) -> str:
    """The user's MLFLOW_TRACKING_URI if it is set; otherwise the URI of the project's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(root)


def own_uri(root: Path) -> str:
    """The URI of the project's own store, a file that `mlflow ui` opens by default at the project root."""
    return f"{_SQLITE}{root / 'mlflow.db'}"


def is_sqlite(uri: str) -> bool:
    """Whether the store is a file on this machine."""
    return uri.startswith(_SQLITE)


def sqlite_file(uri: str) -> str:
    """The path in a sqlite URI."""
    return uri.removeprefix(_SQLITE)


def limit_requests() -> None:
    """Set short limits for requests to a server, unless the user has set limits. MLflow reads them at each request."""
    for name, value in _SERVER.items():
        os.environ.setdefault(name, value)


def patience() -> float:
    """Seconds to wait for a server at the end of a stage: `_PATIENCE`, or the user's limit if that is longer."""
    try:
        return max(_PATIENCE, float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "0")))
    except ValueError:
        return _PATIENCE  # MLflow itself reports what is wrong with the value
