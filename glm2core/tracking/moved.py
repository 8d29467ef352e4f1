"""Keeps artifacts reachable after a project is moved or copied, because MLflow stores their absolute paths."""

import contextlib
import sqlite3
from pathlib import Path

_ARTIFACTS = "mlruns"


def artifacts_uri(root: Path) -> str:
    """The URI of the folder for the artifacts of a project's own store.

    The folder is under the project's root, because DVC deletes its temporary workspaces.
    """
    return (root / _ARTIFACTS).as_uri()


def follow_move(database: Path, root: Path) -> None:
    """Update the artifact paths in the project's store to the project's current folder.

    Args:
        database: the store's file; if it is missing or is not an MLflow database, nothing is done.
        root: root of the project, which contains the folder `mlruns`.

    Raises:
        sqlite3.Error: the database can't be written.
    """
    if not database.is_file():
        return
    here = artifacts_uri(root)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        places = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (place,) in places:
            if place and place.startswith("file:") and place.endswith(f"/{_ARTIFACTS}") and place != here:
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, place)
                )
                connection.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                    (here, len(place) + 1, len(place) + 1, f"{place}/"),
                )
