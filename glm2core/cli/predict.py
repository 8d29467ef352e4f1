"""`predict`: answers to the rows of a file, as JSON lines; a killed run goes on where it stopped."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glm2core.cli.answering import Answerer, load_answerer
from glm2core.cli.folders import read_wording
from glm2core.cli.resumable import Line, ResumableLines
from glm2core.console import closing_table, progress_bar
from glm2core.data.columns import ColumnUse
from glm2core.data.conversation import Message, RejectionError
from glm2core.data.detection import first_row, layout_of, missing_sentence
from glm2core.data.formats import ANSWER, QUESTION, to_conversation
from glm2core.data.json_rows import Record
from glm2core.data.sources import RowFile, find_files, open_rows
from glm2core.errors import UserError, shown_names
from glm2core.files import sha256_file, sha256_folder

# Within so many batches rows are answered by length: little padding, whatever the size of the file.
_WINDOW_BATCHES = 16
_MAPPING = "--column {name}={theirs}"
# What answers depend on; --batch-size may be lowered when a run is continued.
_SETTINGS = ("format", "column", "encoding", "dtype", "max_new_tokens", "temperature", "top_p", "seed")


def run(arguments: argparse.Namespace) -> None:
    [path, *more] = find_files(str(arguments.file), "FILE")
    if more:
        raise UserError(f"{arguments.file} names {len(more) + 1} files. Give one at a time.")
    out = arguments.output or path.with_name(f"{path.name}.answers.jsonl")
    questions = read_questions(path, arguments.format, _columns(arguments.column), arguments.encoding)
    _say_columns(questions.use)
    read_wording(arguments.model)  # a wrong folder is told before anything is hashed
    made_with = {name: getattr(arguments, name) for name in _SETTINGS}
    made_with |= {"model": sha256_folder(arguments.model), "file": sha256_file(path)}
    lines = ResumableLines(out, questions.rows.unit, made_with, restart=arguments.restart)
    if lines.done:
        _note(f"going on: {len(lines.done):,} of {questions.total:,} rows are answered")
    answerer = load_answerer(arguments, _note)
    with progress_bar("predict", questions.total) as (bar, task):
        bar.update(task, completed=len(lines.done))
        answer_rows(answerer, questions, lines, batch_size=arguments.batch_size, seed=arguments.seed,
                    progress=lambda rows: bar.advance(task, rows))  # fmt: skip
    _close(lines, out)


@dataclass(frozen=True)
class Questions:
    """A file's rows as conversations that wait for an answer."""

    rows: RowFile
    layout: str
    columns: dict[str, str]
    total: int
    use: ColumnUse

    def messages(self, record: Record) -> list[Message]:
        """Raises: RejectionError: why the row can't be answered."""
        if record.problem is not None:
            raise RejectionError(record.problem)
        return to_conversation(record.value, self.layout, self.columns, answer_needed=False).messages


def read_questions(path: Path, layout: str, columns: dict[str, str], encoding: str | None = None) -> Questions:
    """Find out how a file is laid out.

    Raises:
        UserError: no rows, or columns that don't tell the layout.
    """
    rows = open_rows(path, encoding, columns)
    first = first_row(rows)
    found = layout_of(rows, first, layout, columns, _MAPPING, answer_needed=False)
    if (question := columns.get(QUESTION[found], QUESTION[found])) not in first:
        raise UserError(missing_sentence(rows, found, [question], first, _MAPPING))
    use = ColumnUse(found, columns)
    total = 0
    for record in rows:
        total += 1
        if record.problem is None:
            use.add(record.value)
    return Questions(rows, found, columns, total, use)


def answer_rows(
    answerer: Answerer, questions: Questions, lines: ResumableLines, *, batch_size: int, seed: int,
    progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Answer all rows that have no line yet; a row that can't be answered gets a line with its problem."""
    records = iter(questions.rows)
    while window := list(islice(records, _WINDOW_BATCHES * batch_size)):
        prompts, problems = _prompts(answerer, questions, window)
        # In order of length, longest first; the whole window is sorted, done or not, so that batches stay the same
        prompts.sort(key=lambda prompt: -prompt.tokens)
        batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
        _add(lines, problems, progress)
        for batch in batches:
            if all(prompt.record.number in lines.done for prompt in batch):
                continue
            torch.manual_seed(seed + batch[0].record.number)  # sampled answers don't depend on interruptions
            answers = answerer.answer([prompt.messages for prompt in batch])
            made = [
                _line(questions, prompt.record, question=prompt.messages[-1]["content"], **answer._asdict())
                for prompt, answer in zip(batch, answers, strict=True)
            ]
            _add(lines, made, progress)


class _Prompt(NamedTuple):
    record: Record
    messages: list[Message]
    tokens: int


def _prompts(answerer: Answerer, questions: Questions, window: list[Record]) -> tuple[list[_Prompt], list[Line]]:
    """The rows that can be answered, and lines for those that can't."""
    prompts, problems = [], []
    for record in window:
        try:
            messages = questions.messages(record)
            prompts.append(_Prompt(record, messages, len(answerer.prompt_ids(messages))))
        except (RejectionError, UserError) as error:
            problems.append(_line(questions, record, problem=str(error)))
    return prompts, problems


def _add(lines: ResumableLines, new: list[Line], progress: Callable[[int], object]) -> None:
    before = len(lines.done)
    lines.add(new)
    progress(len(lines.done) - before)


def _line(questions: Questions, record: Record, **fields: Any) -> Line:
    return {questions.rows.unit: record.number, "row": record.value, **fields}


def _close(lines: ResumableLines, out: Path) -> None:
    answered = [line for line in lines.lines if "answer" in line]
    problems = [line for line in lines.lines if "problem" in line]
    if not answered:
        lines.discard()
        raise UserError(f"no row could be answered; the first one: {problems[0]['problem']}. {out} was not written.")
    lines.finish()
    rows: dict[str, object] = {
        "answered": len(answered),
        "cut at --max-new-tokens": sum(not line["finished"] for line in answered),
    }
    closing_table("predict", rows | {"not answered": len(problems)}, {"answers, one a line": out})


def _columns(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--column takes NAME=THEIRS, such as prompt=question; got {pair!r}")
    columns = dict(pair.split("=", 1) for pair in pairs)
    if len(set(columns.values())) < len(columns):
        raise UserError("--column gives one column of the file to two names; a column has one meaning.")
    return columns


def _say_columns(use: ColumnUse) -> None:
    answer = use.columns.get(ANSWER.get(use.layout, ""), ANSWER.get(use.layout))
    read = [name for name in use.read if name != answer]
    unread = [name for name in (*use.read, *use.unread) if name not in read]
    _note(f"columns read: {shown_names(read)}; not read: {shown_names(unread)}")
    for name, rows in use.lost.items():
        _note(f"warning: {rows:,} rows fill {shown_names([name])}, which is not read as {use.layout}")


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
