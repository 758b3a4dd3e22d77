"""Messages between executors and launchers, and the way to the socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from air_executor.errors import ProtocolError
from air_executor.launcher import protocol
from air_executor.launcher.protocol import MAX_MESSAGE_BYTES, Decoder, connect, encode, reachable
from tests.unit.processes import changed_descriptors

MESSAGES: list[dict[str, Any]] = [
    {},
    {"type": "hello", "pid": 1},
    {"text": 'Grüße\n\0"\\ \u2028 \U0001f600', "none": None, "list": [1, 2.5, True, {"deep": []}]},
    {"long": "x" * 3000},
    {"type": "status"},
]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 1000, 10_000])
def test_messages_come_out_as_they_went_in_whatever_the_pieces(size: int) -> None:
    stream = b"".join(encode(message) for message in MESSAGES)
    decoder = Decoder()
    received = []
    for start in range(0, len(stream), size):
        received += list(decoder.feed(stream[start : start + size]))
    assert received == MESSAGES


def test_a_message_is_there_with_its_last_byte_and_not_before() -> None:
    data = encode({"type": "status"})
    decoder = Decoder()
    for index in range(len(data) - 1):
        assert list(decoder.feed(data[index : index + 1])) == []
    assert list(decoder.feed(data[-1:])) == [{"type": "status"}]
    assert list(decoder.feed(b"")) == []


def test_the_longest_message_passes_and_a_longer_one_is_refused() -> None:
    overhead = len(encode({"x": ""})) - 4
    longest = {"x": "x" * (MAX_MESSAGE_BYTES - overhead)}
    assert list(Decoder().feed(encode(longest))) == [longest]
    with pytest.raises(ProtocolError, match=f"{MAX_MESSAGE_BYTES + 1} bytes is longer than {MAX_MESSAGE_BYTES}"):
        encode({"x": longest["x"] + "x"})


def test_a_length_that_is_too_long_is_refused_at_once() -> None:
    with pytest.raises(ProtocolError, match="is announced"):
        list(Decoder().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")))


@pytest.mark.parametrize("body", [b"", b"{", b"{}x", b"\xff\xfe", b"{'a': 1}", b"\0" * 50])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        list(Decoder().feed(framed(body)))


@pytest.mark.parametrize("body", [b"null", b"1", b'"text"', b"[]", b"[{}]", b"true"])
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a JSON object"):
        list(Decoder().feed(framed(body)))


def test_messages_before_a_bad_one_still_come() -> None:
    received = []
    with pytest.raises(ProtocolError):
        received.extend(Decoder().feed(encode({"good": 1}) + framed(b"bad")))
    assert received == [{"good": 1}]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", "\ud800", 1 << 70, Path("x")])
def test_what_cannot_be_json_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        encode({"value": value})


def test_a_body_is_what_came_without_its_length() -> None:
    bodies = [b'{ "spaced" :1}', b"not JSON", b""]
    decoder = Decoder()
    assert list(decoder.bodies(b"".join(map(framed, bodies)))) == bodies
    assert protocol.parse(bodies[0]) == {"spaced": 1}
    assert protocol.framed(bodies[1]) == framed(bodies[1])


def folder_of_length(tmp_path: Path, length: int) -> Path:
    """Return a folder in which a socket ``s`` has a path of ``length`` bytes."""
    folder = tmp_path
    while (missing := length - len(os.fsencode(folder / "s"))) > 0:
        piece = min(missing - 1, 100)
        if missing - 1 - piece == 1:
            piece -= 1  # one byte would be left, too little for another folder
        assert piece > 0, "the path is longer already"
        folder = folder / ("d" * piece)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("length", [103, 104, 107, 108, 109, 300, 1000])
def test_a_socket_can_be_bound_and_connected_to_however_long_its_path(tmp_path: Path, length: int) -> None:
    if len(os.fsencode(tmp_path)) + 4 > length:
        length += 100
    path = folder_of_length(tmp_path, length) / "s"
    assert len(os.fsencode(path)) == length

    def connect_and_talk() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            with reachable(path) as address:
                listener.bind(address)
            listener.listen()
            assert path.is_socket()
            with connect(path) as connection:
                other, _ = listener.accept()
                with other:
                    connection.sendall(encode({"to": "there"}))
                    assert list(Decoder().feed(other.recv(1000))) == [{"to": "there"}]

    assert changed_descriptors(connect_and_talk) == []


def test_nobody_who_listens_is_said_so_and_leaves_no_descriptor(tmp_path: Path) -> None:
    def try_to_connect() -> None:
        with pytest.raises(FileNotFoundError):
            connect(tmp_path / "none")
        (tmp_path / "left").touch()
        with pytest.raises(ConnectionRefusedError):
            connect(tmp_path / "left")
        with pytest.raises(FileNotFoundError):
            connect(folder_of_length(tmp_path, 400) / "s")

    assert changed_descriptors(try_to_connect) == []


def test_a_message_that_could_not_be_read_is_never_made() -> None:
    nested: Any = {}
    for _ in range(2000):
        nested = {"x": nested}
    with pytest.raises(ProtocolError):
        protocol.encode(nested)
