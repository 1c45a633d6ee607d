"""Separate the harness's result frame on stdout from what the program prints around it."""

import re
from collections.abc import Callable

from ...sandbox.streams import Capture

LENGTH_DIGITS = 8
LENGTH = re.compile(rb"[0-9a-f]{8}")
FRAME_OVERHEAD = 64  # the key and the braces around an output
MAX_ERROR_CHARS = 4000  # the limit of `head.js`; JSON may need six bytes for each


def max_frame_bytes(limit: int) -> int:
    """Return the size of the largest frame: an output of `limit` bytes, or an error's text."""
    return max(limit, 6 * MAX_ERROR_CHARS) + FRAME_OVERHEAD


class FramedStdout:
    """Sink that takes the frame described in `head.js` out of the program's stdout.

    The marker is random and new for each workload, so no output of a program matches it by
    accident. `limit` bounds the frame and the captured stdout in bytes.
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
        """Return whether the marker has been read."""
        return self._frame is not None

    @property
    def frame(self) -> bytes | None:
        """Return the JSON document once it is complete, else None."""
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
        """End the stream: bytes held back as a possible marker were ordinary output."""
        if self._frame is None:
            self.capture.write(self._pending)
        self._pending = b""


def _overlap(data: bytes, marker: bytes) -> int:
    """Return how many bytes at the end of `data` may be the beginning of the marker."""
    longest = min(len(data), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(marker[:n])), 0)


def _length(digits: bytes) -> int:
    """Return the frame's length; 0 for non-digits, from user code that found the marker."""
    return int(digits, 16) if LENGTH.fullmatch(digits) else 0
