"""Trials of packages that tasks import, to find out whether the next launcher may import them ahead."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from air_executor.launcher.server.chores import Chores

if TYPE_CHECKING:
    from air_executor.launcher.preload.preloader import Preloader  # not for launchers that import nothing ahead

#: An answer has at most this many bytes.
_ANSWER_BYTES = 1 << 16


class Trials:
    """Tries one package at a time, in a process that is thrown away."""

    def __init__(
        self, preloader: Preloader, chores: Chores, selector: selectors.BaseSelector, found: Callable[[], None]
    ) -> None:
        """Begin without a trial.

        :param found: called when a launcher should import something that this one has not.
        """
        self._preloader = preloader
        self._chores = chores
        self._selector = selector
        self._found = found
        self._is_on = False

    def take_note(self, run_id: str) -> None:
        """Take note of what the task of a run that has ended has imported."""
        self._preloader.take_note(run_id)

    def begin_next(self) -> None:
        """Try the next package, if there is one and no trial is on."""
        if self._is_on or (package := self._preloader.candidate()) is None:
            return
        ours, theirs = socket.socketpair()

        def work() -> None:
            os.setsid()
            ours.close()
            self._preloader.try_here(package, theirs)

        with theirs:
            try:
                self._chores.begin(f"the trial of {package}", work)
            except OSError:
                ours.close()
                return
        self._is_on = True
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._end(package, ours))

    def _end(self, package: str, answer: socket.socket) -> None:
        self._selector.unregister(answer)
        with answer:
            data = answer.recv(_ANSWER_BYTES)
        self._is_on = False
        if self._preloader.judge(package, data):
            self._found()
