"""Puts texts from data and models into an HTML page without letting them run or change the text direction."""

import html
from collections.abc import Iterable
from typing import TextIO

from glm2core.errors import printable


def escaped(text: str) -> str:
    """Escape a text for an HTML element or a quoted attribute.

    Tags and quotes are escaped, control and bidi characters become codes (`\\u202e`), and line breaks are kept.
    """
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def cut(text: str, most: int) -> str:
    """The first `most` characters of a text, followed by the number of characters that were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def write_within(file: TextIO, parts: Iterable[str], room: int) -> int:
    """Write a page's parts in order, except those that no longer fit into `room` bytes; returns how many these are."""
    left_out = 0
    for part in parts:
        length = len(part.encode())
        if length > room:
            left_out += 1
            continue
        room -= length
        file.write(part)
    return left_out
