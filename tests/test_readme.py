"""The READMEs' shell blocks: the same commands in both languages, and each of them run for real."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.model.released_layout import released_config, write_checkpoint
from tests.workspace import ROOT, Workspace, new_workspace, serving

SLOW_QUEUE = 900  # seconds until a queue must be empty
NOT_RUN = {"make test": "it would run this test; .ci/run runs it from a fresh checkout"}


def commands(readme: str) -> list[str]:
    """The commands of its ```sh blocks, without comments, continued lines joined."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = (re.sub(r"\s+#\s.*", "", line) for line in blocks.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_both_readmes_give_the_same_commands() -> None:
    assert commands("README.md") == commands("README.zh-CN.md")
    assert len(commands("README.md")) > 12


def test_what_is_not_run_still_stands_there() -> None:
    assert set(NOT_RUN) <= set(commands("README.md"))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small project with a ready .venv, a tiny checkpoint in the place of released weights, and questions."""
    workspace = new_workspace(tmp_path_factory.mktemp("readme") / "project")
    folder = workspace.folder
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith(".ready"):
            (folder / ".venv" / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "scripts"))
        setup = runpy.run_path(str(folder / "scripts" / "setup.py"))
    for lock, stamp in setup["STAMPS"].items():
        stamp.write_text(f"{setup['_wanted'](lock)}torch cpu\n", encoding="utf-8")

    weights = folder / "models" / "chatglm2-6b"
    sizes = {"padded_vocab_size": 2048, "num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 344, "kv_channels": 32}
    write_checkpoint(weights, released_config("chatglm2-6b", **sizes))
    shutil.copy2(ROOT / "models" / "base" / "tokenizer.model", weights)
    questions = [{"instruction": "Name a colour.", "input": ""}]
    (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    return workspace


@pytest.mark.slow
def test_every_command_runs(newcomer: Workspace) -> None:
    """In the README's order, with short params, each in a shell that has .venv active."""
    for command in commands("README.md"):
        if command in NOT_RUN:
            continue
        if command.startswith("dvc queue start"):
            work_off(newcomer, command)
        elif command == "make ui":
            with serving(newcomer, "python -m glm2core ui"):  # which waits until it answers
                pass
        else:
            stdin = "Hello\n" if " chat " in command else ""
            done = subprocess.run(
                shell(command),
                cwd=newcomer.folder,
                env=newcomer.environment,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}"
            assert "Traceback" not in done.stdout, f"{command}\n{done.stdout}"
        if "train.method=qlora" in command:
            assert (newcomer.folder / "models" / "tuned" / "base.json").is_file(), command  # an adapter was tuned
        if command == "make repro":
            newcomer.must("git", "commit", "-qam", "reproduced")
        if command.startswith("dvc exp show"):  # README: this brings the defaults back
            newcomer.must("git", "checkout", "-q", "params.yaml")


def shell(command: str) -> list[str]:
    return ["bash", "-c", f"source .venv/bin/activate && {command}"]


def work_off(workspace: Workspace, command: str) -> None:
    nowhere = subprocess.DEVNULL  # the workers would hold a pipe open for as long as they live
    subprocess.run(
        shell(command), cwd=workspace.folder, env=workspace.environment, stdout=nowhere, stderr=nowhere, check=True
    )
    deadline = time.monotonic() + SLOW_QUEUE
    while any(word in (status := workspace.must("dvc", "queue", "status").out) for word in ("Queued", "Running")):
        assert time.monotonic() < deadline, status
        time.sleep(2)
    workspace.must("dvc", "queue", "stop")
    assert status.count("Success") == 2, status
