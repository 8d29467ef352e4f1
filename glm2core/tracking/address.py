"""Where runs are recorded: a database of the project, or the user's server, and how patiently that one is asked."""

import os
from pathlib import Path

_SQLITE = "sqlite:///"
_SERVER = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # seconds; MLflow has 120 and 7
_PATIENCE = 7.0  # seconds: two tries, and what MLflow waits between them


def store_uri(root: Path) -> str:
    """The user's MLFLOW_TRACKING_URI, else the project's own."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(root)


def own_uri(root: Path) -> str:
    """The file that plain `mlflow ui` opens at the project root."""
    return f"{_SQLITE}{root / 'mlflow.db'}"


def is_sqlite(uri: str) -> bool:
    """Whether the store is a file of this machine."""
    return uri.startswith(_SQLITE)


def sqlite_file(uri: str) -> str:
    """The path in a sqlite URI."""
    return uri.removeprefix(_SQLITE)


def limit_requests() -> None:
    """Have MLflow give a server up soon, as far as the user has set no limits; read with each request."""
    for name, value in _SERVER.items():
        os.environ.setdefault(name, value)


def patience() -> float:
    """Seconds that the end of a stage waits for a server: `_PATIENCE`, or a longer limit that the user has set."""
    try:
        return max(_PATIENCE, float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "0")))
    except ValueError:
        return _PATIENCE  # MLflow will say what is wrong with it
