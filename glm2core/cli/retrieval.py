"""`python -m glm2core retrieval`: tests how much of its context a model can use; nothing is trained."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch
from transformers import PreTrainedModel

from glm2core.errors import UserError
from glm2core.evaluation.case_files import read_cases, write_cases
from glm2core.evaluation.report import RETRIEVAL_PREDICTIONS, report_retrieval
from glm2core.evaluation.retrieval import ask
from glm2core.evaluation.run import generated_cases, open_journal
from glm2core.files import atomic_path, write_json
from glm2core.hardware import choose_device, choose_dtype
from glm2core.model.adapters import load_tuned, network_parameters
from glm2core.model.loading import load_model
from glm2core.model.rope import RopeScaling
from glm2core.params import ModelParams, TrainParams, TuningRecord, load_params, read_base, read_tuning_record, settle
from glm2core.params.section import RetrievalTask
from glm2core.text.chat_format import ChatFormat

METRICS = "metrics.json"


def run(arguments: argparse.Namespace) -> None:
    """Ask a model the questions that `evaluate.retrieval` describes, and write the same files as the evaluate stage.

    Raises:
        UserError: OUT exists, a task is unknown, the folder contains no model, the RoPE scaling can't be added, or a
            file of cases is neither a LongEval nor a RULER file.
    """
    if arguments.out.exists():
        raise UserError(f"{arguments.out} already exists. Remove it, or name a different folder.")
    if unknown := [task for task in arguments.tasks or () if task not in get_args(RetrievalTask)]:
        raise UserError(f"--tasks takes {', '.join(get_args(RetrievalTask))}, but got {unknown[0]!r}.")
    choices = load_params(arguments.params)
    device = choose_device(choices.evaluate.device, key="evaluate.device")
    record = read_tuning_record(arguments.model) or _record_of(arguments.model)
    params = settle(choices, record.base, "cuda" if device.type == "cuda" else "cpu", record).evaluate
    settings = params.retrieval
    given = {
        name: value for name in ("lengths", "contexts", "tasks") if (value := getattr(arguments, name)) is not None
    }
    generated = replace(generated_cases(settings, settings.lengths), **given)
    from_files = [case for file in arguments.file for case in read_cases(file)]
    chat_format = ChatFormat.load(arguments.model)
    if arguments.only_write:
        with atomic_path(arguments.out) as partial:
            number = write_cases(generated.cases(chat_format.count_tokens), partial, chat_format.count_tokens)
        print(f"{number:,} questions written as RULER's files: {arguments.out}")
        return
    torch.set_num_threads(params.threads)
    parameters = network_parameters(arguments.model, arguments.base)
    dtype = choose_dtype(params.dtype, device, parameters=parameters, key="evaluate.dtype")
    if arguments.rope_type is None:
        tuned = load_tuned(arguments.model, dtype=dtype, device=device, base=arguments.base)
        model = cast(PreTrainedModel, tuned)
    else:
        rope = RopeScaling(arguments.rope_type, arguments.rope_factor)
        model = load_model(arguments.model, dtype=dtype, device=device, rope=rope)
    chat_format.require_rows(model.config.padded_vocab_size, arguments.model)
    journal = open_journal(arguments.model, params, dtype, device, rope=[arguments.rope_type, arguments.rope_factor])
    with atomic_path(arguments.out) as partial:
        partial.mkdir(parents=True)
        with (partial / RETRIEVAL_PREDICTIONS).open("w", encoding="utf-8") as file:
            answers = ask(
                model,
                chat_format,
                generated,
                from_files,
                prefill_chunk=params.prefill_chunk,
                max_new_tokens=settings.max_new_tokens,
                file=file,
                memo=journal.memo,
            )
        metrics = report_retrieval(answers, [], settings.depths, partial)
        write_json(partial / METRICS, metrics)
    journal.remove()
    print(json.dumps(metrics, indent=2))
    print(f"every answer, tables and pictures: {arguments.out}")


def _record_of(model: Path) -> TuningRecord:
    """A tuning record for weights that were not tuned here, made from their folder."""
    return TuningRecord(model=ModelParams(base=str(model)), train=TrainParams(), base=read_base(model))
