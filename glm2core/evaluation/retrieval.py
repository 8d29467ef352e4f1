"""Asks a model the questions of retrieval cases, case by case, with a progress bar."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TextIO

import torch
from transformers import PreTrainedModel

from glm2core.console import progress_bar, time_left
from glm2core.conversation import USER
from glm2core.evaluation.cases import Case, CountTokens, Question
from glm2core.evaluation.generation import answer_questions, read_context
from glm2core.evaluation.report import append_records
from glm2core.evaluation.scores import BASE, TUNED, Answer
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.journal import Memo, compute_only
from glm2core.model.cost import Cost
from glm2core.text.chat_format import ChatFormat

_QUESTION_TOKENS = 2048  # in questions asked side by side, whose mask grows with these tokens times the context's
_LEAST_SECONDS = 10  # before the time left is printed, estimated from the longest contexts so far
_SHORTER = "fewer or shorter evaluate.retrieval.lengths and base_lengths, or fewer evaluate.retrieval.contexts"


def ask(
    model: PreTrainedModel,
    chat_format: ChatFormat,
    generated: GeneratedCases,
    from_files: Iterable[Case] = (),
    *,
    prefill_chunk: int,
    max_new_tokens: int,
    file: TextIO | None = None,
    memo: Memo = compute_only,
    name: str = TUNED,
) -> list[Answer]:
    """Ask a model the questions of all generated cases and of all cases in `from_files`, with a progress bar.

    Args:
        prefill_chunk: number of tokens in a chunk; contexts are read chunk by chunk.
        max_new_tokens: maximum number of tokens in an answer, unless the question sets a different maximum.
        file: receives the answers of each case as soon as they are complete.
        memo: stores the answers of each case, and returns answers that are already stored.
        name: name of the model in the returned answers.
    """

    computed: list[Case] = []  # in this process: answers from `memo` take no time
    read: list[float] = []  # the times at which their contexts were read

    def answer(case: Case) -> list[dict[str, Any]]:
        computed.append(case)
        made = answer_case(
            model,
            chat_format,
            case,
            prefill_chunk=prefill_chunk,
            max_new_tokens=max_new_tokens,
            when_read=lambda: read.append(time.perf_counter()),
        )
        return [asdict(replace(answer, model=name)) for answer in made]

    answers: list[Answer] = []
    from_files = list(from_files)
    asks = "retrieval, base" if name == BASE else "retrieval"
    begin, told = time.perf_counter(), False
    with progress_bar(asks, generated.questions_in_all + len(from_files)) as (bar, task):
        for case in itertools.chain(generated.cases(chat_format.count_tokens), from_files):
            before = time.perf_counter()
            batch = [Answer(**record) for record in memo([name, asdict(case)], partial(answer, case))]
            if file is not None:
                append_records(file, (answer.record() for answer in batch))
            answers += batch
            bar.update(task, description=f"{asks} {batch[0].prompt_tokens:,} tokens", advance=len(batch))
            now = time.perf_counter()
            if not told and computed and computed[-1] is case and now - begin > _LEAST_SECONDS:
                told = True
                costs = reading_costs(model.config, generated, from_files, chat_format.count_tokens, case)
                reading = sum(costs[len(answers) :]) / sum(costs[len(answers) - len(batch) : len(answers)])
                answering = (len(costs) - len(answers)) / len(batch)
                left = reading * (read[-1] - before) + answering * (now - read[-1])
                print(f"{asks}: {time_left(left, shortened_by=_SHORTER)}", flush=True)
    return answers


def reading_costs(
    config: Any, generated: GeneratedCases, from_files: list[Case], count: CountTokens, answered: Case
) -> list[float]:
    """The operations for reading the contexts, as a share for each question, in the order of asking.

    Args:
        answered: a case that shows how many questions fit into a context; longer contexts hold more in proportion.
    """
    cost = Cost(config, backward_factor=0)
    by_token = len(answered.questions) / (answered.length or 1)
    costs = []
    for group, length in itertools.product(generated.groups, sorted(set(generated.lengths))):
        asked, contexts = generated.questions_of(group), generated.contexts_of(group)
        per_context = min(asked / contexts, max(1.0, length * by_token))
        costs += [cost.operations(torch.tensor([length]), 0) / per_context] * asked
    costs += [cost.operations(torch.tensor([count(case.context)]), 0) for case in from_files]
    return costs


def answer_case(
    model: PreTrainedModel,
    chat_format: ChatFormat,
    case: Case,
    *,
    prefill_chunk: int,
    max_new_tokens: int,
    when_read: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Ask `model` every question of a case.

    Args:
        prefill_chunk: number of tokens in a chunk; the context is read chunk by chunk.
        max_new_tokens: maximum number of tokens in an answer, unless the question sets a different maximum.
        when_read: called when the context is read, before the first answer.
    """
    prompt, tails = _encoded(chat_format, case)
    limits = [question.most_new_tokens or max_new_tokens for question in case.questions]
    context = read_context(model, prompt, prefill_chunk)
    when_read()
    read = context.cache.get_seq_length()
    outputs: list[list[int]] = []
    for start, stop in _batches(tails):
        if start:
            context.cache.crop(read - context.cache.get_seq_length())
        outputs += answer_questions(context, tails[start:stop], limits[start:stop], chat_format.stop_ids)
    return [
        _answer(case, question, len(prompt) + len(tail), chat_format.tokenizer.decode(output))
        for question, tail, output in zip(case.questions, tails, outputs, strict=True)
    ]


def _encoded(chat_format: ChatFormat, case: Case) -> tuple[list[int], list[list[int]]]:
    """Ids of the context, which are read once, and of each question with the given start of its answer."""
    if case.context:
        prompt, tails = chat_format.encode_questions(case.context, [question.text for question in case.questions])
    else:
        (question,) = case.questions
        *prompt, last = chat_format.prompt_ids([{"role": USER, "content": question.text}])
        tails = [[last]]
    begun = [chat_format.tokenizer.encode(question.begun) for question in case.questions]
    return prompt, [tail + ids for tail, ids in zip(tails, begun, strict=True)]


def _batches(tails: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Ranges of questions to ask side by side."""
    start = tokens = 0
    for place, tail in enumerate(tails):
        if tokens and tokens + len(tail) > _QUESTION_TOKENS:
            yield start, place
            start, tokens = place, 0
        tokens += len(tail)
    yield start, len(tails)


def _answer(case: Case, question: Question, prompt_tokens: int, output: str) -> Answer:
    return Answer(
        task=question.task or case.task,
        length=case.length,
        context=case.index,
        depth=question.depth,
        colliding=question.colliding,
        chance=case.chance if question.chance is None else question.chance,
        prompt_tokens=prompt_tokens,
        expected=question.expected,
        output=output,
        references=question.references,
        any_reference=question.any_reference,
    )
