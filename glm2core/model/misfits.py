"""Report missing tensors, unexpected tensors and tensors of the wrong shape in one error message."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from glm2core.errors import UserError, shown_names

_MOST_LISTED = 8

Misshapen = tuple[str, Sequence[int], Sequence[int]]  # name, shape found, shape expected


def require_fit(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], rule: str) -> None:
    """Compare tensors with the expected names and shapes.

    Args:
        rule: the start of the error message, which states the place and the rule that is broken.

    Raises:
        UserError: some tensors don't fit; the error names the first of them.
    """
    both = shapes.keys() & expected.keys()
    misshapen = [(n, shapes[n], expected[n]) for n in both if tuple(shapes[n]) != tuple(expected[n])]
    refuse_misfits(expected.keys() - both, shapes.keys() - both, misshapen, rule)


def refuse_misfits(
    missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[Misshapen], rule: str
) -> None:
    """Reject tensors that don't fit.

    Args:
        rule: as in `require_fit`.

    Raises:
        UserError: `missing`, `unexpected` or `misshapen` is not empty.
    """
    wrong = [f"missing {name}" for name in sorted(missing)]
    wrong += [f"unexpected {name}" for name in sorted(unexpected)]
    wrong += [
        f"{name} is {list(found)} but should be {list(expected)}"
        for name, found, expected in sorted(misshapen, key=lambda entry: entry[0])
    ]
    if wrong:
        listed = "; ".join(shown_names([sentence]) for sentence in wrong[:_MOST_LISTED])
        more = f"; and {len(wrong) - _MOST_LISTED:,} more" if len(wrong) > _MOST_LISTED else ""
        raise UserError(f"{rule}: {listed}{more}")


def refuse_prefix_alone(missing: Collection[str], path: Path | str) -> None:
    """Reject weights that contain a complete P-tuning prefix, but no embedding and so no whole network.

    Raises:
        UserError: the weights are only a P-tuning prefix.
    """
    if any("word_embeddings" in name for name in missing) and not any("prefix_encoder" in name for name in missing):
        raise UserError(
            f"{path} holds only a P-tuning prefix, as the released ptuning script saves it, and no network. Name "
            'the base\'s folder with --base, or in a base.json beside the weights: {"path": "models/chatglm2-6b"}.'
        )
