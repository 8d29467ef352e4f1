"""The evaluation of one tuned model, part by part, each with its progress bar and its files."""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from glm2core.console import progress_bar
from glm2core.data.dataset import TokenizedDataset
from glm2core.data.prompt import PairFormat, TemplateName
from glm2core.data.sp import SpTokenizer
from glm2core.errors import UserError
from glm2core.evaluation.answers import HeldOutAnswer, answer_rows
from glm2core.evaluation.finished import FinishedParts, Part, Record, made_now
from glm2core.evaluation.loss import held_out_loss, loss_by_position, token_losses
from glm2core.evaluation.report import (
    PREDICTIONS,
    RETRIEVAL_PREDICTIONS,
    append_records,
    report_answers,
    report_positions,
    report_retrieval,
)
from glm2core.evaluation.retrieval import PromptFormat, answer_case
from glm2core.evaluation.scores import BASE, TUNED, Answer, score
from glm2core.evaluation.tasks import Case, count_questions, generate_cases, read_longeval
from glm2core.files import resolve_path, sha256_file, sha256_folder, source_fingerprint
from glm2core.model.adapters import load_tuned
from glm2core.model.checkpoint import fingerprint, load_model
from glm2core.model.hardware import choose_device, choose_dtype, set_threads
from glm2core.params import EvaluateParams, ModelParams, RetrievalParams

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")

Report = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Evaluation:
    """A model with what it is measured on. Each method writes its files into a folder and returns flat metrics."""

    model: PreTrainedModel
    prompt_format: PromptFormat
    dataset: TokenizedDataset
    sources: dict[str, str]  # row id -> where it came from
    base_answers: list[Answer]  # of the untuned base, where params ask for it
    params: EvaluateParams
    finished: FinishedParts

    @classmethod
    def load(cls, model: Path, test: Path, converted: Path, params: EvaluateParams, base: ModelParams) -> "Evaluation":
        """Load the model with its tokenizer and the test split; the base is asked first, and let go.

        Args:
            model: tuned weights, or an adapter, with the tokenizer.
            test: tokenized test split, made with that tokenizer.
            converted: the same rows before tokenizing, for their sources.
            base: which base the model was tuned from.

        Raises:
            UserError: a file is missing, or the data were made with another tokenizer.
        """
        tokenizer = SpTokenizer.load(model)
        dataset = TokenizedDataset.load(test, tokenizer.sha256)
        device = choose_device(params.device, key="evaluate.device")
        set_threads(params.threads)
        dtype = choose_dtype(params.dtype, device)
        prompt_format = PromptFormat(
            tokenizer, cast(TemplateName, dataset.info.template), cast(PairFormat, dataset.info.pair_format)
        )
        sources = _read_sources(converted, dataset)
        base_folder = resolve_path(base.base) if base.base is not None and params.retrieval.base_lengths else None
        base_hash = None if base_folder is None else fingerprint(base_folder)
        finished = finished_parts(model, params, dtype, device, test=sha256_file(test), base=base_hash)
        base_answers: list[Answer] = []
        if base_folder is not None:
            load = partial(load_model, base_folder, dtype=dtype, device=device, family=base.family)
            base_answers = _ask_base(load, prompt_format, params, finished.part)
        # An adapter's PeftModel passes on what it is asked, as any model would answer it
        network = cast(PreTrainedModel, load_tuned(model, dtype=dtype, device=device))
        return cls(network.eval(), prompt_format, dataset, sources, base_answers, params, finished)

    def loss(self, folder: Path) -> dict[str, float]:
        """Held-out loss of the answers, over all rows and by position."""
        if not self.dataset.supervised_tokens:
            print("test_loss is missing: the test split has no supervised row (convert.test_fraction decides)")
            return {}
        with progress_bar("held-out loss", len(self.dataset)) as (bar, task):
            losses = token_losses(
                self.model,
                self.dataset,
                self.params.batch_tokens,
                lambda rows: bar.advance(task, rows),
                self.finished.part,
            )
        loss = held_out_loss(losses)
        if not math.isfinite(loss.total):
            raise UserError(
                f"the held-out loss is {loss.total}: the network computes no finite numbers in {self.model.dtype}. "
                "Set evaluate.dtype to float32, or lower train.learning_rate and train again."
            )
        length = max(self.params.retrieval.lengths, default=self.params.prefill_chunk)
        report_positions(loss_by_position(self.model, self.dataset, losses, length, self.params.batch_tokens), folder)
        return {"test_loss": loss.mean, "test_perplexity": loss.perplexity, "test_tokens": loss.tokens}

    def answers(self, folder: Path) -> dict[str, float]:
        """Greedy answers to held-out rows, with ROUGE and BLEU."""
        settings = self.params.generation
        rows = min(settings.rows, len(self.dataset))
        if not rows:
            return {}
        answers: list[HeldOutAnswer] = []
        with (
            (folder / PREDICTIONS).open("w", encoding="utf-8") as file,
            progress_bar("answers", rows) as (bar, task),
        ):
            for batch in answer_rows(
                self.model,
                self.prompt_format.tokenizer,
                self.prompt_format.template,
                self.dataset,
                rows=rows,
                batch_size=settings.batch_size,
                max_new_tokens=settings.max_new_tokens,
                part=self.finished.part,
            ):
                append_records(file, ({"source": self.sources[answer.id], **asdict(answer)} for answer in batch))
                answers += batch
                bar.advance(task, len(batch))
        return report_answers(answers, self.sources, folder)

    def retrieval(self, folder: Path, report: Report | None = None) -> dict[str, float]:
        """Questions about long contexts, with scores by length and depth, beside the base's where it was asked.

        Args:
            report: called with each length's accuracy, the length as step.
        """
        settings = self.params.retrieval
        from_files = [case for file in settings.files for case in read_longeval(resolve_path(file))]
        with (folder / RETRIEVAL_PREDICTIONS).open("w", encoding="utf-8") as file:
            answers = ask(self.model, self.prompt_format, self.params, settings, from_files, file, self.finished.part)
            append_records(file, (answer.record() for answer in self.base_answers))
        if report is not None:
            _report_lengths(answers, report)
        return report_retrieval(answers, self.base_answers, settings.depths, folder)


