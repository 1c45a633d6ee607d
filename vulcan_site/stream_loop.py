"""Send response streams from one thread, so that thousands of readers cost no threads."""

import logging
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from django.db import DatabaseError, InterfaceError, close_old_connections, connections

from backends_app.utils.database import release_connection

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1
RETRY_S = 1.0  # while the database is unavailable
SLOW_S = 20.0  # how long a reader may receive nothing of what there is
MAX_POLLS = 8  # of a stream in one round, so that one with much to send does not delay the others
MAX_RECEIVED_BYTES = 64 * 1024  # that a client may send while it reads


class Body(Protocol):
    """A response body that is produced without waiting."""

    def poll(self) -> bytes | None:
        """Return what can be sent now, b"" if there is nothing, or None after the end."""

    def close(self) -> None: ...


class Client(Protocol):
    """A connection to a reader, used without waiting."""

    def fileno(self) -> int: ...

    def send_available(self, data: bytes) -> int:
        """Return how many bytes were sent, 0 if none can be now; raise OSError at the end."""

    def receive_available(self, size: int) -> bytes | None:
        """Return the bytes available, None if there are none, b"" at the end or on an error."""


@dataclass(slots=True, eq=False)
class _Stream:
    client: Client
    body: Body
    on_end: Callable[[], object]
    unsent: bytes = b""
    progress_at: float = field(default_factory=time.monotonic)
    received: int = 0


class StreamLoop:
    """Sends streams until they end, their clients disconnect or are too slow."""

    def __init__(self) -> None:
        self._new: SimpleQueue[_Stream] = SimpleQueue()
        self._streams: dict[_Stream, None] = {}  # in order
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add(self, client: Client, body: Body, on_end: Callable[[], object]) -> None:
        """Send `body`, close it, and call `on_end` in the loop's thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vulcan-streams", daemon=True)
            self._thread.start()
        self._new.put(_Stream(client, body, on_end))

    def stop(self) -> None:
        """End all streams, now and in the future: the server shuts down."""
        self._stopping = True

    def _run(self) -> None:
        while True:
            if not self._streams:
                connections.close_all()
                self._register(self._new.get())
            pause_s = POLL_INTERVAL_S
            try:
                self._poll_all()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("streams cannot be continued: %s", error)
                pause_s = RETRY_S
            close_old_connections()
            release_connection()
            self._handle_events(time.monotonic() + pause_s)

    def _register(self, stream: _Stream) -> None:
        self._streams[stream] = None
        try:
            self._selector.register(stream.client, selectors.EVENT_READ, stream)
        except (OSError, ValueError):
            self._end(stream)

    def _poll_all(self) -> None:
        while True:
            try:
                self._register(self._new.get_nowait())
            except Empty:
                break
        for stream in list(self._streams):
            if self._stopping:
                self._end(stream)
            elif stream.unsent:
                if time.monotonic() > stream.progress_at + SLOW_S:
                    self._end(stream)
            else:
                self._advance(stream)

    def _handle_events(self, until: float) -> None:
        """Continue streams whose clients became ready, and notice clients that disconnect."""
        while (left_s := until - time.monotonic()) > 0 and self._streams:
            for key, events in self._selector.select(left_s):
                stream: _Stream = key.data
                if stream in self._streams and events & selectors.EVENT_READ:
                    self._receive(stream)
                if stream in self._streams and events & selectors.EVENT_WRITE:
                    self._send(stream)

    def _receive(self, stream: _Stream) -> None:
        data = stream.client.receive_available(MAX_RECEIVED_BYTES)
        if data is None:
            return
        stream.received += len(data)
        if not data or stream.received > MAX_RECEIVED_BYTES:
            self._end(stream)

    def _advance(self, stream: _Stream) -> None:
        """Send what the body has, until the client has to catch up."""
        for _ in range(MAX_POLLS):
            try:
                data = stream.body.poll()
            except (DatabaseError, InterfaceError):
                raise
            except Exception:
                logger.exception("a stream has a bug")
                data = None
            if data is None:
                self._end(stream)
                return
            if not data:
                return
            stream.unsent, stream.progress_at = data, time.monotonic()
            self._send(stream)
            if stream.unsent or stream not in self._streams:
                return

    def _send(self, stream: _Stream) -> None:
        try:
            sent = stream.client.send_available(stream.unsent)
        except OSError:
            self._end(stream)
            return
        if sent:
            stream.unsent, stream.progress_at = stream.unsent[sent:], time.monotonic()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.unsent else 0)
        if self._selector.get_key(stream.client).events != events:
            self._selector.modify(stream.client, events, stream)

    def _end(self, stream: _Stream) -> None:
        del self._streams[stream]
        for step in (
            lambda: self._selector.unregister(stream.client),
            stream.body.close,
            stream.on_end,
        ):
            try:
                step()
            except (KeyError, ValueError, OSError):
                pass  # never registered, or closed
            except Exception:
                logger.exception("a stream could not be closed")
