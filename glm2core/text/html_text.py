"""Texts of data and models in a page: shown as they are, never executed, without changing the text direction."""

import html
from collections.abc import Iterable
from typing import TextIO

from glm2core.errors import printable


def escaped(text: str) -> str:
    """A text for HTML, in an element or a quoted attribute.

    Tags and quotes are escaped, control and bidi characters become codes (`\\u202e`), line breaks are kept.
    """
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def cut(text: str, most: int) -> str:
    """The first `most` characters, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def write_within(file: TextIO, parts: Iterable[str], room: int) -> int:
    """Write the parts of a page that fit into `room` bytes together, in order; return how many did not."""
    left_out = 0
    for part in parts:
        length = len(part.encode())
        if length > room:
            left_out += 1
            continue
        room -= length
        file.write(part)
    return left_out
