"""What heads attend to while a number is written: digits are found, and the weights are those of the network."""

from pathlib import Path

import pytest
import torch

from benchmarks.answer_attention import _steps, draw, number_start, print_heads, readers, record_lines
from glm2core.evaluation.generation import read_context
from glm2core.lines.records import Line, question_text, record_text
from glm2core.model.loading import load_model
from glm2core.text.chat_format import ChatFormat

BASE = Path(__file__).resolve().parents[2] / "models/base"
LINES = [Line("green", "boat", 4711), Line("old", "tree", 4821), Line("slow", "cart", 23)]


def test_digits_are_found_and_their_attention_is_the_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_format = ChatFormat.load(BASE)
    tokenizer = chat_format.tokenizer
    model = load_model(BASE, dtype=torch.float32, device=torch.device("cpu")).eval()
    prompt, (question,) = chat_format.encode_questions(record_text(LINES), [question_text("old-tree")])
    found = record_lines(chat_format, prompt, LINES)
    assert [line.line for line in found] == LINES
    for line in found:
        assert "".join(tokenizer.piece(prompt[place]) for place in line.digits) == str(line.line.value)
        assert tokenizer.decode(prompt[line.first : line.last]).strip() == line.line.text
    answer = tokenizer.encode("line old-tree: REGISTER_CONTENT is <4711>")  # the second digit is the first line's
    start = number_start(chat_format, answer, LINES[1])
    assert start is not None and number_start(chat_format, answer, LINES[0]) is None
    context = read_context(model, prompt, 64)
    steps = list(_steps(context, chat_format, question, answer, start, found, 1))
    assert [step.right for step in steps] == [True, False]
    assert steps[1].wrote == "4[7] instead of 4821"
    ids = torch.tensor([prompt + question + answer[: start + 1]])
    model.set_attn_implementation("eager")
    weights = torch.stack(model(ids, output_attentions=True).attentions)[:, 0, :, -1].detach()  # [L, H, K]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(steps[1].wanted, weights[..., found[1].digits[1]], rtol=1e-4, atol=1e-6)
    seven = found[0].digits[1]
    torch.testing.assert_close(steps[1].given, weights[..., seven], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        steps[1].by_line[..., 2], weights[..., found[2].first : found[2].last].sum(-1), rtol=1e-4, atol=1e-6
    )
    assert len(readers(steps)) == weights.shape[0] * weights.shape[1]
    print_heads(steps)
    assert "1 right, 1 wrong" in capsys.readouterr().out
    draw(steps[1], readers(steps)[:2], tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 5000
