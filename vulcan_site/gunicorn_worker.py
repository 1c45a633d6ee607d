"""The gunicorn worker of the site: gunicorn's threads, without waiting for slow clients in them.

gunicorn's own worker gives a connection a thread before a byte has come, waits in it for ever for
the rest of a request and for a client that does not read, and closes connections in the loop that
serves all others, where a client can hold it for two seconds each time. Here

- a connection waits in that loop until the head of a request and the beginning of its body are
  there; only then a thread has something to do;
- a thread waits for a client as long as bytes come and go at a rate that a client can manage, and
  less long while other requests wait for a thread;
- a connection that is to be closed waits for its client in the loop.

It speaks plain HTTP/1 and nothing else: TLS and HTTP/2 end at the proxy in front.
"""

import errno
import math
import re
import resource
import selectors
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

from gunicorn import http, util
from gunicorn.http.errors import InvalidHeader, ParseException, UnsupportedTransferCoding
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

MAX_WAITING_BYTES = 32 * 1024  # of a head and the beginning of its body, before a thread has them
MAX_DROPPED_BYTES = 64 * 1024 * 1024  # of what a client goes on sending after its answer
MAX_UNREAD_BYTES = 64 * 1024  # of a body that the site did not read, for the connection to go on

BYTES_PER_S = 16 * 1024  # a client as fast as this is not slow
SLOW_S = 20.0  # how long a thread waits for a client beyond that
SLOW_UNDER_LOAD_S = 3.0  # the same while requests wait for a thread
POLL_INTERVAL_S = 0.5  # how often a thread that waits finds out about the load

# A bare line feed is an end as well: gunicorn's parser refuses it without reading on.
_END_OF_HEAD = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)

Result = TypeVar("Result")


class ClientSocket(socket.socket):
    """A connection whose client can make a thread wait for a bounded time only.

    `slow_s` is for how long the thread has waited, less the time that a client of BYTES_PER_S
    needs for what it has sent and received meanwhile; when it exceeds `patience_s()`, an operation
    that would have to wait raises ConnectionResetError.
    """

    slow_s = 0.0
    patience_s: Callable[[], float]

    @classmethod
    def take_over(cls, sock: socket.socket, patience_s: Callable[[], float]) -> Self:
        taken = cls(sock.family, sock.type, sock.proto, sock.detach())
        taken.patience_s = patience_s
        return taken

    def wait_no_longer(self) -> None:
        """Let operations fail that would have to wait."""
        self.slow_s = math.inf

    def receive_available(self, size: int) -> bytes | None:
        """Return what has come, b"" when nothing will come any more, None when nothing has yet."""
        self.setblocking(False)
        try:
            return super().recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._patiently(partial(super().recv, size, flags), len)

    def send(self, data: Any, flags: int = 0) -> int:
        return self._patiently(partial(super().send, data, flags), int)

    def sendall(self, data: Any, flags: int = 0) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.send(rest, flags) :]

    def _patiently(self, operation: Callable[[], Result], size: Callable[[Result], int]) -> Result:
        while True:
            timeout_s = POLL_INTERVAL_S if self.slow_s < self.patience_s() else 0.0
            if self.gettimeout() != timeout_s:
                self.settimeout(timeout_s)
            began = time.monotonic()
            try:
                result = operation()
            except TimeoutError:
                self.slow_s += time.monotonic() - began
            except BlockingIOError:
                raise ConnectionResetError(errno.ECONNRESET, "the client is too slow") from None
            else:
                waited_s = time.monotonic() - began
                self.slow_s = max(0.0, self.slow_s + waited_s - size(result) / BYTES_PER_S)
                return result


@dataclass(slots=True)
class _Waiting:
    """A connection that no thread has: it waits in the loop for its client."""

    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Incoming(_Waiting):
    """The beginning of a request."""

    received: bytearray = field(default_factory=bytearray)
    _searched: int = 0
    _needed: int | None = None

    def is_complete(self) -> bool:
        """Tell whether a thread can have it: the head, and MAX_WAITING_BYTES or all of the body.

        A client that expects to be asked for its body is not waited for.
        """
        if self._needed is None:
            end = _END_OF_HEAD.search(self.received, max(0, self._searched - 3))
            self._searched = len(self.received)
            if end is None:
                return False
            head = self.received[: end.end()]
            length = None if _EXPECT.search(head) else _CONTENT_LENGTH.search(head)
            self._needed = min(end.end() + int(length[1] if length else 0), MAX_WAITING_BYTES)
        return len(self.received) >= self._needed


@dataclass(slots=True)
class _Closing(_Waiting):
    """The end of a connection: the client has its last answer, and may not have read it yet."""

    dropped: int = 0


