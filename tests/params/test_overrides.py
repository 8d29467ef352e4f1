"""`dvc exp run -S` on keys that take `auto`: what Hydra makes of the words is what params.yaml takes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from glm2core.params import flatten, load_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.curriculum=auto"], {"train.curriculum": "auto"}),
        (["train.curriculum=[]"], {"train.curriculum": []}),
        (["train.curriculum=[{until: 0.5, max_tokens: 450}]", "train.curriculum=auto"], {"train.curriculum": "auto"}),
        (["train.learning_rate=1e-4"], {"train.learning_rate": 1e-4}),
        (["train.learning_rate=1e-4", "train.learning_rate=auto"], {"train.learning_rate": "auto"}),
        (["train.max_steps=null", "train.epochs=2"], {"train.max_steps": None, "train.epochs": 2}),
        (["train.quantization_bits=null"], {"train.quantization_bits": None}),
        (["evaluate.retrieval.lengths=[512,1024]"], {"evaluate.retrieval.lengths": [512, 1024]}),
        (["model.base=models/chatglm2-6b", "train.method=qlora"], {"model.rope.type": "auto", "train.method": "qlora"}),
    ],
)
def test_words_of_the_command_line(tmp_path: Path, overrides: list[str], expected: dict[str, Any]) -> None:
    file = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", file)
    for override in overrides:  # one experiment after the other, on the file that the last one left
        apply_overrides(file, [override])
    values = flatten(load_params(file))
    assert {key: values[key] for key in expected} == expected


def test_a_stage_of_the_curriculum(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    shutil.copy2(ROOT / "params.yaml", file)
    apply_overrides(file, ["train.curriculum=[{until: 0.5, max_tokens: 450}]"])
    (stage,) = load_params(file).train.curriculum
    assert (stage.until, stage.max_tokens) == (0.5, 450)
