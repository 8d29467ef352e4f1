"""The error that users see as a message without a traceback, and functions that make text safe to show in messages."""

import os
import re
from collections.abc import Collection
from urllib.parse import unquote

_MOST_NAMES = 20
_LONGEST_NAME = 200
_MASK = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")


class UserError(ValueError):
    """An error that the user can fix; its message states the place, the value, the rule and the fix."""


def shown_names(names: Collection[object]) -> str:
    """Format names from a file for a message: limit their number and length, and escape unprintable characters."""
    shown = [_cut(str(name)) for _, name in zip(range(_MOST_NAMES), names, strict=False)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "") if shown else "none"


def printable(text: str) -> str:
    """Escape unprintable characters, which could move the cursor, in text from a file or from a library's error."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def masked(text: str) -> str:
    """Mask the user names and passwords in `text`, both those in URLs and those from `MLFLOW_TRACKING_URI`."""
    for secret in _secrets(os.environ.get("MLFLOW_TRACKING_URI", "")):
        text = text.replace(secret, _MASK)
    return _CREDENTIALS.sub(f"{_MASK}@", text)


def _secrets(uri: str) -> list[str]:
    """Return a URI's user name, password and parts of the password, as errors may quote them; the longest is first."""
    if uri.startswith(("sqlite:", "file:")):
        return []
    written = uri.partition("://")[2].rpartition("@")[0]
    password = written.partition(":")[2]
    parts = [part for part in re.split(r"[:/?#@]", password) if len(part) > 3]
    return sorted(filter(None, {written, unquote(written), password, unquote(password), *parts}), key=len, reverse=True)


def _cut(name: str) -> str:
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...") or "''"
