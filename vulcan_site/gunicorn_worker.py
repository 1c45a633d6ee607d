"""A gunicorn thread worker whose threads do not wait for slow clients.

gunicorn's own gthread worker assigns a thread to a connection before the first byte arrives, waits
there without limit for the rest of a request and for clients that do not read, and closes
connections in the event loop, where each client can block it for two seconds. In this worker

- a connection waits in the event loop until the head of a request and the beginning of its body
  have arrived; only then it gets a thread;
- a thread waits for a client while bytes flow at a reasonable rate, and less patiently while other
  requests wait for a thread;
- a closing connection waits for its client in the event loop;
- a response that can be polled, such as a log's stream, gives its thread back and is sent by one
  thread for all of them (`stream_loop`).

It supports plain HTTP/1 only: the proxy in front terminates TLS and HTTP/2.
"""

import errno
import math
import re
import resource
import selectors
import socket
import threading
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

from .stream_loop import Body, StreamLoop

MAX_WAITING_BYTES = 32 * 1024  # of a request, buffered before it gets a thread
MAX_DROPPED_BYTES = 64 * 1024 * 1024  # that a client may send after its last response
MAX_UNREAD_BYTES = 64 * 1024  # of an unread body, up to which the connection is kept alive

BYTES_PER_S = 16 * 1024  # a client this fast is not slow
SLOW_S = 20.0  # how long a thread waits for a client beyond that
SLOW_UNDER_LOAD_S = 3.0  # the same while requests wait for a thread
POLL_INTERVAL_S = 0.5  # how often a waiting thread checks the load

# A bare line feed ends the head, too: gunicorn's parser rejects it without reading on.
_END_OF_HEAD = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)

Result = TypeVar("Result")


