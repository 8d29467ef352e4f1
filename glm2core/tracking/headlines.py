"""A stage's headline figures, which help to tell runs apart. MLflow shows them for each run and promoted model."""

import re
from collections.abc import Iterable

_NAMED = {
    "convert": ("rows_kept",),
    "tokenize": ("rows_train",),
    "train": ("validation_loss", "seconds", "tokens_per_second", "peak_memory_gib"),
    "evaluate": (
        "test_loss",
        "exact_match",
        "rouge_l",
        "bleu_4",
        "general_loss_change",
        "retrieval_accuracy",
        "effective_context_length",
    ),
}
_BY_LENGTH = re.compile(r"retrieval_(.+)_(\d+)")  # evaluate's figure for a task at a length


def headlines(stage: str, names: Iterable[str]) -> list[str]:
    """The headlines among `names`, in a fixed order.

    Only one retrieval task is included. It is `lines` if there are figures for it, and otherwise the first task.
    """
    there = list(names)
    found = [name for name in _NAMED.get(stage, ()) if name in there]
    lengths = [(match[1], int(match[2]), name) for name in there if (match := _BY_LENGTH.fullmatch(name))]
    first = "lines" if any(task == "lines" for task, *_ in lengths) else next((task for task, *_ in lengths), None)
    return found + [name for task, _, name in sorted(lengths) if task == first]
