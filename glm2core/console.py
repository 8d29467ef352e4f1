"""What a person sees while the work runs: progress bars on long work and a closing table."""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
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

T = TypeVar("T")


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr with count, elapsed and remaining time; yields it and its task to advance.

    The description may be changed with `bar.update(task, description=...)`. Without a terminal
    (a log file, CI) one line at the end is all that is printed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar, bar.add_task(description, total=total)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` behind a progress bar."""
    with progress_bar(description, total) as (bar, task):
        for item in items:
            yield item
            bar.advance(task)


def quiet_libraries() -> None:
    """Keep libraries' own chatter off the screen; call it before they are imported.

    bitsandbytes recommends a package that would fetch code from a hub; transformers reads these
    variables when it is imported, and shows a bar of its own for each folder of weights; peft asks
    transformers for a name that is deprecated.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def closing_table(title: str, rows: dict[str, object], look_next: dict[str, str | Path]) -> None:
    """Print a stage's figures and where to look next: {what one sees there: command or path}."""
    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(
            name,
            f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
        )
    console.print(table)
    for what, where in look_next.items():
        console.print(f"  {what}: [bold]{where}[/bold]", highlight=False)
