"""Tells the harness's last word on stdout from what the program printed before."""

from ..process import Capture

FRAME_OVERHEAD = 64  # the key and the braces around an output


class FramedStdout:
    """A sink: up to the marker it is the program's stdout, after it the frame.

    The marker is fresh for each workload and random, so nothing that a program prints is taken for
    it by accident. Both parts are bounded by `limit`; `frame` is None until the marker was seen.
    """

    def __init__(self, marker: bytes, limit: int) -> None:
        self.printed = Capture(limit)
        self.frame: bytearray | None = None
        self.frame_too_large = False
        self._marker = marker
        self._limit = limit + FRAME_OVERHEAD
        self._held = b""  # may be the beginning of the marker

    def write(self, data: bytes) -> None:
        if self.frame is None:
            data = self._held + data
            before, found, data = data.partition(self._marker)
            if not found:
                keep = min(len(before), len(self._marker) - 1)
                self._held = before[len(before) - keep :]
                self.printed.write(before[: len(before) - keep])
                return
            self._held = b""
            self.printed.write(before)
            self.frame = bytearray()
        room = self._limit - len(self.frame)
        self.frame_too_large = self.frame_too_large or len(data) > room
        self.frame += data[: max(0, room)]

    def close(self) -> None:
        """The stream has ended: what was held back was no marker."""
        self.printed.write(self._held)
        self._held = b""
