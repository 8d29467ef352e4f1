"""The one error that is shown to a user as a sentence, without a traceback; and names in such a sentence."""

from collections.abc import Collection

_MOST_NAMES = 20
_LONGEST_NAME = 200


class UserError(ValueError):
    """Something the user can mend: names the place, the value, the rule and the fix."""


def shown_names(names: Collection[object]) -> str:
    """Names out of a file as a message quotes them: not too many, none too long, no character that moves a cursor."""
    shown = [_cut(str(name)) for _, name in zip(range(_MOST_NAMES), names, strict=False)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "") if shown else "none"


def printable(text: str) -> str:
    """A text out of a file, or of a library about one, without characters that move a cursor: these are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(name: str) -> str:
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...") or "''"
