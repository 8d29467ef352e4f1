"""Building blocks of report.html, namely tables, grids of coloured cells, and curves in SVG. All texts are escaped."""

from collections.abc import Sequence

from glm2core.text.html_text import cut, escaped

Points = Sequence[tuple[float, float]]

MOST_CHARACTERS = 400  # of a cell
_LONG = 45  # characters
_MOST_POINTS = 300  # of a curve
_MOST_CURVES = 6
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 28
# From orange through white to blue, which most people can distinguish; the digits stay black in dark mode
_LOW, _MIDDLE, _HIGH = (244, 165, 130), (247, 247, 247), (146, 197, 222)


def text(value: object) -> str:
    """A value as escaped text, truncated to fit into a cell."""
    return escaped(cut(str(value), MOST_CHARACTERS))


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column holds the names of its lines. On a narrow screen, the table scrolls."""
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    body = "".join(f"<tr><th>{text(line[0])}</th>{''.join(map(_cell, line[1:]))}</tr>\n" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>\n'


def _cell(value: str) -> str:
    """Figures and intervals stay on one line; texts wrap."""
    kind = ' class="long"' if len(value) > _LONG else ""
    return f"<td{kind}>{text(value)}</td>"


def grid(corner: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table that shows shares from 0 to 1 as coloured percentages; None is an empty cell.

    Args:
        corner: text of the top left cell.
        lines: the name of each line, and the line's share in each column.
    """
    head = "".join(f"<th>{text(name)}</th>" for name in (corner, *columns))
    body = "".join(f"<tr><th>{text(name)}</th>{''.join(map(_share, shares))}</tr>\n" for name, shares in lines)
    return f'<div class="wide"><table class="grid"><tr>{head}</tr>\n{body}</table></div>\n'


def _share(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    side, way = (_LOW, 1 - 2 * share) if share < 0.5 else (_HIGH, 2 * share - 1)
    colour = ",".join(str(round(m + (s - m) * way)) for m, s in zip(_MIDDLE, side, strict=True))
    return f'<td style="background:rgb({colour});color:#111">{100 * share:.0f}</td>'


def curves(named: dict[str, Points], x_name: str) -> str:
    """The first six curves in one drawing, with their names and last values below the drawing."""
    shown = {name: _thinned(points) for name, points in list(named.items())[:_MOST_CURVES] if points}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(0.0, *ys), max(ys)
    wide, high = (high_x - low_x) or 1, (high_y - low_y) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - low_x) / wide * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low_y) / high * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for value in (low_y, (low_y + high_y) / 2, high_y):
        _, y = place(low_x, value)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{text(x_name)} {low_x:,.0f}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{high_x:,.0f}</text>')
    keys = []
    for number, (name, points) in enumerate(shown.items()):
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
        # A single point becomes a dot, which is a line of no length with round ends
        parts.append(f'<path class="line k{number}" d="M{way}{"h0" if len(points) == 1 else ""}"/>')
        keys.append(f'<span><b class="k{number}">━</b> {text(name)}: {points[-1][1]:.3g}</span>')
    left_out = f"<span>{len(named) - len(shown):,} more are left out</span>" if len(named) > len(shown) else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>\n'
        f'<p class="keys">{" ".join(keys)} {left_out}</p>\n'
    )


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` points, including the last one."""
    every = -(-len(points) // _MOST_POINTS)
    return [point for number, point in enumerate(points) if (len(points) - 1 - number) % max(1, every) == 0]
