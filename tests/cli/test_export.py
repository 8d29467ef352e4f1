"""`export`'s arguments: what belongs to which format."""

import pytest

from glm2core.cli.main import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--quantize", "q8_0"], "--quantize is allowed only with --format gguf; --format hf does not round weights"),
        (["--format", "released", "--quantize", "f16"], "--quantize is allowed only with --format gguf"),
        (
            ["--format", "gguf", "--dtype", "float16"],
            "--dtype does not apply to --format gguf. Choose its precision with --quantize",
        ),
        (["--format", "adapter-gguf", "--dtype", "float32"], "--dtype does not apply to --format adapter-gguf"),
    ],
)
def test_an_option_of_another_format_is_refused(options, sentence, full_model, tmp_path, capsys):
    assert main(["export", str(full_model), str(tmp_path / "out.gguf"), *options]) == 1
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_closing_line_says_how_to_go_on(full_model, tmp_path, capsys):
    assert main(["export", str(full_model), str(tmp_path / "out")]) == 0
    assert "AutoTokenizer and AutoModelForCausalLM load it as it is" in capsys.readouterr().out
