"""What users see during a run: progress bars during long work, and a closing table at the end."""

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
"""Shows the user a message."""

Report = Callable[[dict[str, float], int], None]
"""Receives a run's figures at one of its steps."""


@contextmanager
def progress_bar(
    description: str, total: int | None, *, seconds_between_lines: float = 60
) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on stderr, with the count, the elapsed time and the remaining time.

    The context manager yields the bar and the task that the caller advances. The description may be changed with
    `bar.update(task, description=...)`. Without a terminal (in a log file or in CI), a line is printed every
    `seconds_between_lines` seconds, and one more line at the end.
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
    """Keep libraries' own messages off the screen; call this function before importing the libraries.

    A message from bitsandbytes recommends a package that would download code from a hub. The library transformers shows
    its own progress bar for each folder of weights, unless environment variables forbid this when it is imported. The
    library peft uses a deprecated name from transformers, which causes a warning.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


_LONG_SECONDS = 30 * 60


def time_left(seconds: float, *, shortened_by: str) -> str:
    """Return a duration as text, such as `about 6 min on this machine`.

    If the duration is longer than half an hour, the text also says what would shorten the run.

    Args:
        shortened_by: the changes that would shorten the run, such as `fewer train.max_steps, or ...`.
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
    """Print a stage's figures, and then where to look next.

    Args:
        rows: the figures by name; nested figures (one for each source) are not printed, but are in the stage's files.
        look_next: for each thing that a user may look for, the command or the path that shows it.
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


_WIDEST_LINE = 250  # columns; a log has no width, and a line that a terminal wraps says more than truncated cells


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print `lines` as a table under `header`, without wrapping; print nothing if `lines` is empty."""
    if not lines:
        return
    table = Table(*header, title=title, title_justify="left")
    for line in lines:
        table.add_row(*map(escape, line))
    Console(width=_WIDEST_LINE).print(table, highlight=False)
