"""`train.launcher`: fixed programs, fixed options, one plain value each; and what it starts is no shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from glm2core.params.launcher import Launcher, launcher_command
from tests.training.conftest import write_params

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER: TypeAdapter[str] = TypeAdapter(Launcher)

FSDP = "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 4\n"
HOSTILE = [
    "",
    " ",
    "sh -c 'touch owned'",
    "bash -c touch\\ owned",
    "python; touch owned",
    "python && touch owned",
    "python -c 'import os'",
    "python -m this",
    "python owned.py",
    "python3",
    "/usr/bin/python",
    "./torchrun",
    "$(touch owned)",
    "`touch owned`",
    "python $(touch owned)",
    "python\ntouch owned",
    "python > owned",
    "env X=1 python",
    "python '",
    "torchrun owned.py",
    "torchrun --nproc_per_node",
    "torchrun --nproc_per_node 0",
    "torchrun --nproc_per_node 99999",
    "torchrun --nproc_per_node '2 owned.py'",
    "torchrun --nproc_per_node 2 --nproc_per_node 3",
    "torchrun --nproc_per_node 2 -m owned",
    "torchrun --nproc_per_node 2; touch owned",
    "torchrun --nproc_per_node 2 | tee owned",
    "torchrun --nproc_per_node=2=3",
    "torchrun --nproc_per_node 2 --no-python touch owned",
    "torchrun --no_python touch owned",
    "torchrun --nproc 2",
    "torchrun --rdzv_conf a=b",
    "torchrun --rdzv_backend etcd",
    "torchrun --rdzv_endpoint 'host; touch owned'",
    "torchrun --rdzv_endpoint --no-python",
    "torchrun --log_dir owned",
    "torchrun --node_rank -1",
    "accelerate",
    "accelerate test",
    "accelerate launch owned.py",
    "accelerate launch -m owned",
    "accelerate launch --main_process_ip x",
    "accelerate launch --config_file /etc/fsdp.yaml",
    "accelerate launch --config_file ../fsdp.yaml",
    "accelerate launch --config_file a/../../fsdp.yaml",
    "accelerate launch --config_file ~/fsdp.yaml",
    "accelerate launch --config_file fsdp.py",
    "accelerate launch --config_file $HOME/fsdp.yaml",
    "accelerate launch --num_processes 2 --mpirun_hostfile owned",
    "x" * 100_000,
]


@pytest.mark.parametrize("launcher", HOSTILE, ids=[value[:40] for value in HOSTILE])
def test_what_is_no_plain_launcher_is_refused(launcher: str) -> None:
    with pytest.raises(ValidationError) as told:
        LAUNCHER.validate_python(launcher)
    (error,) = told.value.errors()
    assert error["type"] in ("value_error", "string_too_long") and len(error["msg"]) < 600


@pytest.mark.parametrize(
    ("launcher", "command"),
    [
        ("python", ("", [])),
        ("torchrun --nproc_per_node 4", ("torch.distributed.run", ["--nproc_per_node", "4"])),
        ("torchrun  --nproc_per_node=gpu", ("torch.distributed.run", ["--nproc_per_node", "gpu"])),
        (
            "torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint node-1.example.org:29500",
            (
                "torch.distributed.run",
                "--nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint node-1.example.org:29500".split(),
            ),
        ),
        ("torchrun --nnodes 1:4 --node_rank 0", ("torch.distributed.run", ["--nnodes", "1:4", "--node_rank", "0"])),
        ("accelerate launch", ("accelerate.commands.launch", [])),
        (
            "accelerate launch --config_file 'conf/fsdp.yaml' --num_processes 2",
            ("accelerate.commands.launch", ["--config_file", "conf/fsdp.yaml", "--num_processes", "2"]),
        ),
    ],
)
def test_the_documented_forms_are_taken(launcher: str, command: tuple[str, list[str]]) -> None:
    normal = LAUNCHER.validate_python(launcher)
    assert launcher_command(launcher) == launcher_command(normal) == command


def start(folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    command = [sys.executable, "-m", "stages.train"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_stage_refuses_a_hostile_launcher_and_runs_nothing(tmp_path: Path) -> None:
    write_params(tmp_path, {"launcher": "torchrun --nproc_per_node 2; touch owned"})
    done = start(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "train.launcher: --nproc_per_node is '2;'" in done.stderr
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing", None, "fsdp.yaml does not exist"),
        ("outside", "link", "is outside the project"),
        ("cloud", "compute_environment: AMAZON_SAGEMAKER\n", "compute_environment: AMAZON_SAGEMAKER is not supported"),
        ("pod", FSDP + "commands: [touch owned]\n", "commands is not supported"),
        ("tagged", "a: !!python/object/apply:os.system [touch owned]\n", "has the tag"),
    ],
)
def test_accelerates_config_lies_in_the_project_and_starts_nothing_else(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    write_params(folder, {"launcher": "accelerate launch --config_file fsdp.yaml"})
    if content == "link":
        (tmp_path / "fsdp.yaml").write_text(FSDP)
        (folder / "fsdp.yaml").symlink_to(tmp_path / "fsdp.yaml")
    elif content is not None:
        (folder / "fsdp.yaml").write_text(content)
    done = start(folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (folder / "owned").exists()
