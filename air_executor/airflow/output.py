"""Reading a task's output and its log messages in bounded memory and linear time.

Airflow's own reader keeps everything since the last newline, and searches all of it again with each piece. This one
yields the same lines, except where there is no newline. There it does as a terminal does: it shows the last state of a
progress bar, whose states overwrite each other with carriage returns, once a second. And it splits what is longer than
:data:`MAX_LINE_BYTES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from socket import socket
from typing import Any

#: A longer line is split, so that output without newlines takes bounded memory.
MAX_LINE_BYTES = 1 << 20

#: A line whose states overwrite each other is passed on unchanged if it is complete within this many seconds and at
#: most this many bytes long. After that, its last state is shown at this interval.
_PROGRESS_S = 1.0
_PROGRESS_BYTES = 1 << 16

#: Takes lines through ``send``, as with Airflow's reader.
Lines = Generator[None, "bytes | bytearray", None]


class _Text:
    """Splits what was printed into lines."""

    def __init__(self, send: Callable[[bytearray], None], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._line = bytearray()
        self._has_return = False
        self._began_s = 0.0
        self._is_progress = False
        """Overwritten states have been removed from the line."""
        self._shown = b""
        """The state of this line that was shown last."""

    def add(self, data: bytes, is_all: bool) -> None:
        """Add the next piece.

        :param is_all: there was nothing more to read, so the piece probably ends where a print ended.
        """
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._extend(part + b"\n")
            self.end()
        if rest:
            self._extend(rest)
            self._show_progress(is_all)
            while len(self._line) > MAX_LINE_BYTES:
                self._cut()

    def _extend(self, data: bytes) -> None:
        if not self._line:
            self._began_s = self._clock()
        self._line += data
        self._has_return = self._has_return or b"\r" in data

    def end(self) -> None:
        """Pass on the line as far as it has come."""
        if self._is_progress:
            state = self._line[self._start_of_state() :]
            if state.strip() and state.strip() != self._shown:
                self._send(state)
        elif self._line:
            while len(self._line) > MAX_LINE_BYTES + 1:
                self._cut()
            self._send(self._line)
        self._line = bytearray()
        self._has_return, self._is_progress, self._shown = False, False, b""

    def _start_of_state(self) -> int:
        """Return where the last state begins. A carriage return at the very end has not overwritten it yet."""
        return self._line.rfind(b"\r", 0, len(self._line.rstrip())) + 1

    def _show_progress(self, is_all: bool) -> None:
        if not self._has_return:
            return
        start = self._start_of_state()
        age_s = self._clock() - self._began_s
        if not start or not (self._is_progress or age_s >= _PROGRESS_S or len(self._line) > _PROGRESS_BYTES):
            return
        # When output comes fast, a piece may end in the middle of a state; the state before is whole.
        is_whole = is_all or self._line.endswith(b"\r")
        state = self._line[start:] if is_whole else self._line[:start].rstrip().rpartition(b"\r")[2]
        del self._line[:start]
        self._is_progress = True
        if age_s >= _PROGRESS_S and state.strip():
            self._began_s = self._clock()
            if state.strip() != self._shown:
                self._shown = bytes(state.strip())
                self._send(state)

    def _cut(self) -> None:
        """Pass on the first part of a line that is too long, without cutting a character or losing spaces."""
        end = MAX_LINE_BYTES
        while end > MAX_LINE_BYTES - 4 and self._line[end] & 0xC0 == 0x80:
            end -= 1
        end = len(self._line[:end].rstrip()) or end
        self._send(self._line[:end])
        del self._line[:end]


class _Messages:
    """Splits log messages, one line of JSON each, which have to stay whole however long they are."""

    def __init__(self, send: Callable[[bytearray], None]) -> None:
        self._send = send
        self._line = bytearray()

    def add(self, data: bytes, _is_all: bool) -> None:
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._line += part + b"\n"
            self.end()
        self._line += rest

    def end(self) -> None:
        if self._line:
            line, self._line = self._line, bytearray()
            self._send(line)


def make_reader(is_text: Callable[[Lines], bool], clock: Callable[[], float] = time.monotonic) -> Callable[..., Any]:
    """Return a function that replaces ``make_buffered_socket_reader`` in Airflow's supervisor.

    :param is_text: returns whether a generator takes printed text; otherwise it takes log messages.
    """

    def make_buffered_socket_reader(
        gen: Lines, on_close: Callable[[socket], None], buffer_size: int = 4096, *, data: bytes = b""
    ) -> tuple[Callable[[socket], bool], Callable[[socket], None]]:
        def send(line: bytearray) -> None:
            gen.send(line)

        lines = _Text(send, clock) if is_text(gen) else _Messages(send)
        read_buffer = bytearray(buffer_size)
        next(gen)
        with suppress(StopIteration):
            lines.add(data, True)

        def read(sock: socket) -> bool:
            size = sock.recv_into(read_buffer)
            try:
                if not size:
                    lines.end()
                    return False
                lines.add(bytes(read_buffer[:size]), size < buffer_size)
            except StopIteration:
                return False
            return True

        return read, on_close

    return make_buffered_socket_reader
