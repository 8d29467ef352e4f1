"""`compare`: checks whether a server gives the same answers as the model."""

import argparse
import sys

from glm2core.cli.answering import load_model_and_format
from glm2core.errors import UserError
from glm2core.serving.comparison import compare, usual_cause
from glm2core.serving.remote import Remote


def run(arguments: argparse.Namespace) -> None:
    remote = Remote.connect(arguments.url, arguments.name, notice=_note)
    model, chat_format = load_model_and_format(arguments, _note)
    results = []
    print(f"{'prompt':<24}{'tokens':>8}  answers")
    for result in compare(model, chat_format, remote, arguments.lengths, arguments.max_new_tokens):
        print(f"{result.name:<24}{result.tokens:>8,}  {result.verdict}", flush=True)
        results.append(result)
    told = [result.logprob_difference for result in results if result.logprob_difference is not None]
    if told:
        print(f"log-probabilities of the answers' tokens: largest difference {max(told):.1e}")
    else:
        print("the server returns no log-probabilities for the same tokens, so only the answers were compared")
    different = [result for result in results if not result.equal]
    if different:
        raise UserError(
            f"{len(different)} of {len(results)} answers differ from {arguments.model}'s. {usual_cause(results)}"
        )
    print(f"{remote.model} gives the same answers as {arguments.model}: {len(results)} of {len(results)}")


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