class ClientSocket(socket.socket):
    """A client connection that bounds how long a thread waits for its client.

    `slow_s` is the time waited so far, minus the time that a client of BYTES_PER_S needs for the
    bytes transferred meanwhile. Once it exceeds `patience_s()`, an operation that would block
    raises ConnectionResetError.
    """

    slow_s = 0.0
    patience_s: Callable[[], float]

    @classmethod
    def take_over(cls, sock: socket.socket, patience_s: Callable[[], float]) -> Self:
        """Return a ClientSocket that owns the descriptor of `sock`."""
        client = cls(sock.family, sock.type, sock.proto, sock.detach())
        client.patience_s = patience_s
        return client

    def wait_no_longer(self) -> None:
        """Make every operation that would block fail."""
        self.slow_s = math.inf

    def receive_available(self, size: int) -> bytes | None:
        """Return the bytes available, None if there are none yet, b"" at the end or on an error."""
        self.setblocking(False)
        try:
            return super().recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send_available(self, data: bytes) -> int:
        """Return how many bytes were sent, 0 if none can be now; raise OSError at the end."""
        self.setblocking(False)
        try:
            return super().send(data)
        except BlockingIOError:
            return 0

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
class _IdleConnection:
    """A connection without a thread, which waits in the event loop for its client."""

    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Incoming(_IdleConnection):
    """A connection on which a request is arriving."""

    received: bytearray = field(default_factory=bytearray)
    _searched: int = 0
    _needed: int | None = None

    def is_complete(self) -> bool:
        """Return whether it can get a thread: head plus body, or the first MAX_WAITING_BYTES.

        The body of a request with an Expect header is not waited for: its client waits for 100.
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
class _Closing(_IdleConnection):
    """A closing connection: its client may still be reading the last response."""

    dropped: int = 0


class GunicornWorker(ThreadWorker):  # type: ignore[misc]
    """A thread worker that assigns threads to complete requests and waits in the event loop.

    A connection may wait in the loop for `keepalive` seconds. At `worker_connections` connections,
    the one that has waited longest is closed to make room.
    """

    worker_connections: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Keep half of the descriptors for everything else: a worker without any would exit.
        self.worker_connections = min(self.worker_connections, descriptors // 2)
        self._waiting: OrderedDict[TConn, _IdleConnection] = OrderedDict()  # longest first
        self._streams = StreamLoop()
        self._streaming: dict[TConn, Body] = {}  # until their threads have finished
        self._thread = threading.local()  # `conn`: the connection that a thread serves

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl or "h2" in cfg.http_protocols or cfg.protocol != "http":
            raise RuntimeError(
                f"{cls.__name__} supports plain HTTP/1 only: terminate TLS and HTTP/2 at a proxy"
            )
        super().check_config(cfg, log)

    def accept(self, listener: Any) -> None:
        super().accept(listener)
        if self.nr_conns >= self.worker_connections and len(self._waiting) > 1:
            self._end(next(iter(self._waiting)))

    def enqueue_req(self, conn: TConn) -> None:
        """Wait for a request on a new or a kept-alive connection."""
        if conn.parser is None:
            conn.sock = ClientSocket.take_over(conn.sock, self._patience_s)
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.data_ready = True  # by the time it gets a thread
        incoming = _Incoming(received=bytearray(conn.parser.unreader.take_buffered()))
        if incoming.is_complete():
            self._serve(conn, incoming)
        else:
            self._wait(conn, incoming, self._receive)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi: Callable[[Any, Any], Any] = partial(self._call, self.wsgi)

    def handle(self, conn: TConn) -> Any:
        self._thread.conn = conn
        return super().handle(conn)

    def _call(self, application: Any, environ: Any, start_response: Any) -> Any:
        """Call the application; keep a body that can be polled for the stream loop.

        It ends with its connection, so it has no framing. A HEAD request gets no body at all.
        """
        body = application(environ, start_response)
        if not hasattr(body, "poll"):
            return body
        if environ["REQUEST_METHOD"] == "HEAD":
            body.close()
            return ()
        response = start_response.__self__
        response.force_close()
        response.chunked = False
        self._streaming[self._thread.conn] = body
        return ()

    def finish_request(self, conn: TConn, future: Any) -> None:
        if body := self._streaming.pop(conn, None):
            on_end = partial(self.method_queue.defer, self._half_close, conn)
            self._streams.add(conn.sock, body, on_end)
        elif not future.cancelled() and not future.exception() and future.result():
            self.enqueue_req(conn)
        else:
            self._half_close(conn)

    def murder_pending(self) -> None:
        """Close the connections that have waited too long; called by gunicorn's loop."""
        if not self.alive:
            self._streams.stop()
        longest_s = self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER
        while self._waiting:
            conn, waiting = next(iter(self._waiting.items()))
            if time.monotonic() < waiting.since + longest_s:
                break
            self._end(conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        if isinstance(exc, UnsupportedTransferCoding):  # gunicorn would answer 501
            exc = InvalidHeader("TRANSFER-ENCODING")
        super().handle_error(req, client, addr, exc)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """Return whether to keep the connection alive; not if its body is incomplete."""
        conn.sock.wait_no_longer()
        with suppress(OSError, ParseException):
            return keepalive and bool(conn.parser.finish_body(max_bytes=MAX_UNREAD_BYTES))
        return False

    def _patience_s(self) -> float:
        return SLOW_UNDER_LOAD_S if self.tpool._work_queue.qsize() else SLOW_S

    def _wait(
        self, conn: TConn, waiting: _IdleConnection, on_bytes: Callable[[TConn, Any], object]
    ) -> None:
        def on_readable(_: object) -> None:
            if self._waiting.get(conn) is waiting:  # an earlier event may have closed it
                on_bytes(conn, waiting)

        self._waiting[conn] = waiting
        self.poller.register(conn.sock, selectors.EVENT_READ, on_readable)

    def _receive(self, conn: TConn, incoming: _Incoming) -> None:
        """Read the available bytes of a request."""
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
        """Queue a request for a thread."""
        self._stop_waiting(conn)
        conn.parser.unreader.unread(bytes(incoming.received))
        conn.sock.slow_s = 0.0
        super().enqueue_req(conn)

    def _half_close(self, conn: TConn) -> None:
        """Shut down the sending side, and wait for the client to close the connection."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            self._wait(conn, _Closing(), self._drop)

    def _drop(self, conn: TConn, closing: _Closing) -> None:
        """Discard what a client sends after its last response, until it closes the connection."""
        data = conn.sock.receive_available(MAX_UNREAD_BYTES)
        if data is not None:
            closing.dropped += len(data)
            if not data or closing.dropped > MAX_DROPPED_BYTES:
                self._close(conn)

    def _end(self, conn: TConn) -> None:
        """Close a connection that has waited too long or must make room; 408 if it sent bytes."""
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
