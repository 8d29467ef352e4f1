"""`predict`: answers the rows of a file as JSON lines; a killed run can be continued where it stopped.

During the run, the lines are kept in a journal, `<out>.partial`. At the end, they are written to `<out>` in the order
of their row numbers.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from glm2core.cli.answering import load_answerer
from glm2core.console import closing_table, progress_bar
from glm2core.conversation import Message, RejectionError
from glm2core.data.columns import ColumnUse
from glm2core.data.detection import first_row, format_of, missing_sentence
from glm2core.data.formats import ANSWER, QUESTION, to_conversation
from glm2core.data.json_rows import Record
from glm2core.data.sources import RowFile, find_files, open_rows
from glm2core.errors import UserError, shown_names
from glm2core.evaluation.generation import Answerer
from glm2core.files import atomic_path, json_line, sha256_file, sha256_folder
from glm2core.journal import Journal
from glm2core.text.chat_format import ChatFormat

OutputLine = dict[str, Any]

# Rows are sorted by length within this many batches, so there is little padding, whatever the size of the file.
_WINDOW_BATCHES = 16
# Padded prompts need a mask, which makes attention over thousands of tokens take minutes instead of seconds.
_BATCH_TOKENS = 8_192
_MAPPING = "--column {name}={theirs}"
# Settings that the answers depend on. --batch-size is not among them, so it may be lowered when a run is continued.
_SETTINGS = ("format", "column", "encoding", "dtype", "max_new_tokens", "temperature", "top_p", "seed")


def run(arguments: argparse.Namespace) -> None:
    [path, *more] = find_files(str(arguments.file), "FILE")
    if more:
        raise UserError(f"{arguments.file} names {len(more) + 1} files. Give one file at a time.")
    out = arguments.output or path.with_name(f"{path.name}.answers.jsonl")
    _require_absent(out)  # before the file is read and the model is hashed
    questions = read_questions(path, arguments.format, _columns(arguments.column), arguments.encoding)
    _say_columns(questions.use)
    ChatFormat.load(arguments.model)  # report a wrong folder before hashing anything
    made_with = {name: getattr(arguments, name) for name in _SETTINGS}
    made_with |= {"model": sha256_folder(arguments.model), "file": sha256_file(path)}
    if arguments.base is not None:
        made_with["base"] = str(arguments.base.resolve())
    with _locked(out):
        journal = open_journal(out, made_with, restart=arguments.restart)
        if journal.values:
            _note(f"continuing: {len(journal.values):,} of {questions.total:,} rows are answered")
        answerer = load_answerer(arguments, _note)
        with progress_bar("predict", questions.total) as (bar, task):
            bar.update(task, completed=len(journal.values))
            answer_rows(
                answerer,
                questions,
                journal,
                batch_size=arguments.batch_size,
                seed=arguments.seed,
                progress=lambda rows: bar.advance(task, rows),
            )
        _close(journal, out)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Reserve an output file for this process; a lock left by a killed process is ignored.

    Raises:
        UserError: another process is writing the output file, or the output folder can't be written to.
    """
    file = out.with_name(f"{out.name}.lock")
    lock = FileLock(file)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another predict is writing {out} and holds the lock {file}. Wait until that process ends, or name a "
            "different file with --output."
        ) from None
    except OSError as error:
        raise _not_written(file, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # while the lock is held, so that whoever opens the file from now on creates a new one
        lock.release()


def open_journal(out: Path, made_with: dict[str, Any], *, restart: bool = False) -> Journal:
    """Open the journal of `out`, which contains the lines written so far, by row number.

    Args:
        out: the output file, which must not exist yet.
        made_with: everything that the lines depend on; a journal made with different values is not continued.
        restart: whether to discard the journal of a killed run.

    Raises:
        UserError: `out` exists, or a killed run with different values left a journal.
    """
    _require_absent(out)  # again, now that it is locked
    partial = out.with_name(f"{out.name}.partial")
    if restart:
        partial.unlink(missing_ok=True)

    def failed(error: OSError) -> None:
        raise _not_written(partial, error) from error

    journal = Journal(partial, made_with, failed)
    if (names := journal.differences) is not None:
        difference = f"a different {' and '.join(names)}" if names else "different settings"
        raise UserError(
            f"{partial} contains the answers of an earlier run with {difference}. Repeat the earlier command to "
            "continue that run, use --restart to discard its answers, or name a different --output."
        )
    journal.add({})  # report a folder that can't be written to before loading a model
    return journal


def _require_absent(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} already exists. Remove it, or name a different file with --output.")


def _not_written(file: Path, error: OSError) -> UserError:
    return UserError(
        f"could not write {file}: {error.strerror or error}. Free disk space or fix the permissions of {file.parent}. "
        "Then give the same command again, and it will continue after the last complete line."
    )


@dataclass(frozen=True)
class Questions:
    """The rows of a file, read as conversations to answer."""

    rows: RowFile
    row_format: str
    columns: dict[str, str]
    total: int
    use: ColumnUse

    def messages(self, record: Record) -> list[Message]:
        """The messages of a row; raises a RejectionError with the reason if the row can't be answered."""
        if record.problem is not None:
            raise RejectionError(record.problem)
        return to_conversation(record.value, self.row_format, self.columns, answer_needed=False).messages


def read_questions(path: Path, row_format: str, columns: dict[str, str], encoding: str | None = None) -> Questions:
    """Detect the format of a file and count its rows.

    Raises:
        UserError: the file has no rows, or its format can't be detected from its columns.
    """
    rows = open_rows(path, encoding, columns)
    first = first_row(rows)
    found = format_of(rows, first, row_format, columns, _MAPPING, answer_needed=False)
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
    answerer: Answerer,
    questions: Questions,
    journal: Journal,
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int], object],
) -> None:
    """Answer all rows that have no line in the journal; a row that can't be answered gets a line that states why."""

    def add(lines: list[OutputLine]) -> None:
        before = len(journal.values)
        journal.add({line[questions.rows.unit]: line for line in lines})
        progress(len(journal.values) - before)

    records = iter(questions.rows)
    while window := list(islice(records, _WINDOW_BATCHES * batch_size)):
        prompts, problems = _prompts(answerer, questions, window)
        if prompts and (longest := max(prompt.tokens for prompt in prompts)) > _BATCH_TOKENS:
            _note(f"the longest prompt has {longest:,} tokens; it is answered first and takes the longest to read")
        # Longest first. The whole window is sorted, including answered rows, so that batches stay the same
        prompts.sort(key=lambda prompt: -prompt.tokens)
        add(problems)
        for batch in _batches(prompts, batch_size):
            if all(prompt.record.number in journal.values for prompt in batch):
                continue
            torch.manual_seed(seed + batch[0].record.number)  # sampled answers don't depend on interruptions
            answers = answerer.answer([prompt.messages for prompt in batch])
            made = [
                _line(questions, prompt.record, question=prompt.messages[-1]["content"], **answer._asdict())
                for prompt, answer in zip(batch, answers, strict=True)
            ]
            add(made)


