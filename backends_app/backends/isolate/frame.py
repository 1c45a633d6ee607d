"""Tells the harness's last word on stdout from what the program printed before and after it."""

import re
from collections.abc import Callable

from ...confinement.streams import Capture

LENGTH_DIGITS = 8
LENGTH = re.compile(rb"[0-9a-f]{8}")
FRAME_OVERHEAD = 64  # the key and the braces around an output
MAX_ERROR_CHARS = 4000  # as many as `head.js` takes; JSON may need six bytes for each


def max_frame_bytes(limit: int) -> int:
    """A frame with an output of `limit` bytes, or with the words of an error."""
    return max(limit, 6 * MAX_ERROR_CHARS) + FRAME_OVERHEAD


class FramedStdout:
    """A sink: everything is the program's stdout but the frame, as `head.js` describes it.

    The marker is fresh for each workload and random, so nothing that a program prints is taken for
    it by accident. Both parts are bounded by `limit`.
    """

    def __init__(
        self, marker: bytes, limit: int, on_output: Callable[[bytes], None] | None = None
    ) -> None:
        self.capture = Capture(limit, on_output)
        self.frame_too_large = False
        self._marker = marker
        self._limit = max_frame_bytes(limit)
        self._pending = b""  # may be the beginning of the marker, or of the length
        self._frame: bytearray | None = None
        self._missing: int | None = None  # bytes of the frame, when its length is known

    @property
    def has_frame(self) -> bool:
        """Has the marker been seen?"""
        return self._frame is not None

    @property
    def frame(self) -> bytes | None:
        """The document, when all of it is there."""
        return bytes(self._frame or b"") if self._missing == 0 else None

    def write(self, data: bytes) -> None:
        if self._frame is None:
            data = self._pending + data
            before, found, data = data.partition(self._marker)
            if not found:
                keep = _overlap(before, self._marker)
                self._pending = before[len(before) - keep :]
                self.capture.write(before[: len(before) - keep])
                return
            self._pending = b""
            self.capture.write(before)
            self._frame = bytearray()
        if self._missing is None:
            data = self._pending + data
            if len(data) < LENGTH_DIGITS:
                self._pending = data
                return
            self._pending = b""
            self._missing = _length(data[:LENGTH_DIGITS])
            self.frame_too_large = self._missing > self._limit
            data = data[LENGTH_DIGITS:]
        mine = data[: self._missing]
        self._missing -= len(mine)
        self._frame += mine[: max(0, self._limit - len(self._frame))]
        self.capture.write(data[len(mine) :])

    def close(self) -> None:
        """The stream has ended: what was held back was no marker."""
        if self._frame is None:
            self.capture.write(self._pending)
        self._pending = b""


def _overlap(data: bytes, marker: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of the marker."""
    longest = min(len(data), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(marker[:n])), 0)


def _length(digits: bytes) -> int:
    """Anything but digits was written by user code that found out the marker."""
    return int(digits, 16) if LENGTH.fullmatch(digits) else 0
