"""Find where UTF-8 bytes can be cut without splitting a character."""

import codecs

MAX_BYTES = 4  # of one character
_decoder = codecs.getincrementaldecoder("utf-8")


def whole_end(data: bytes) -> int:
    """Return the length of the data without an incomplete character at its end."""
    last = data[-MAX_BYTES:]
    decoder = _decoder("replace")
    decoder.decode(last)
    incomplete, _ = decoder.getstate()
    return len(data) - len(incomplete)


def whole_start(data: bytes) -> int:
    """Return the number of bytes at the start that continue an earlier character."""
    first = data[: MAX_BYTES - 1]
    return next((at for at, byte in enumerate(first) if byte & 0xC0 != 0x80), len(first))
