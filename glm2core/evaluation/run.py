"""Evaluates one tuned model in several parts. Each part has its own progress bar and files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import polars as pl
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from glm2core.console import Notice, Report, progress_bar
from glm2core.errors import UserError
from glm2core.evaluation.before_after import AskedRows, answer_and_score, memo_of_base, row_losses
from glm2core.evaluation.case_files import read_cases
from glm2core.evaluation.loss import held_out_loss, loss_by_position, token_losses
from glm2core.evaluation.report import (
    PREDICTIONS,
    RETRIEVAL_PREDICTIONS,
    append_records,
    report_answers,
    report_positions,
    report_retrieval,
)
from glm2core.evaluation.retrieval import ask
from glm2core.evaluation.rows import read_rows
from glm2core.evaluation.scores import BASE, TUNED, Answer, score
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.files import project_root, resolve_path, run_fingerprint, sha256_file, sha256_folder, source_fingerprint
from glm2core.hardware import choose_device, choose_dtype
from glm2core.journal import Journal
from glm2core.model.adapters import is_base_inside, load_tuned, network_parameters
from glm2core.model.loading import fingerprint, load_model
from glm2core.params import EvaluateParams, ModelParams, RetrievalParams, TokenizeParams
from glm2core.text.chat_format import ChatFormat
from glm2core.text.dataset import TokenizedDataset
from glm2core.text.prompt import PairFormat, TemplateName
from glm2core.text.tokenizer import SpTokenizer

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCE = ("text", "lines", "evaluation", "model", "family.py")
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class BaseAnswers:
    """Answers of the untuned base.

    Attributes:
        retrieval: the base's answers about long contexts.
        scored, records: scores and texts of the base's answers to held-out rows; None and empty if the base is not
            asked, or if the tuned model with its adapter turned off is asked later instead.
    """

    retrieval: list[Answer] = field(default_factory=list)
    scored: pl.DataFrame | None = None
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A model with its test data. Each method writes its files into a folder and returns flat metrics."""

    model: PreTrainedModel
    chat_format: ChatFormat
    dataset: TokenizedDataset
    asked: AskedRows  # the rows to answer
    base: BaseAnswers  # answers of the untuned base, if params ask for them
    params: EvaluateParams
    journal: Journal
    row_losses: dict[str, tuple[float, int]] = field(default_factory=dict)  # the tuned model's, once computed

    @classmethod
    def load(
        cls,
        model: Path,
        test: Path,
        converted: Path,
        params: EvaluateParams,
        base: ModelParams,
        tokenize: TokenizeParams | None = None,
    ) -> "Evaluation":
        """Load the model, its tokenizer and the test split, after the base was evaluated and released from memory.

        Args:
            model: folder with the tuned weights or the adapter, and the tokenizer.
            test: the tokenized test split, which must be made with the same tokenizer.
            converted: file with the same rows before they were tokenized; it names the source of each row.
            base: params of the base from which the model was tuned.
            tokenize: how rows of `params.general` are encoded.

        Raises:
            UserError: a file is missing, or the test split was made with a different tokenizer.
        """
        tokenizer = SpTokenizer.load(model)
        dataset = TokenizedDataset.load(test, tokenizer.sha256)
        device = choose_device(params.device, key="evaluate.device")
        torch.set_num_threads(params.threads)
        dtype = choose_dtype(params.dtype, device, parameters=network_parameters(model), key="evaluate.dtype")
        chat_format = ChatFormat(
            tokenizer, cast(TemplateName, dataset.info.template), cast(PairFormat, dataset.info.pair_format)
        )
        asked = AskedRows.choose(dataset, read_rows(converted, dataset.ids), params.generation.rows)
        general = None if params.general is None else resolve_path(params.general)
        if general is not None:
            asked = asked.with_general(general, params.generation.rows, chat_format, tokenize or TokenizeParams())
        folder = None if base.base is None else resolve_path(base.base)
        alone = params.generation.base and not is_base_inside(model) and len(asked) > 0
        loaded = folder is not None and (alone or bool(params.retrieval.base_lengths))
        journal = open_journal(
            model,
            params,
            dtype,
            device,
            test=sha256_file(test),
            base=fingerprint(folder) if folder is not None and loaded else None,
            general=None if general is None else [sha256_file(general), repr(tokenize)],
        )
        of_base = BaseAnswers()
        if folder is not None and loaded:
            # Released before the tuned network is read, so the two networks are never in memory together
            network = load_model(folder, dtype=dtype, device=device, family=base.family)
            of_base = _ask_base(network.eval(), chat_format, asked if alone else None, params, journal)
            del network
        # An adapter's PeftModel passes calls on to the network inside
        tuned = cast(PreTrainedModel, load_tuned(model, dtype=dtype, device=device))
        return cls(tuned.eval(), chat_format, dataset, asked, of_base, params, journal)

    def loss(self, folder: Path) -> dict[str, float]:
        """Measure the held-out loss of the answers, over all rows and by position."""
        if not self.dataset.supervised_tokens:
            print("test_loss is missing because the test split has no supervised row (see convert.test_fraction)")
            return {}
        with progress_bar("held-out loss", len(self.dataset)) as (bar, task):
            losses = token_losses(
                self.model,
                self.dataset,
                self.params.batch_tokens,
                lambda rows: bar.advance(task, rows),
                self.journal.memo,
            )
        self.row_losses.update(row_losses(self.dataset, losses))
        loss = held_out_loss(losses)
        if not math.isfinite(loss.total):
            raise UserError(
                f"the held-out loss is {loss.total}, as the network's outputs in {self.model.dtype} are not finite. "
                "Set evaluate.dtype to float32, or lower train.learning_rate and train again."
            )
        if not math.isfinite(loss.perplexity):
            raise UserError(
                f"the held-out loss is {loss.mean:,.0f} per token, so training has diverged. Lower train.learning_rate "
                "and train again."
            )
        length = max(self.params.retrieval.lengths, default=self.params.prefill_chunk)
        report_positions(loss_by_position(self.model, self.dataset, losses, length, self.params.batch_tokens), folder)
        return {"test_loss": loss.mean, "test_perplexity": loss.perplexity, "test_tokens": loss.tokens}

    def answers(self, folder: Path) -> dict[str, Any]:
        """Answer held-out rows greedily and score the answers; if params ask for it, also with the base."""
        if not len(self.asked):
            return {}
        with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
            scored, _ = answer_and_score(
                self.model,
                self.chat_format,
                self.asked,
                self.params,
                name=TUNED,
                memo=self.journal.memo,
                known=self.row_losses,
                file=file,
            )
            before, records = self.base.scored, self.base.records
            if before is None and self.params.generation.base and isinstance(self.model, PeftModel):
                with self.model.disable_adapter():
                    before, records = _answer_as_base(
                        self.model, self.chat_format, self.asked, self.params, self.journal
                    )
            append_records(file, records)
        rows = scored if before is None else pl.concat([scored, before])
        facts = self.asked.facts
        return report_answers(rows.join(facts, on="id", maintain_order="left"), folder)

    def retrieval(self, folder: Path, report: Report | None = None) -> dict[str, float]:
        """Ask questions about long contexts, and score the model's and the base's answers by length and depth.

        Args:
            report: called for each length with the accuracy at this length, and with the length as the step.
        """
        settings = self.params.retrieval
        from_files = [case for file in settings.files for case in read_cases(resolve_path(file))]
        with (folder / RETRIEVAL_PREDICTIONS).open("w", encoding="utf-8") as file:
            answers = ask(
                self.model,
                self.chat_format,
                generated_cases(settings, settings.lengths),
                from_files,
                prefill_chunk=self.params.prefill_chunk,
                max_new_tokens=settings.max_new_tokens,
                file=file,
                memo=self.journal.memo,
            )
            append_records(file, (answer.record() for answer in self.base.retrieval))
        if report is not None:
            _report_lengths(answers, report)
        return report_retrieval(answers, self.base.retrieval, settings.depths, folder)


