"""What a task prints becomes lines of its log: Airflow's, unless a line does not end."""

from __future__ import annotations

import random
import resource
import socket
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import pytest
from airflow.sdk.execution_time import supervisor as stock

from air_executor.airflow import output, supervision
from tests.unit.processes import result_of

MAX = output.MAX_LINE_BYTES


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Reader:
    """A reader, and the lines that it has handed over."""

    def __init__(self, *, text: bool = True, clock: Callable[[], float] = time.monotonic, data: bytes = b"") -> None:
        self.lines: list[bytes] = []
        self.socket, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        make = output.make_reader(lambda _: text, clock)
        self.read, _ = make(self._take(), on_close=lambda _: None, data=data)

    def _take(self) -> Generator[None, Any, None]:
        while True:
            self.lines.append(bytes((yield)))

    def feed(self, pieces: Iterable[bytes]) -> list[bytes]:
        """Let pieces come, and then the end; return the lines."""
        for piece in pieces:
            self.print(piece)
        self.writer.close()
        assert not self.read(self.socket)
        self.socket.close()
        return self.lines

    def print(self, piece: bytes) -> None:
        for start in range(0, len(piece), 1 << 14):
            part = piece[start : start + (1 << 14)]
            self.writer.sendall(part)
            for _ in range(0, len(part), 4096):
                assert self.read(self.socket)


def as_airflow(data: bytes) -> list[bytes]:
    """Return the lines that Airflow's own reader makes of it."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + [data.split(b"\n")[-1]] * (not data.endswith(b"\n"))


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    random.seed(seed)
    pieces = []
    while data:
        size = random.choice([1, 7, 300, 4096, 9000])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


ORDINARY = {
    "lines": b"one\ntwo \n\n  three\t\n",
    "no newline at the end": b"one\ntwo",
    "windows": b"one\r\ntwo\r\n\r\n",
    "a bar that ends": b"".join(b"\r%d%%" % n for n in range(101)) + b"\ndone\n",
    "not text": bytes(range(256)) * 20 + b"\n\xff\xfe\n",
    "characters": "é😀\n".encode() * 3000,
    "a long line": b"x" * (MAX - 1) + b"\n" + b"y" * 200_000 + b"\nz\n",
    "nothing": b"",
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("data", ORDINARY.values(), ids=list(ORDINARY))
def test_lines_are_those_of_airflow_however_they_come(data: bytes, seed: int) -> None:
    expected = as_airflow(data) if data else []
    assert Reader(clock=Clock()).feed(pieces_of(data, seed)) == expected
    assert Reader(text=False).feed(pieces_of(data, seed)) == expected


def test_what_came_before_the_reader_is_read_too() -> None:
    assert Reader(data=b"one\ntw").feed([b"o\n"]) == [b"one\n", b"two\n"]


@pytest.mark.parametrize("character", ["x", "é", "😀", "x "], ids=ascii)
def test_a_line_that_is_too_long_comes_in_parts_of_which_none_is_lost(character: str) -> None:
    data = (character * (3 * MAX // len(character.encode()) + 5)).encode() + b"\nnext\n"
    *parts, after = Reader().feed([data])
    assert after == b"next\n"
    assert b"".join(parts) == data.removesuffix(b"next\n")
    assert len(parts) in (3, 4)
    assert all(len(part) <= MAX + 1 for part in parts)
    for part in parts[:-1]:
        part.decode()  # no character is cut
        assert part == part.rstrip()  # Airflow drops spaces at the end of a line


def test_what_never_ends_a_line_is_seen_before_it_ends() -> None:
    reader = Reader()
    reader.print(b"." * (2 * MAX + 1))
    assert b"".join(reader.lines) == b"." * 2 * MAX


def test_log_messages_stay_whole_however_long_they_are() -> None:
    message = b'{"event": "' + b"x" * (5 * MAX) + b'"}\n'
    assert Reader(text=False).feed([message, b'{"event": "\\r"}\n']) == [message, b'{"event": "\\r"}\n']


@pytest.mark.parametrize("form", [b"\r%3d%% done", b"%3d%% done\r"])
def test_a_bar_is_shown_once_a_second_and_in_its_last_state(form: bytes) -> None:
    clock = Clock()
    reader = Reader(clock=clock)
    for percent in range(100):
        reader.print(form % percent)
        clock.now_s += 0.1
    shown = [line.strip() for line in reader.lines]
    assert len(shown) == 9
    assert shown == sorted(shown)
    assert all(line.endswith(b"% done") for line in shown)
    assert [line.strip() for line in reader.feed([form % 100, b"\n", b"next\n"])[9:]] == [b"100% done", b"next"]


def test_a_state_that_was_shown_is_not_shown_again_at_the_end() -> None:
    clock = Clock()
    reader = Reader(clock=clock)
    reader.print(b"\r1%")
    clock.now_s = 5
    reader.print(b"\r2%")
    assert reader.feed([b"\r\n"]) == [b"2%"]


def test_a_line_after_a_bar_is_as_ever() -> None:
    clock = Clock()
    reader = Reader(clock=clock)
    reader.print(b"\r1%")
    clock.now_s = 5
    reader.print(b"\r2%")
    assert reader.feed([b"\r3% and more\nnext\r\n\ra\rb\n"]) == [b"2%", b"3% and more\n", b"next\r\n", b"\ra\rb\n"]


def test_states_of_a_flood_are_shown_whole() -> None:
    clock = Clock()
    reader = Reader(clock=clock)
    states = [b"%05d" % number + b"x" * 9_995 for number in range(100)]
    for state in states:
        reader.print(b"\r" + state)
        clock.now_s += 0.5
    reader.feed([])
    assert set(reader.lines) <= set(states)
    assert reader.lines[-1] == states[-1]
    assert 40 < len(reader.lines) < 60


def test_a_flood_without_newlines_costs_little_time_and_no_memory() -> None:
    def run() -> list[float]:
        reader = Reader()
        reader.print(b"\rstart")
        before, begin_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        state = b"\r" + b"x" * 10_000
        for _ in range(3000):
            reader.print(state)
        used_s = time.process_time() - begin_s
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        lines = reader.feed([b"\rthe end"])
        assert lines[-1].strip() == b"the end"
        return [used_s, grown, len(lines)]

    used_s, grown_kb, _ = result_of(run)
    assert used_s < 5  # CPU time; that of Airflow's own reader grows with the square of the text, and is minutes
    assert grown_kb < 4096


def test_airflow_reads_what_tasks_print_so_and_messages_whole() -> None:
    assert supervision.AirSupervisor.__mro__  # its module has put the reader in its place

    class Log:
        lines: list[str] = []

        def log(self, _level: int, line: str, **_: Any) -> None:
            self.lines.append(line)

    ours, theirs = socket.socketpair()
    read, _ = stock.make_buffered_socket_reader(
        stock.forward_to_log((Log(),), logger="task.stdout", level=20), on_close=lambda _: None
    )
    theirs.sendall(b"x" * 4096)
    for _ in range(2 * MAX // 4096):
        theirs.sendall(b"x" * 4096)
        assert read(ours)
    assert len(Log.lines) == 1
    theirs.close()
    while read(ours):
        pass
    assert "".join(Log.lines) == "x" * (2 * MAX + 4096)
    ours.close()
