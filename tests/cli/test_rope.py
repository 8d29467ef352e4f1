"""rope: what a folder's config says, and what others would make of it."""

import json
from pathlib import Path

import pytest

from glm2core.cli.main import main
from glm2core.export.hf import export_hf
from tests.model.released_layout import released_config


def shown(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["rope", str(folder)]) == 0
    return capsys.readouterr().out


def released(folder: Path, member: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(released_config(member)), encoding="utf-8")
    return folder


def test_a_released_folder_that_others_serve_with_a_wrong_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(released(tmp_path / "any", "chatglm2-6b-32k"), capsys, monkeypatch)
    assert "family chatglm2" in text and "linear scaling by 16; positions to 32,768" in text
    (line,) = [line for line in text.splitlines() if "32,768" in line and "6,145" in line]
    assert line.count("32,768") == 2 and "1,153" in line  # fp32 keeps all of them, bf16 one in 28
    for engine in ("vLLM", "SGLang", "llama.cpp"):
        (line,) = [line for line in text.splitlines() if engine in line]
        assert "rotary base of 160000" in line and "wrong: wrong base" in line


def test_one_that_others_serve_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(released(tmp_path / "any", "chatglm3-6b-32k"), capsys, monkeypatch)
    assert text.count("rotary base of 500000") == 4 and "wrong" not in text


def test_a_tuned_folder_and_its_export(
    full_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(full_model, capsys, monkeypatch)
    assert "linear scaling by 4" in text and text.count("wrong: plain") == 3 and "export first" in text
    export_hf(full_model, tmp_path / "out")
    capsys.readouterr()
    text = shown(tmp_path / "out", capsys, monkeypatch)
    assert "transformers' Glm layout" in text and "--max-model-len" in text
    for engine, verdict in (("vLLM", "right"), ("SGLang", "right"), ("llama.cpp", "wrong: plain")):
        (line,) = [line for line in text.splitlines() if engine in line]
        assert verdict in line


def test_an_adapter_is_its_bases(
    lora_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "linear scaling by 4" in shown(lora_model, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "Only ChatGLM2, ChatGLM3 and CodeGeeX2 are supported"),
        ('{"model_type": "glm"}', "lacks what export writes"),
        ('{"model_type": "glm", "rope_parameters": 3, "max_position_embeddings": 9}', "lacks what export writes"),
    ],
)
def test_a_wrong_folder_is_told(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert main(["rope", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