def _ask_base(
    network: PreTrainedModel, chat_format: ChatFormat, asked: AskedRows | None, params: EvaluateParams, journal: Journal
) -> BaseAnswers:
    """Ask the base everything while it is in memory. If `asked` is None, it does not answer held-out rows here."""
    scored: pl.DataFrame | None = None
    records: list[dict[str, Any]] = []
    if asked is not None:
        scored, records = _answer_as_base(network, chat_format, asked, params, journal)
    answers: list[Answer] = []
    if params.retrieval.base_lengths:
        answers = ask(
            network,
            chat_format,
            generated_cases(params.retrieval, params.retrieval.base_lengths),
            prefill_chunk=params.prefill_chunk,
            max_new_tokens=params.retrieval.max_new_tokens,
            memo=journal.memo,
            name=BASE,
        )
    return BaseAnswers(answers, scored, records)


def _answer_as_base(
    network: PreTrainedModel, chat_format: ChatFormat, asked: AskedRows, params: EvaluateParams, journal: Journal
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    return answer_and_score(network, chat_format, asked, params, name=BASE, memo=memo_of_base(journal.memo))


def generated_cases(settings: RetrievalParams, lengths: Sequence[int]) -> GeneratedCases:
    """The cases that `settings` define, at the given lengths."""
    return GeneratedCases(
        settings.tasks, lengths, settings.contexts, settings.questions, settings.depths, settings.seed, settings.shared
    )


def open_journal(model: Path, params: EvaluateParams, dtype: torch.dtype, device: torch.device, **more: Any) -> Journal:
    """Open the journal of a stopped evaluation of this model on this machine, or a new journal.

    Args:
        model: folder of the model; the folder of an adapter identifies the base with a fingerprint.
        more: everything else on which the answers depend, as plain JSON values.
    """
    return journal_of(
        {
            "model": sha256_folder(model),
            "machine": [str(dtype), str(device), torch.get_num_threads()],
            "params": params.model_dump(mode="json"),
            "libraries": {name: version(name) for name in _LIBRARIES},
            "source": source_fingerprint(*(_PACKAGE / name for name in _SOURCE)),
            **more,
        }
    )


def journal_of(made_with: dict[str, Any], notice: Notice = print) -> Journal:
    """Open the journal of one evaluation, in the project's .checkpoints folder.

    Different values in `made_with` give different files. The evaluation of a large network takes hours on a CPU; with
    the journal, a stopped evaluation can be resumed.

    Args:
        made_with: everything on which the answers depend, as plain JSON values.
        notice: called if a stopped evaluation is resumed, or if the journal can't be written.
    """
    file = project_root() / ".checkpoints" / f"evaluate-{run_fingerprint(made_with)}.jsonl"
    journal = Journal(
        file,
        made_with,
        failed=lambda error: notice(
            f"could not write {file} ({error}): the evaluation continues, but can't be resumed."
        ),
    )
    if journal.values:
        notice(f"resuming a stopped evaluation; parts already done: {len(journal.values):,}")
    return journal


def _report_lengths(answers: list[Answer], report: Report) -> None:
    for task in dict.fromkeys(answer.task for answer in answers if answer.length):
        for length in sorted({answer.length for answer in answers if answer.task == task}):
            group = [answer for answer in answers if (answer.task, answer.length) == (task, length)]
            report({f"{task}_accuracy_by_length": score(group).accuracy}, length)
