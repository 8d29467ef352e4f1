"""The command line itself: help, exit codes, and what it imports."""

import os
import subprocess
import sys

import pytest

from glm2core.cli.main import main
from tests.cli.conftest import PROJECT


def test_help_names_the_commands_and_imports_no_torch():
    code = "import sys; from glm2core.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["export", "--help"], ["predict", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "MODEL" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tune"],
        ["chat"],
        ["export", "a"],
        ["chat", "a", "--temperature", "-1"],
        ["predict", "a", "b", "--top-p", "2"],
        ["predict", "a", "b", "--batch-size", "0"],
        ["chat", "a", "--device", "tpu"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_memory_prints_both_devices_and_the_disk(capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["memory"]) == 0
    printed = capsys.readouterr().out
    places = [printed.index(word) for word in ("settled", "train.optimizer", "muon", "evaluate.threads", "gradients")]
    assert places == sorted(places) and "the base's tuning.yaml" in printed
    for word in (
        "CPU",
        "GPU",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "cache of",
        "checkpoints",
        "DVC cache",
    ):
        assert word in printed


def test_memory_of_a_wrong_params_file(tmp_path, capsys):
    assert main(["memory", "--params", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_a_place_whose_name_is_not_utf8_is_a_sentence(capsys):
    assert main(["chat", os.fsdecode(b"models/\xff")]) == 1
    assert r"the name models/\udcff is not UTF-8" in capsys.readouterr().err