def _batches(prompts: list["_Prompt"], most: int) -> Iterator[list["_Prompt"]]:
    """Batches of prompts, longest first, of at most `most` rows and `_BATCH_TOKENS` padded tokens, or of one row."""
    while prompts:
        count = max(1, min(most, _BATCH_TOKENS // max(1, prompts[0].tokens)))
        yield prompts[:count]
        prompts = prompts[count:]


class _Prompt(NamedTuple):
    record: Record
    messages: list[Message]
    tokens: int


def _prompts(answerer: Answerer, questions: Questions, window: list[Record]) -> tuple[list[_Prompt], list[OutputLine]]:
    """The prompts of rows that can be answered, and output lines for the rows that can't."""
    prompts, problems = [], []
    for record in window:
        try:
            messages = questions.messages(record)
            prompts.append(_Prompt(record, messages, len(answerer.prompt_ids(messages))))
        except (RejectionError, UserError) as error:
            problems.append(_line(questions, record, problem=str(error)))
    return prompts, problems


def _line(questions: Questions, record: Record, **fields: Any) -> OutputLine:
    return {questions.rows.unit: record.number, "row": record.value, **fields}


def _close(journal: Journal, out: Path) -> None:
    """Write the lines in the order of their row numbers, with only one line in memory at a time."""
    answered = cut = 0
    problem = None
    with atomic_path(out) as path:
        with path.open("wb") as file:
            for number in sorted(journal.values):
                line = journal.values[number]
                file.write(json_line(line))
                answered += "answer" in line
                cut += not line.get("finished", True)
                problem = problem or line.get("problem")
        if not answered:
            journal.remove()
            raise UserError(f"no row could be answered, so {out} was not written. The first row's problem: {problem}")
    rows: dict[str, object] = {"answered": answered, "cut at --max-new-tokens": cut}
    rows["not answered"] = len(journal.values) - answered
    journal.remove()
    closing_table("predict", rows, {"answers, one per line": out})


def _columns(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--column needs NAME=THEIRS, as in prompt=question, but got {pair!r}")
    columns = dict(pair.split("=", 1) for pair in pairs)
    if len(set(columns.values())) < len(columns):
        raise UserError("--column maps two names to the same column of FILE, but a column can have only one meaning.")
    return columns


def _say_columns(use: ColumnUse) -> None:
    answer = use.columns.get(ANSWER.get(use.row_format, ""), ANSWER.get(use.row_format))
    read = [name for name in use.read if name != answer]
    unread = [name for name in (*use.read, *use.unread) if name not in read]
    _note(f"columns read: {shown_names(read)}; not read: {shown_names(unread)}")
    for name, rows in use.lost.items():
        _note(
            f"warning: {rows:,} rows have a value in {shown_names([name])}, which format {use.row_format} does not read"
        )


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
