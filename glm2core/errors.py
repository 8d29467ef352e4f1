"""The error that users see as a sentence without a traceback, and functions that make text safe to show in it."""

import os
import re
from collections.abc import Collection
from urllib.parse import unquote

_MOST_NAMES = 20
_LONGEST_NAME = 200
_MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")


class UserError(ValueError):
    """An error that the user can fix: its text states the place, the value, the rule and the fix."""


def shown_names(names: Collection[object]) -> str:
    """Names from a file, as a message shows them: limited in number and length, with unprintable characters escaped."""
    shown = [_cut(str(name)) for _, name in zip(range(_MOST_NAMES), names, strict=False)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "") if shown else "none"


def printable(text: str) -> str:
    """Text from a file, or from a library's error, with unprintable characters escaped: they could move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def masked(text: str) -> str:
    """`text` with user names and passwords masked: those in its URLs, and those of `MLFLOW_TRACKING_URI`."""
    for secret in _secrets(os.environ.get("MLFLOW_TRACKING_URI", "")):
        text = text.replace(secret, _MASK)
    return _CREDENTIALS.sub(f"{_MASK}@", text)


def _secrets(uri: str) -> list[str]:
    """A URI's user name and password, and parts of the password, as errors may quote them; longest first."""
    if uri.startswith(("sqlite:", "file:")):
        return []
    written = uri.partition("://")[2].rpartition("@")[0]
    password = written.partition(":")[2]
    parts = [part for part in re.split(r"[:/?#@]", password) if len(part) > 3]
    return sorted(filter(None, {written, unquote(written), password, unquote(password), *parts}), key=len, reverse=True)


def _cut(name: str) -> str:
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...") or "''"
