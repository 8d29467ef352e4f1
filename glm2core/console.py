"""What users see while a run works: progress bars on long work and a closing table."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Notice = Callable[[str], None]
"""Shows the user a sentence."""

Report = Callable[[dict[str, float], int], None]
"""Takes figures of a run at a step."""


@contextmanager
def progress_bar(
    description: str, total: int | None, *, seconds_between_lines: float = 60
) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr with count, elapsed and remaining time; yields it and its task to advance.

    The description may be changed with `bar.update(task, description=...)`. Without a terminal
    (a log file, CI) a line is printed every `seconds_between_lines`, and one at the end.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        with nullcontext() if console.is_terminal else _lines(bar, seconds_between_lines):
            yield bar, task


@contextmanager
def _lines(bar: Progress, seconds: float) -> Iterator[None]:
    """Print the bar's progress to a log at intervals."""
    ended = Event()

    def tell() -> None:
        while not ended.wait(seconds):
            (task,) = bar.tasks
            of = "" if task.total is None else f" of {task.total:,.0f}"
            spent = task.elapsed or 0
            begun = task.total and 0 < task.completed < task.total
            left = f", about {spent * (task.total / task.completed - 1):,.0f} s left" if begun and task.total else ""
            print(f"{task.description}: {task.completed:,.0f}{of}, {spent:,.0f} s{left}", file=sys.stderr)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def quiet_libraries() -> None:
    """Keep libraries' own messages off the screen; call it before they are imported.

    bitsandbytes recommends a package that would fetch code from a hub; transformers reads these
    variables when it is imported, and shows its own bar for each folder of weights; peft uses a
    deprecated name of transformers.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


_LONG_SECONDS = 30 * 60


def time_left(seconds: float, *, shortened_by: str) -> str:
    """`about 6 min on this machine`; if that is over half an hour, with what shortens it.

    Args:
        shortened_by: the params to change, as the rest of a sentence: `fewer train.max_steps, or ...`.
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        about = f"{max(1, round(seconds))} s"
    elif minutes < 90:
        about = f"{minutes} min"
    elif minutes < 48 * 60:
        about = f"{minutes // 60} h {minutes % 60} min"
    else:
        about = f"{minutes / 60 / 24:.1f} days"
    advice = f"; what shortens it: {shortened_by}" if seconds > _LONG_SECONDS else ""
    return f"about {about} on this machine{advice}"


def closing_table(title: str, rows: dict[str, object], look_next: dict[str, str | Path]) -> None:
    """Print a stage's figures and where to look next: {what is there: command or path}.

    Nested figures (per source) are only in the files.
    """
    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        if isinstance(value, dict):
            continue
        table.add_row(
            name,
            f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
        )
    console.print(table)
    for what, where in look_next.items():
        console.print(f"  {what}: [bold]{where}[/bold]", highlight=False, soft_wrap=True)


_WIDEST_LINE = 250  # columns: a log has no width, and lines wrapped by a terminal say more than truncated cells


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print lines under a header, each on one line; print nothing if there are none."""
    if not lines:
        return
    table = Table(*header, title=title, title_justify="left")
    for line in lines:
        table.add_row(*map(escape, line))
    Console(width=_WIDEST_LINE).print(table, highlight=False)