class GunicornWorker(ThreadWorker):  # type: ignore[misc]
    """Give threads to requests that are there, and wait for clients in the loop.

    `keepalive` is how many seconds a connection may wait in the loop; `worker_connections` is how
    many connections there are, of which the one that has waited the longest makes room.
    """

    worker_connections: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Half of the descriptors are for everything else; a worker that finds none ends.
        self.worker_connections = min(self.worker_connections, descriptors // 2)
        self._waiting: OrderedDict[TConn, _Waiting] = OrderedDict()  # the longest first

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl or "h2" in cfg.http_protocols or cfg.protocol != "http":
            raise RuntimeError(
                f"{cls.__name__} speaks plain HTTP/1: let a proxy end TLS and HTTP/2"
            )
        super().check_config(cfg, log)

    def accept(self, listener: Any) -> None:
        super().accept(listener)
        if self.nr_conns >= self.worker_connections and len(self._waiting) > 1:
            self._end(next(iter(self._waiting)))

    def enqueue_req(self, conn: TConn) -> None:
        """Wait for a request on a connection that is new, or goes on after an answer."""
        if conn.parser is None:
            conn.sock = ClientSocket.take_over(conn.sock, self._patience_s)
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.data_ready = True  # when it gets a thread
        incoming = _Incoming(received=bytearray(conn.parser.unreader.take_buffered()))
        if incoming.is_complete():
            self._serve(conn, incoming)
        else:
            self._wait(conn, incoming, self._receive)

    def finish_request(self, conn: TConn, future: Any) -> None:
        if not future.cancelled() and not future.exception() and future.result():
            self.enqueue_req(conn)
        else:
            self._half_close(conn)

    def murder_pending(self) -> None:
        """End the connections that have waited too long; gunicorn's loop calls it."""
        longest_s = self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER
        while self._waiting:
            conn, waiting = next(iter(self._waiting.items()))
            if time.monotonic() < waiting.since + longest_s:
                break
            self._end(conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        if isinstance(exc, UnsupportedTransferCoding):  # gunicorn would call it a 501
            exc = InvalidHeader("TRANSFER-ENCODING")
        super().handle_error(req, client, addr, exc)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """Return whether the connection goes on; a body that has not come whole ends it."""
        conn.sock.wait_no_longer()
        with suppress(OSError, ParseException):
            return keepalive and bool(conn.parser.finish_body(max_bytes=MAX_UNREAD_BYTES))
        return False

    def _patience_s(self) -> float:
        return SLOW_UNDER_LOAD_S if self.tpool._work_queue.qsize() else SLOW_S

    def _wait(
        self, conn: TConn, waiting: _Waiting, on_bytes: Callable[[TConn, Any], object]
    ) -> None:
        def on_readable(_: object) -> None:
            if self._waiting.get(conn) is waiting:  # not if an event before this one ended it
                on_bytes(conn, waiting)

        self._waiting[conn] = waiting
        self.poller.register(conn.sock, selectors.EVENT_READ, on_readable)

    def _receive(self, conn: TConn, incoming: _Incoming) -> None:
        """Take in what has come of a request."""
        data = conn.sock.receive_available(MAX_WAITING_BYTES - len(incoming.received))
        if data is None:
            return
        incoming.received += data
        if not data and not incoming.received:
            self._close(conn)
        elif not data or incoming.is_complete():
            self._serve(conn, incoming)
        elif len(incoming.received) >= MAX_WAITING_BYTES:
            self._stop_waiting(conn)
            self._answer(conn, 431, "Request Header Fields Too Large")
            self._half_close(conn)

    def _serve(self, conn: TConn, incoming: _Incoming) -> None:
        """Give a request to a thread, as soon as there is one."""
        self._stop_waiting(conn)
        conn.parser.unreader.unread(bytes(incoming.received))
        conn.sock.slow_s = 0.0
        super().enqueue_req(conn)

    def _half_close(self, conn: TConn) -> None:
        """Tell a client that its last answer is complete, and let it close the connection."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._wait(conn, _Closing(), self._drop)

    def _drop(self, conn: TConn, closing: _Closing) -> None:
        """Drop what a client sends after its answer, until it closes the connection."""
        data = conn.sock.receive_available(MAX_UNREAD_BYTES)
        if data is not None:
            closing.dropped += len(data)
            if not data or closing.dropped > MAX_DROPPED_BYTES:
                self._close(conn)

    def _end(self, conn: TConn) -> None:
        """End a connection that has waited too long, or has to make room."""
        waiting = self._waiting[conn]
        if isinstance(waiting, _Incoming) and waiting.received:
            self._answer(conn, 408, "Request Timeout")
        self._close(conn)

    def _answer(self, conn: TConn, status: int, reason: str) -> None:
        conn.sock.wait_no_longer()
        with suppress(OSError):
            util.write_error(conn.sock, status, reason, "")

    def _close(self, conn: TConn) -> None:
        self._stop_waiting(conn)
        self.nr_conns -= 1
        conn.close()

    def _stop_waiting(self, conn: TConn) -> None:
        if self._waiting.pop(conn, None) is not None:
            self.poller.unregister(conn.sock)
