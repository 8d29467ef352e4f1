"""scripts/installer.py: uv is told what pip is configured with, and pip does the work where uv can't."""

import base64
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.workspace import load_script

installer = load_script("installer")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of an environment with pip and without uv."""
    venv.EnvBuilder(with_pip=True).create(tmp_path / "env")
    return tmp_path / "env/bin/python"


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip's configuration file names, and nothing else."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\n[install]\nfind-links = {wheels}\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return wheels


def wheel(folder: Path, name: str, version: str, requires: str | None = None) -> None:
    """The smallest wheel there is."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def installed(python: Path) -> str:
    command = [str(python), "-m", "pip", "list", "--format", "freeze"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lock_of(folder: Path, *lines: str) -> Path:
    (folder / "a.lock").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "a.lock"


def own_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the uv of the environment that runs the tests on the path."""
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("uv is not in this environment")
    monkeypatch.setenv("PATH", f"{Path(found).parent}:{os.environ['PATH']}")


def test_what_pip_is_told_uv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url =\n    https://two.example/simple\n"
        "    https://three.example/simple\nconstraint = /c.txt\ntrusted-host = two.example\n"
        "[install]\nfind-links = /wheels /more\n",
        encoding="utf-8",
    )
    for name in ("PIP_CERT", "PIP_FIND_LINKS", "SSL_CERT_FILE", "UV_HTTP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_CERT", "/bundle.crt")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "99")
    options, variables = installer.uv_settings(installer.pip_settings(Path(sys.executable)))
    pairs = list(itertools.pairwise(options))
    assert ("--default-index", "https://one.example/simple") in pairs
    assert ("--index", "https://two.example/simple") in pairs and ("--index", "https://three.example/simple") in pairs
    assert ("--find-links", "/wheels") in pairs and ("--find-links", "/more") in pairs
    assert ("--constraints", "/c.txt") in pairs and ("--allow-insecure-host", "two.example") in pairs
    assert variables["SSL_CERT_FILE"] == "/bundle.crt" and variables["UV_HTTP_TIMEOUT"] == "99"


def test_a_variable_beats_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[install]\nindex-url = https://file.example\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example")
    assert installer.pip_settings(Path(sys.executable))["index-url"] == "https://variable.example"


def test_uv_installs_from_where_pip_would(
    configured: Path,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own_uv(monkeypatch)
    wheel(configured, "some-package", "1.2")
    installer.install(environment, lock_of(tmp_path, "some-package==1.2"))
    assert "some-package==1.2" in installed(environment)
    assert "pip" not in capfd.readouterr().out


def test_without_uv_pip_does_it(
    configured: Path,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    wheel(configured, "some-package", "1.2")
    installer.install(environment, lock_of(tmp_path, "some-package==1.2"))
    assert "some-package==1.2" in installed(environment)
    assert "the package index has no uv" in capfd.readouterr().out


def test_what_neither_can_install_is_an_error(
    configured: Path,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own_uv(monkeypatch)
    with pytest.raises(subprocess.CalledProcessError):
        installer.install(environment, lock_of(tmp_path, "some-package==1.2"))
    assert "trying pip" in capfd.readouterr().err


@pytest.mark.parametrize("gpu", [False, True])
def test_gigabytes_are_told_of_before_they_come(
    gpu: bool,
    configured: Path,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not gpu and Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    own_uv(monkeypatch)
    if gpu:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/nvidia-smi").touch(mode=0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    wheel(configured, "torch", "2.0", requires="nvidia-cublas")
    wheel(configured, "nvidia-cublas", "1.0")
    installer.install(environment, lock_of(tmp_path, "torch==2.0"))
    assert ("make setup TORCH=cpu" in capfd.readouterr().out) is not gpu


def test_without_access_to_pytorchs_own_index_the_configured_one_serves(
    configured: Path,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own_uv(monkeypatch)
    index = tmp_path / "simple" / "torch"
    index.mkdir(parents=True)
    wheel(index, "torch", "2.0")
    (index / "index.html").write_text('<a href="torch-2.0-py3-none-any.whl">torch-2.0-py3-none-any.whl</a>')
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index.parent.as_uri()}\n", encoding="utf-8")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    installer.install(environment, lock_of(tmp_path, "torch==2.0"), torch="cpu")
    assert "torch==2.0" in installed(environment)
    assert "no cpu build found" in capfd.readouterr().out
