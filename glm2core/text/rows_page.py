"""Writes rows.html, a page that shows tokenized rows. The page has no scripts, and all its texts are escaped."""

from collections.abc import Iterable
from pathlib import Path

from glm2core.text.html_text import escaped, write_within
from glm2core.text.shown_rows import STRETCHED, ShownLine, ShownRow, ShownToken

ROWS_PAGE = "rows.html"
MOST_BYTES = 5_000_000

_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Rows as the model sees them</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 14px/1.9 sans-serif; margin: 1em 2em; }}
h2 {{ font-size: 15px; margin: 2em 0 0.3em; border-top: 1px solid #bbb; padding-top: 0.6em; }}
p {{ margin: 0; }}
pre {{ white-space: pre-wrap; background: #f4f4f4; padding: 0.5em; line-height: 1.4; }}
u {{ color: #777; font-size: 11px; text-decoration: none; margin-right: 0.6em; }}
span {{ unicode-bidi: isolate; direction: ltr; display: inline-block; line-height: 1.2; margin: 1px; padding: 0 2px;
  border: 1px solid #ddd; text-align: center; font-family: monospace; }}
i {{ display: block; color: #999; font-size: 9px; font-style: normal; }}
.s {{ background: #cdeac0; border-color: #7a5; }}
.c {{ background: #f6d5d5; border-color: #c88; text-decoration: line-through; }}
</style></head><body>
<h1>Rows as the model sees them</h1>
<p><span class="s">token<i>id</i></span>: the token is supervised. <span>token<i>id</i></span>: the token is only read.
<span class="c">token<i>id</i></span>: the token was truncated. If an id is followed by an arrow, the id after the arrow
is the token's label. Each line starts with its position. If a position is followed by an arrow, the number after the
arrow is an example of the line's position when train.position_stretch spreads the row over {STRETCHED:,} positions.
Gaps open only at the starts of lines.</p>
"""


def write_rows_page(rows: Iterable[ShownRow], path: Path) -> None:
    """Write as many rows as fit into a page. The end of the page says how many rows were left out."""
    room = MOST_BYTES - 200 - len(_HEAD.encode())
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_HEAD)
        if left_out := write_within(file, map(_block, rows), room):
            file.write(f"<h2>{left_out:,} more rows are left out: the page would be too long</h2>\n")
        file.write("</body></html>\n")


def _block(row: ShownRow) -> str:
    cuts = f", cut: {', '.join(row.cuts)}" if row.cuts else ""
    more = f"<p>{row.left_out:,} more tokens are left out</p>\n" if row.left_out else ""
    title = (
        f"{row.source}, row {row.number:,} of {row.place}: {row.length:,} tokens, {row.supervised:,} supervised{cuts}"
    )
    return (
        f"<h2>{escaped(title)}</h2>\n<p>{escaped(row.id)}</p>\n<pre>{escaped(row.text)}</pre>\n"
        + "".join(map(_line, row.lines))
        + more
    )


def _line(line: ShownLine) -> str:
    moved = f" → {line.stretched:,}" if line.stretched != line.position else ""
    return f"<p><u>{line.position:,}{moved}</u>{''.join(map(_token, line.tokens))}</p>\n"


def _token(token: ShownToken) -> str:
    kind = ' class="c"' if token.cut else ' class="s"' if token.label else ""
    label = f" → {escaped(token.label)}" if token.label not in ("", "=") else ""
    return f"<span{kind}>{escaped(token.text)}<i>{token.id}{label}</i></span>"
