"""The error that users see as a sentence, without a traceback; and how such a sentence shows names."""

import os
import re
from collections.abc import Collection
from urllib.parse import unquote

_MOST_NAMES = 20
_LONGEST_NAME = 200
_MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")


class UserError(ValueError):
    """Something the user can fix: names the place, the value, the rule and the fix."""


def shown_names(names: Collection[object]) -> str:
    """Names from a file for a message: a limited number, shortened, without characters that move a cursor."""
    shown = [_cut(str(name)) for _, name in zip(range(_MOST_NAMES), names, strict=False)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "") if shown else "none"


def printable(text: str) -> str:
    """A text from a file, or from a library about one, with characters that move a cursor escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def masked(text: str) -> str:
    """A text without the user names and passwords of its URLs, and without those of `MLFLOW_TRACKING_URI`."""
    for secret in _secrets(os.environ.get("MLFLOW_TRACKING_URI", "")):
        text = text.replace(secret, _MASK)
    return _CREDENTIALS.sub(f"{_MASK}@", text)


def _secrets(uri: str) -> list[str]:
    """User name and password as a URI has them, and parts of the password, as errors quote it; longest first."""
    if uri.startswith(("sqlite:", "file:")):
        return []
    written = uri.partition("://")[2].rpartition("@")[0]
    password = written.partition(":")[2]
    parts = [part for part in re.split(r"[:/?#@]", password) if len(part) > 3]
    return sorted(filter(None, {written, unquote(written), password, unquote(password), *parts}), key=len, reverse=True)


def _cut(name: str) -> str:
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...") or "''"
