"""Reads retrieval cases from unchanged files of LongEval and RULER, and writes generated cases in RULER's format."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from glm2core.errors import UserError
from glm2core.evaluation.cases import Case, CountTokens, Question, chance_of
from glm2core.files import refuse_lfs_pointer
from glm2core.lines.records import RECORD_OVER, colliding, parse_record

# RULER's own limits on new tokens, by the start of a task's name
_NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
_MOST_NEW_TOKENS = 128
_ANY_REFERENCE = "qa"
_SUBSETS = ("validation", "test")


def read_cases(path: Path) -> list[Case]:
    """Read the cases in a file, each with one context and one question.

    The keys of the first row show whether the file comes from RULER, from LongEval's topics or from LongEval's lines.
    The task is named after the file, as in `longeval_200_lines`. For RULER, both vt.jsonl and vt/validation.jsonl give
    `ruler_vt`, or `ruler_vt_4096` if a parent folder is called 4096, as in the folders that RULER's scripts write.

    Raises:
        UserError: the file is missing or empty, or a row is in neither LongEval's nor RULER's format.
    """
    if not path.is_file():
        raise UserError(
            f"evaluate.retrieval.files: {path} does not exist. Give LongEval's *_lines.jsonl or *_topics.jsonl, or "
            "RULER's .jsonl files."
        )
    refuse_lfs_pointer(path)
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
    read = _reader(next((row for row in rows if row.strip()), ""))
    cases = [read(row, index, path) for index, row in enumerate(rows) if row.strip()]
    if not cases:
        raise UserError(f"{path} holds no cases. Use the original file from LongEval or RULER.")
    return cases


def write_cases(cases: Iterable[Case], folder: Path, count_tokens: CountTokens) -> int:
    """Write cases in RULER's format to `folder/<length>/<task>/validation.jsonl`, and return the number of rows.

    There is one row per question. Each row holds its whole prompt, so a context is repeated for each of its questions.
    """
    written = Counter[Path]()
    for case in cases:
        for question in case.questions:
            file = folder / str(case.length) / (question.task or case.task) / "validation.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(_ruler_row(case, question, written[file], count_tokens)) + "\n")
            written[file] += 1
    return written.total()


def _ruler_row(case: Case, question: Question, index: int, count_tokens: CountTokens) -> dict[str, Any]:
    prompt = case.context + question.text
    outputs = list(question.references) or [str(question.expected)]
    tokens = count_tokens(prompt)
    row = {"index": index, "input": prompt, "outputs": outputs, "length": tokens, "length_w_model_temp": tokens}
    row["answer_prefix"] = question.begun
    if len(outputs) == 1:
        row["token_position_answer"] = count_tokens(prompt[: prompt.find(outputs[0])])
    return row


def ruler_task(path: Path) -> str:
    """The name that tables show for the task of a RULER file."""
    name = path.parent.name if path.stem in _SUBSETS else path.stem
    length = next((part for part in reversed(path.resolve().parts[-4:-1]) if re.fullmatch(r"\d+", part)), "")
    return "_".join(filter(None, ("ruler", name, length)))


def _reader(row: str) -> Callable[[str, int, Path], Case]:
    try:
        fields = json.loads(row)
    except ValueError:
        fields = None
    keys = fields.keys() if isinstance(fields, dict) else set()
    if keys >= {"input", "outputs"}:
        return _ruler_case
    return _topics_case if keys >= {"prompt", "topics"} else _lines_case


def _ruler_case(row: str, index: int, path: Path) -> Case:
    task = ruler_task(path)
    try:
        fields: dict[str, Any] = json.loads(row)
        prompt, references = str(fields["input"]), tuple(map(str, fields["outputs"]))
        begun = str(fields.get("answer_prefix") or "").strip()
        if not prompt.strip() or not references or not all(references):
            raise ValueError("input or outputs is empty")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: line {index + 1} is not a RULER case ({type(error).__name__}: {error}). A case needs input and "
            "outputs, as RULER's data/prepare.py writes them."
        ) from None
    context, text = _split_at_last_line(prompt.rstrip("\n"))
    name = task.removeprefix("ruler_")
    question = Question(
        text,
        None,
        _place(context, references),
        False,
        references,
        any_reference=name.startswith(_ANY_REFERENCE),
        begun=begun,
        most_new_tokens=_NEW_TOKENS.get(re.split(r"[_\d]", name)[0], _MOST_NEW_TOKENS),
    )
    return Case(task, 0, index, context, (question,), 0.0)


def _topics_case(row: str, index: int, path: Path) -> Case:
    """A case of LongEval's topics task. An answer is right if it contains the name of the first topic."""
    try:
        fields = json.loads(row)
        prompt, topics = fields["prompt"].rstrip("\n"), [topic.strip() for topic in fields["topics"]]
        first = topics[0]
        if not first or first not in prompt:
            raise ValueError(f"the prompt lacks the first topic, {first!r}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: line {index + 1} is not a case of LongEval's topics task ({type(error).__name__}: {error}). "
            "A case needs prompt and topics, as in longeval/evaluation/topics/testcases."
        ) from None
    context, text = _split_at_last_line(prompt)
    question = Question(text, None, None, False, (first,))
    return Case(f"longeval_{path.stem}", 0, index, context, (question,), 1 / len(set(topics)))


def _split_at_last_line(prompt: str) -> tuple[str, str]:
    context, end, text = prompt.rpartition("\n")
    return context + end, text


def _place(context: str, references: tuple[str, ...]) -> float | None:
    """Depth of a single answer, measured in characters; None for several answers, or if the text lacks the answer."""
    found = context.find(references[0]) if len(references) == 1 else -1
    return found / len(context) if found >= 0 else None


def _lines_case(row: str, index: int, path: Path) -> Case:
    try:
        fields = json.loads(row)
        prompt, expected, place = fields["prompt"], int(fields["expected_number"]), int(fields["random_idx"][1])
        context, question = _split_at_question(prompt)
        record = parse_record(context)
        line = record[place]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: line {index + 1} is not a case of LongEval's lines task ({type(error).__name__}: {error}). "
            "A case needs prompt, expected_number and random_idx, as in longeval/evaluation/lines/testcases."
        ) from None
    if line.value != expected:
        raise UserError(
            f"{path}, line {index + 1}: expected_number is {expected}, but line {place} of the record says "
            f"{line.value}. Use the original file from LongEval."
        )
    collides = colliding(record)[place]
    asked = Question(question, expected, (place + 0.5) / len(record), collides)
    return Case(f"longeval_{path.stem}", 0, index, context, (asked,), chance_of(record))


def _split_at_question(prompt: str) -> tuple[str, str]:
    context, over, question = prompt.rpartition(RECORD_OVER)
    if not over:
        raise ValueError(f"the prompt lacks {RECORD_OVER.strip()!r}")
    return context, over + question
