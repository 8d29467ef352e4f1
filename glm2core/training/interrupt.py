"""On Ctrl-C and SIGTERM, finish the step before stopping."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_signals(notice: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a stop request; a second signal ends the process at once."""
    stop = StopRequest()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()
        notice(f"{signal.Signals(number).name}: finishing the step, then saving. Repeat the signal to stop at once.")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