def finished_parts(
    model: Path, params: EvaluateParams, dtype: torch.dtype, device: torch.device, **more: Any
) -> FinishedParts:
    """What an evaluation of this model on this machine that was stopped has left, if one was.

    Args:
        model: its folder; an adapter's names its base by a fingerprint.
        more: plain JSON values of what the answers depend on besides.
    """
    return FinishedParts(
        {
            "model": sha256_folder(model),
            "machine": [str(dtype), str(device), torch.get_num_threads()],
            "params": params.model_dump(mode="json"),
            "libraries": {name: version(name) for name in _LIBRARIES},
            "source": source_fingerprint(*(_PACKAGE / name for name in ("data", "evaluation", "model"))),
            **more,
        }
    )


def _read_sources(converted: Path, dataset: TokenizedDataset) -> dict[str, str]:
    """Row id -> source of every row of `dataset`."""
    rows = pq.read_table(converted, columns=["id", "source"]).to_pylist() if converted.exists() else []
    sources = {row["id"]: row["source"] for row in rows}
    if missing := set(dataset.ids) - set(sources):
        raise UserError(
            f"{converted} lacks {len(missing):,} of the {len(dataset):,} rows that were tokenized. "
            "Run the pipeline from its start: dvc repro."
        )
    return sources


def _ask_base(
    load: Callable[[], PreTrainedModel], prompt_format: PromptFormat, params: EvaluateParams, part: Part
) -> list[Answer]:
    """Answers of the untuned base, which is let go afterwards: the two networks are never in memory together."""
    settings = params.retrieval.model_copy(update={"lengths": params.retrieval.base_lengths})
    return ask(load(), prompt_format, params, settings, [], None, part, name=BASE)


def ask(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    params: EvaluateParams,
    settings: RetrievalParams,
    from_files: list[Case],
    file: TextIO | None,
    part: Part = made_now,
    name: str = TUNED,
) -> list[Answer]:
    """Answers to all generated cases and those `from_files`, behind a progress bar; written to `file` as they come.

    Args:
        part: where the answers of a case come from or go to.
        name: of the model, in its answers.
    """

    def answer(case: Case) -> list[Record]:
        made = answer_case(
            model, prompt_format, case, prefill_chunk=params.prefill_chunk, max_new_tokens=settings.max_new_tokens
        )
        return [asdict(replace(answer, model=name)) for answer in made]

    answers: list[Answer] = []
    cases = itertools.chain(generate_cases(settings, prompt_format.count_tokens), from_files)
    asks = "retrieval, base" if name == BASE else "retrieval"
    with progress_bar(asks, count_questions(settings) + len(from_files)) as (bar, task):
        for case in cases:
            batch = [Answer(**record) for record in part([name, asdict(case)], partial(answer, case))]
            if file is not None:
                append_records(file, (answer.record() for answer in batch))
            answers += batch
            bar.update(task, description=f"{asks} {batch[0].prompt_tokens:,} tokens", advance=len(batch))
    return answers


def _report_lengths(answers: list[Answer], report: Report) -> None:
    for task in dict.fromkeys(answer.task for answer in answers if answer.length):
        for length in sorted({answer.length for answer in answers if answer.task == task}):
            group = [answer for answer in answers if (answer.task, answer.length) == (task, length)]
            report({f"{task}_accuracy_by_length": score(group).accuracy}, length)
