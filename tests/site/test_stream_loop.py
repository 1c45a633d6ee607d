"""The stream loop: many streams in one thread, none of which can delay or end another."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.db import OperationalError

from tests.support.programs import PATIENCE_S, wait_until
from vulcan_site import stream_loop
from vulcan_site.gunicorn_worker import ClientSocket
from vulcan_site.stream_loop import StreamLoop


class Pieces:
    """A body whose pieces are given: b"" when there is nothing yet, an exception to raise it."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = iter(pieces)
        self.closed = threading.Event()

    def poll(self) -> bytes | None:
        piece = next(self._pieces, None)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed.set()


class Endless(Pieces):
    """A body that always has more, or never has anything."""

    def __init__(self, piece: bytes) -> None:
        super().__init__()
        self._piece = piece

    def poll(self) -> bytes:
        return self._piece


class Reader:
    """The two ends of a connection; the loop has one of them."""

    def __init__(self, loop: StreamLoop, body: Pieces) -> None:
        self.socket, server = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        self.body, self.ended = body, threading.Event()
        self._server = ClientSocket.take_over(server, lambda: 0.0)
        loop.add(self._server, body, self._end)

    def _end(self) -> None:
        self._server.close()
        self.ended.set()

    def received(self) -> bytes:
        return b"".join(iter(lambda: self.socket.recv(65536), b""))

    def is_over(self) -> bool:
        return self.body.closed.wait(PATIENCE_S) and self.ended.wait(PATIENCE_S)


@pytest.fixture
def loop() -> Iterator[StreamLoop]:
    loop = StreamLoop()
    yield loop
    loop.stop()


@pytest.fixture
def read(loop: StreamLoop) -> Iterator[Callable[[Pieces], Reader]]:
    """Return a function that connects a reader of a body; all end with the test."""
    readers: list[Reader] = []

    def connect(body: Pieces) -> Reader:
        readers.append(Reader(loop, body))
        return readers[-1]

    yield connect
    for reader in readers:
        reader.socket.close()
    assert all(reader.is_over() for reader in readers)


def test_pieces_are_sent_in_order_and_the_end_closes_the_body(read):
    reader = read(Pieces(b"a", b"", b"b" * 1_000_000, b"", b"", b"c"))
    assert reader.received() == b"a" + b"b" * 1_000_000 + b"c"
    assert reader.is_over()


def test_two_hundred_streams_take_one_thread(read):
    before = threading.active_count()
    readers = [read(Endless(b"")) for _ in range(200)]
    last = read(Pieces(b"x"))
    assert last.received() == b"x"
    assert threading.active_count() == before + 1
    for reader in readers:
        reader.socket.close()
    assert all(reader.is_over() for reader in readers)


def test_a_client_that_disconnects_ends_its_stream(read):
    reader, other = read(Endless(b"")), read(Pieces(*[b""] * 20, b"x"))
    reader.socket.close()
    assert reader.is_over()
    assert other.received() == b"x"


def test_a_client_that_sends_without_end_loses_its_stream(read):
    reader = read(Endless(b""))
    reader.socket.setblocking(False)
    while not reader.ended.wait(0.01):
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            reader.socket.send(b"x" * 65536)
    assert reader.is_over()


def test_a_reader_that_reads_nothing_is_ended_and_delays_nobody(read, monkeypatch):
    monkeypatch.setattr(stream_loop, "SLOW_S", 0.3)
    slow = read(Endless(b"x" * 65536))
    other = read(Pieces(*[b"y", b""] * 5))
    assert other.received() == b"y" * 5
    assert slow.is_over()


def test_a_slow_reader_keeps_its_stream_while_it_reads(read, monkeypatch):
    monkeypatch.setattr(stream_loop, "SLOW_S", 5.0)
    reader = read(Pieces(b"x" * 4_000_000))
    assert len(reader.received()) == 4_000_000


def test_a_bug_in_a_body_ends_only_its_stream(read, caplog):
    broken = read(Pieces(b"a", ZeroDivisionError()))
    other = read(Pieces(*[b""] * 5, b"x"))
    assert broken.received() == b"a"
    assert other.received() == b"x"
    assert "a stream has a bug" in caplog.text


def test_streams_go_on_after_the_database_was_unavailable(read, caplog, monkeypatch):
    monkeypatch.setattr(stream_loop, "RETRY_S", 0.01)
    reader = read(Pieces(b"a", OperationalError("gone"), OperationalError("gone"), b"b"))
    assert reader.received() == b"ab"
    assert "streams cannot be continued: gone" in caplog.text


def test_stop_ends_all_streams_and_those_that_come_later(loop: StreamLoop, read):
    readers = [read(Endless(b"")) for _ in range(3)]
    loop.stop()
    readers.append(read(Endless(b"")))
    assert all(reader.is_over() for reader in readers)


def test_a_connection_that_is_already_closed_closes_the_body(loop: StreamLoop):
    ours, theirs = socket.socketpair()
    client = ClientSocket.take_over(ours, lambda: 0.0)
    client.close()
    theirs.close()
    body, ended = Pieces(b"x"), threading.Event()
    loop.add(client, body, ended.set)
    assert wait_until(ended.is_set)
    assert body.closed.is_set()
