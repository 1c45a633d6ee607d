"""Where bytes may be cut so that no character is cut in two."""

import codecs

MAX_BYTES = 4  # of one character
_decoder = codecs.getincrementaldecoder("utf-8")


def whole_end(data: bytes) -> int:
    """Return how many bytes there are without a character at the end that is only begun."""
    last = data[-MAX_BYTES:]
    decoder = _decoder("replace")
    decoder.decode(last)
    begun, _ = decoder.getstate()
    return len(data) - len(begun)


def whole_start(data: bytes) -> int:
    """Return how many bytes at the start belong to a character that began before them."""
    first = data[: MAX_BYTES - 1]
    return next((at for at, byte in enumerate(first) if byte & 0xC0 != 0x80), len(first))
