"""Capture of streams of any length in bounded memory."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.sandbox.streams import Capture
from backends_app.workloads import LOSSY, UTF8


@given(st.lists(st.binary(max_size=50)), st.integers(2, 60))
def test_capture_keeps_head_and_tail_in_bounded_space(chunks, limit):
    capture = Capture(limit)
    for chunk in chunks:
        capture.write(chunk)
    whole, half = b"".join(chunks), limit // 2
    assert capture.truncated is (len(whole) > 2 * half)
    if not capture.truncated:
        assert capture.text() == whole.decode(errors="replace")
    else:
        kept = kept_of(capture.text(), len(whole))
        assert 2 * half - 6 <= kept <= 2 * half
        assert len(capture.text()) <= 2 * half + 40


def kept_of(text: str, length: int) -> int:
    """Return how many bytes were kept, computed from the line that replaces the rest."""
    found = re.search(r"\n… ([\d,]+) bytes cut …\n", text)
    assert found
    return length - int(found[1].replace(",", ""))


@given(st.text(alphabet="aä€😀", max_size=200), st.integers(8, 60), st.integers(1, 7))
def test_characters_are_never_split(text, limit, piece):
    capture = Capture(limit)
    data = text.encode()
    for at in range(0, len(data), piece):
        capture.write(data[at : at + piece])
    shown = capture.text()
    assert "\ufffd" not in shown
    assert capture.encoding == UTF8
    if capture.truncated:
        head, _, tail = re.split(r"\n… ([\d,]+) bytes cut …\n", shown)
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(f"{head}{tail}".encode()) == kept_of(shown, len(data))


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", UTF8),
        ("ä\ufffd".encode(), UTF8),
        (b"\xff", LOSSY),
        (b"a\xc3", LOSSY),
        (b"\xed\xa0\x80", LOSSY),
        (b"x" * 50 + b"\xff" + b"x" * 49, LOSSY),
        (("€" * 90).encode(), UTF8),
    ],
)
def test_bytes_that_are_not_utf8_set_the_encoding(data, encoding):
    capture = Capture(100)
    capture.write(data)
    assert capture.encoding == encoding
