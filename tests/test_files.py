"""Files are whole or absent: after errors, kills and on a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm2core.errors import UserError
from glm2core.files import (
    atomic_path,
    project_root,
    resolve_path,
    run_fingerprint,
    sha256_file,
    sha256_folder,
    source_fingerprint,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_and_a_folder_take_their_names(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_path(tmp_path / "deep" / "file") as partial:
            partial.write_text(text)
        with atomic_path(tmp_path / "folder") as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / text).write_text(text)
    assert (tmp_path / "deep" / "file").read_text() == "new"
    assert names(tmp_path / "folder" / "inner") == ["new"]
    assert names(tmp_path) == ["deep", "folder"]


def test_after_an_error_the_old_content_stands(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_files_take_the_rights_of_the_umask_whatever_a_library_gave_them(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "folder") as partial:
            (partial / "inner").mkdir(parents=True)
            for name, mode in (("weights", 0o600), ("script", 0o700), ("open", 0o666), ("inner/cache", 0o444)):
                (partial / name).touch()
                (partial / name).chmod(mode)
    finally:
        os.umask(old)
    rights = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").rglob("*")}
    assert rights == {"inner": 0o755, "weights": 0o644, "script": 0o755, "open": 0o644, "cache": 0o644}


KILLED_IN_THE_MIDDLE = """
    import os, signal
    from pathlib import Path
    from glm2core.files import atomic_path
    with atomic_path(Path("file")) as file, atomic_path(Path("folder")) as folder:
        file.write_text("half")
        folder.mkdir()
        (folder / "first").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("existing", [True, False])
def test_a_kill_leaves_no_half_file_and_the_next_run_cleans_up(tmp_path: Path, existing: bool) -> None:
    if existing:
        (tmp_path / "file").write_text("old")
        (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    assert run_python(KILLED_IN_THE_MIDDLE, tmp_path).returncode == -signal.SIGKILL
    leftovers = [name for name in names(tmp_path) if name not in before]
    assert len(leftovers) == 2
    assert all(".partial-" in name for name in leftovers)
    assert not existing or (tmp_path / "file").read_text() == "old"

    for name in ("file", "folder"):
        with atomic_path(tmp_path / name) as partial:
            partial.write_text("new") if name == "file" else partial.mkdir()
    assert names(tmp_path) == ["file", "folder"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    others = tmp_path / f".file.partial-{os.getppid()}"
    others.write_text("being written")
    (tmp_path / ".file.partial-nobody").write_text("")
    write_json(tmp_path / "file", 1)
    assert names(tmp_path) == [others.name, "file"]


# The kernel's limit on a file's size is met as a full disk is; each library wraps it in an error of its own.
WRITERS = {
    "text": "partial.write_text('x' * 10**6)",
    "polars": "import polars; polars.DataFrame({'a': numbers}).write_parquet(partial)",
    "pyarrow": "import pyarrow.parquet; pyarrow.parquet.write_table(pyarrow.table({'a': numbers}), partial)",
    "safetensors": "from safetensors.numpy import save_file; save_file({'a': numbers}, partial)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_a_sentence(tmp_path: Path, writer: str) -> None:
    code = f"""
    import resource, sys
    import numpy
    from pathlib import Path
    from glm2core.errors import UserError
    from glm2core.files import atomic_path
    numbers = numpy.random.default_rng(0).normal(size=10**6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        with atomic_path(Path("out")) as partial:
            {WRITERS[writer]}
    except UserError as error:
        sys.exit(str(error))
    """
    done = run_python(code, tmp_path)
    assert "could not write out: File too large. Free space" in done.stderr, done.stderr
    assert names(tmp_path) == []


def test_no_space_left_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"could not write .*out: No space left on device\. Free space"),
        atomic_path(tmp_path / "out"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x")


def test_a_place_that_is_not_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"could not write .*taken/a\.json: (File exists|Not a directory)"):
        write_json(tmp_path / "taken" / "a.json", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"could not write .*: Permission denied.*fix the permissions"):
            write_json(tmp_path / "a.json", 1)
    finally:
        tmp_path.chmod(0o700)


def test_a_read_error_in_the_body_is_not_called_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "out"):
        (tmp_path / "missing input").read_text()
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(UserError, match="its own sentence"), atomic_path(tmp_path / "out"):
        raise UserError("its own sentence: No space left on device")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back_and_has_the_same_bytes(tmp_path: Path, value: object) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / name, value)
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == value
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_paths_resolve_against_the_project_in_dvcs_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, workspace = tmp_path / "project", tmp_path / "workspace"
    for place in (project / "untracked", project / "tracked", workspace / "tracked"):
        place.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == workspace
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert project_root() == project
    assert resolve_path("tracked") == Path("tracked")
    assert resolve_path("untracked") == project / "untracked"
    assert resolve_path(project / "tracked") == project / "tracked"


def test_fingerprints_change_with_what_they_depend_on(tmp_path: Path) -> None:
    assert run_fingerprint({"a": 1, "b": 2}) == run_fingerprint({"b": 2, "a": 1})
    assert run_fingerprint({"a": 1}) != run_fingerprint({"a": 2})
    (tmp_path / "module.py").write_text("x = 1")
    before = source_fingerprint(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "module.pyc").write_text("compiled")
    assert source_fingerprint(tmp_path) == before
    (tmp_path / "module.py").write_text("x = 2")
    assert source_fingerprint(tmp_path) != before
    of_file = source_fingerprint(tmp_path / "module.py")
    (tmp_path / "module.py").write_text("x = 3")
    assert source_fingerprint(tmp_path / "module.py") != of_file


def test_a_folders_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_text("x")
    before = sha256_folder(tmp_path)
    (tmp_path / "below" / "a").rename(tmp_path / "b")
    renamed = sha256_folder(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({before, renamed, sha256_folder(tmp_path)}) == 3
