"""LongEval's and RULER's own files are used unchanged."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from glm2core.errors import UserError
from glm2core.evaluation.case_files import read_cases, write_cases
from glm2core.evaluation.retrieval import answer_case
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer

SHARED = Path(os.environ.get("GLM2CORE_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
LONGEVAL = SHARED / "data/longeval/lines"
# As RULER's data/prepare.py writes them; `index` of needles is the answer's place in characters
NIAH = {
    "index": 44,
    "input": "A special magic number is hidden.\nOne is: 7654321.\nWhat is the special magic number?",
    "outputs": ["7654321"],
    "length": 4000,
    "length_w_model_temp": 4000,
    "answer_prefix": " The special magic number is",
    "token_position_answer": 12,
}
VT = {
    "index": 0,
    "input": "VAR AB = 12345\nFind all variables.",
    "outputs": ["AB", "CD"],
    "answer_prefix": " They are: ",
}
FLAT = {
    "index": 0,
    "input": "No line break. Which city?",
    "outputs": ["Oslo", "Oslo city"],
    "answer_prefix": " Answer:",
}


def write_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "row", "task", "tokens"),
    [
        ("niah_single_1.jsonl", NIAH, "ruler_niah_single_1", 128),
        ("4096/data/niah_multikey_3/validation.jsonl", NIAH, "ruler_niah_multikey_3_4096", 128),
        ("vt/validation.jsonl", VT, "ruler_vt", 30),
        ("qa_1/test.jsonl", FLAT, "ruler_qa_1", 32),
        ("mine.jsonl", NIAH, "ruler_mine", 128),
    ],
)
def test_rulers_rows_are_asked_word_for_word(
    tmp_path: Path, name: str, row: dict[str, str], task: str, tokens: int
) -> None:
    (case,) = read_cases(write_rows(tmp_path / "no_digits" / name, row))
    (question,) = case.questions
    assert case.context + question.text == row["input"]
    assert not case.context or case.context.endswith("\n")
    assert (case.task, question.most_new_tokens) == (task, tokens)
    assert question.references == tuple(row["outputs"])
    assert question.begun == row["answer_prefix"].strip()
    assert question.any_reference == task.startswith("ruler_qa")


def test_the_beginning_of_the_answer_is_given_to_the_model(
    tmp_path: Path, model: ChatGLM2ForCausalLM, tokenizer: SpTokenizer
) -> None:
    chat_format = ChatFormat(tokenizer, "chatglm2")
    outputs = []
    for row in (NIAH, NIAH | {"answer_prefix": ""}, FLAT):
        (case,) = read_cases(write_rows(tmp_path / "rows.jsonl", row))
        (answer,) = answer_case(model, chat_format, case, prefill_chunk=64, max_new_tokens=8)
        prompt = chat_format.prompt_ids([{"role": "user", "content": str(row["input"])}])
        assert answer.prompt_tokens == len(prompt) + len(tokenizer.encode(str(row["answer_prefix"]).strip()))
        outputs.append(answer.output)
    assert outputs[0] != outputs[1]


def test_generated_cases_written_as_rulers_are_read_again(tmp_path: Path, tokenizer: SpTokenizer) -> None:
    count = ChatFormat(tokenizer, "chatglm2").count_tokens
    tasks = ["niah_multikey_3", "vt", "lines"]
    cases = list(GeneratedCases(tasks, [1500], 1, 6, 3, seed=1, shared=True).cases(count))
    assert write_cases(cases, tmp_path, count) == 18
    for task in ("niah_multikey_3", "vt_1", "vt_2", "vt_4", "lines"):
        file = tmp_path / "1500" / task / "validation.jsonl"
        rows = [json.loads(row) for row in file.read_text("utf-8").splitlines()]
        expected = [(case, question) for case in cases for question in case.questions if question.task == task]
        assert [row["index"] for row in rows] == list(range(len(expected)))
        read = read_cases(file)
        for row, (case, question), again in zip(rows, expected, read, strict=True):
            assert again.task == f"ruler_{task}_1500"
            assert (again.context, again.questions[0].text) == (case.context, question.text)
            assert row["input"] == case.context + question.text
            assert row["length"] == count(row["input"]) <= 1500
            assert again.questions[0].references == (question.references or (str(question.expected),))
            assert ("token_position_answer" in row) == (not task.startswith("vt"))


TALK = "USER: I would like to discuss the topic of {}.\n ASSISTANT: Gladly. \n"
TOPICS = {
    "test_id": 0,
    "prompt": "The record starts. " + TALK.format("sea salt") + TALK.format("old maps") + "What is the first topic(s)?",
    "topics": ["sea salt", "old maps"],
    "prompt_length": 60,
}


def test_longevals_topics_are_asked_word_for_word_and_the_first_one_is_right(
    tmp_path: Path, model: ChatGLM2ForCausalLM, tokenizer: SpTokenizer
) -> None:
    (case,) = read_cases(write_rows(tmp_path / "2_topics.jsonl", TOPICS))
    (question,) = case.questions
    assert case.context + question.text == TOPICS["prompt"]
    assert (case.task, question.text) == ("longeval_2_topics", "What is the first topic(s)?")
    assert (question.references, question.depth, case.chance) == (("sea salt",), None, 0.5)
    (answer,) = answer_case(model, ChatFormat(tokenizer, "chatglm2"), case, prefill_chunk=64, max_new_tokens=8)
    for output, points in (("First came Sea Salt.", 1), ("old maps", 0), ("the sea, and salt", 0)):
        assert replace(answer, output=output).points == points


@pytest.mark.skipif(not LONGEVAL.exists(), reason="LongEval's cases are not here")
@pytest.mark.parametrize("lines", [200, 400, 680])
def test_longevals_own_cases_are_asked_word_for_word(lines: int) -> None:
    path = LONGEVAL / f"{lines}_lines.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    cases = read_cases(path)
    assert len(cases) == 50
    for row, case in zip(rows, cases, strict=True):
        (question,) = case.questions
        assert case.context + question.text == row["prompt"]
        assert case.context.endswith("\n")
        assert question.expected == row["expected_number"]
        assert question.depth == pytest.approx((row["random_idx"][1] + 0.5) / lines)
        assert case.task == f"longeval_{lines}_lines"


RECORD = "line a-b: REGISTER_CONTENT is <5>\nline c-d: REGISTER_CONTENT is <6>\n\n"
ROW = {"prompt": f"{RECORD}Now the record is over. Tell me c-d. ", "expected_number": 6, "random_idx": ["c-d", 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"line 1 is not a case of LongEval's lines task \(JSONDecodeError"),
        (json.dumps(ROW | {"prompt": RECORD}), "the prompt lacks 'Now the record is over.'"),
        (json.dumps({"prompt": "x"}), "KeyError: 'expected_number'"),
        (json.dumps({"input": "x", "outputs": []}), r"line 1 is not a RULER case \(ValueError: input or outputs"),
        (json.dumps({"input": "x", "outputs": 7}), r"line 1 is not a RULER case \(TypeError"),
        (json.dumps({"input": "x", "outputs": ["7"]}) + "\n[]", r"line 2 is not a RULER case"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW | {"random_idx": ["c-d", 2]}), "line 2 is not a case"),
        (json.dumps(ROW | {"expected_number": 5}), "line 1 of the record says 6"),
        (
            json.dumps({"prompt": "On cats.", "topics": ["dogs"]}),
            "1 is not .* topics task .*lacks the first topic, 'dogs'",
        ),
        (
            json.dumps({"prompt": "On cats.", "topics": []}),
            r"line 1 is not a case of LongEval's topics task \(IndexError",
        ),
        (json.dumps({"prompt": 7, "topics": ["cats"]}), r"line 1 is not a case of LongEval's topics task \(AttributeE"),
        ("", "holds no cases"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "5_lines.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_cases(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.retrieval\.files: .*nothing\.jsonl does not exist"):
        read_cases(tmp_path / "nothing.jsonl")
