"""Writes a stage's records to MLflow, either directly to a local file or, from a thread, to a server.

A stage never waits for the network, because records for a server go into a queue, and a thread sends them. After the
server's first failure, the remaining records, including the failed one, go into the project's own store.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from glm2core.tracking.address import patience
from glm2core.tracking.store import Point, Recorder, server_is_gone

Action = Callable[[Recorder], None]
Say = Callable[[Exception], None]
"""Called with the reason why something could not be recorded."""

_MOST_WAITING = 500  # actions; if more are waiting, the server is too slow
_POINTS_A_REQUEST = 1000
_SECONDS_BETWEEN_POINTS = 1.0
_SECONDS_FOR_OWN_STORE = 120.0  # the wait at the end of a stage; the store's lock may be held for up to a minute


class Writer(Protocol):
    """Takes a stage's records."""

    def do(self, action: Action) -> bool:
        """Do the action now or soon; return False if it has already failed."""

    def points(self, points: list[Point]) -> bool:
        """Write points of curves; return False if that has already failed, so that the caller may pass them again."""

    def finish(self) -> None:
        """Return once everything is written, or once it is clear that this is impossible."""


class DirectWriter:
    """Writes to a store that is a file; each record is written before the call returns."""

    def __init__(self, recorder: Recorder, say: Say) -> None:
        self._recorder, self._say = recorder, say
        for action in _first_actions(self):
            self.do(action)

    def do(self, action: Action) -> bool:
        try:
            action(self._recorder)
        except Exception as error:  # whatever fails in MLflow, its database or the disk, the stage must continue
            self._say(error)
            return False
        return True

    def points(self, points: list[Point]) -> bool:
        return self.do(lambda recorder: recorder.points(points))

    def finish(self) -> None:
        """Do nothing, because no record is waiting."""


def _first_actions(writer: Writer) -> list[Action]:
    """The first actions for a stage's run and row; measurements of the machine go through `writer`."""
    return [Recorder.complete_row, lambda recorder: recorder.watch_system(writer.points)]


class _Points:
    """Points for one request."""

    def __init__(self, points: list[Point]) -> None:
        self.gathered = list(points)

    def __call__(self, recorder: Recorder) -> None:
        recorder.points(self.gathered)


class ServerWriter:
    """Writes to a server: actions go into a queue, and a thread sends them.

    Args:
        open_server: opens the server's recorder; called in the thread.
        open_own: opens the recorder of the project's own store once the server is given up; called in a thread.
        say: called with the reason if a working server refuses a record, or the project's own store can't take it.
        say_gone: called once if the server is given up, with the reason.
    """

    def __init__(
        self, open_server: Callable[[], Recorder], open_own: Callable[[], Recorder], *, say: Say, say_gone: Say
    ) -> None:
        self._open_own = open_own
        self._say, self._say_gone = say, say_gone
        self._changed = threading.Condition()
        # The first actions are repeated in the project's own store, even if the server has already received them
        self._first = _first_actions(self)
        # An action is removed when it is done, so one on which the server failed is repeated in the project's own store
        self._waiting: deque[Action] = deque(self._first)
        self._sending: Action | None = None  # the first in the queue, once the thread has begun it
        self._recorder: Recorder | None = None
        self._given_up = False  # the server; a thread whose `own` differs from this must stop
        self._lost = False  # neither store can be written to
        self._finishing = False
        self._start(open_server)

    def do(self, action: Action) -> bool:
        with self._changed:
            if not self._lost:
                self._waiting.append(action)
                self._changed.notify_all()
            too_slow = len(self._waiting) > _MOST_WAITING and not self._given_up
        if too_slow:
            self._give_up(TimeoutError(f"it is {_MOST_WAITING} requests behind"))
        return True

    def points(self, points: list[Point]) -> bool:
        with self._changed:
            last = self._waiting[-1] if self._waiting else None
            if isinstance(last, _Points) and last is not self._sending and len(last.gathered) < _POINTS_A_REQUEST:
                last.gathered += points
                return True
        return self.do(_Points(points))

    def finish(self) -> None:
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._given_up or not self._waiting, timeout=patience())
            behind = 0 if self._given_up else len(self._waiting)
        if behind:
            late = f"{behind} requests are still waiting after {patience():g} s"
            self._give_up(TimeoutError(f"{late}; raise MLFLOW_HTTP_REQUEST_TIMEOUT to wait longer"))
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting, timeout=_SECONDS_FOR_OWN_STORE):
                self._say(TimeoutError("the project's own store could not be written to in time"))

    def _start(self, open_recorder: Callable[[], Recorder]) -> None:
        # The thread is a daemon, so that a hanging request can't keep the process alive
        threading.Thread(target=self._work, args=(open_recorder, self._given_up), daemon=True).start()

    def _work(self, open_recorder: Callable[[], Recorder], own: bool) -> None:
        """Do the waiting actions until the process ends or this thread must stop."""
        recorder: Recorder | None = None
        next_points = 0.0
        while (action := self._next(own, next_points)) is not None:
            try:
                if recorder is None:
                    recorder = open_recorder()
                    if not self._takes(recorder, own):
                        return
                action(recorder)
            except Exception as error:  # whatever fails in MLflow, its database or the disk, the stage must continue
                if not own and (recorder is None or server_is_gone(error)):
                    self._give_up(error)
                    return
                if not self._is_mine(own):
                    return
                self._say(error)
                if recorder is None:
                    self._lose()
                    return
            if isinstance(action, _Points):
                next_points = time.monotonic() + _SECONDS_BETWEEN_POINTS
            if not self._done(own):
                recorder.stop_watching()  # it may have started watching after the server was given up

    def _next(self, own: bool, next_points: float) -> Action | None:
        """The first waiting action, marked as begun; None once this thread must stop."""
        with self._changed:
            while own == self._given_up:
                pause = next_points - time.monotonic()
                alone = len(self._waiting) == 1 and isinstance(self._waiting[0], _Points)
                if not self._waiting:
                    self._changed.wait()
                elif alone and pause > 0 and not self._finishing:
                    self._changed.wait(pause)  # more points may join the same request
                else:
                    self._sending = self._waiting[0]
                    return self._sending
        return None

    def _is_mine(self, own: bool) -> bool:
        with self._changed:
            return own == self._given_up

    def _takes(self, recorder: Recorder, own: bool) -> bool:
        """Keep an opened recorder; False if the server was given up meanwhile."""
        with self._changed:
            if own != self._given_up:
                return False
            self._recorder = recorder
            return True

    def _done(self, own: bool) -> bool:
        """Remove the first action; False if it now belongs to another thread."""
        with self._changed:
            if own != self._given_up:
                return False
            self._waiting.popleft()
            self._sending = None
            self._changed.notify_all()
            return True

    def _give_up(self, error: Exception) -> None:
        """Give up the server: the waiting actions go into the project's own store."""
        with self._changed:
            if self._given_up:
                return
            self._given_up, self._sending = True, None
            if self._recorder is not None:
                self._recorder.stop_watching()
            begun = [action for action in self._first if action not in self._waiting]
            self._waiting.extendleft(reversed(begun))
            self._changed.notify_all()
            self._start(self._open_own)
        self._say_gone(error)

    def _lose(self) -> None:
        with self._changed:
            self._lost = True
            self._waiting.clear()
            self._changed.notify_all()
