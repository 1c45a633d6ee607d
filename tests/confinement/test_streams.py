"""What is kept of a stream that may be of any length."""

from hypothesis import given
from hypothesis import strategies as st

from backends_app.confinement.streams import Capture


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
        head, cut, tail = capture.text().partition(f"\n… {len(whole) - 2 * half:,} bytes cut …\n")
        assert cut
        assert head == whole[:half].decode(errors="replace")
        assert tail == whole[-half:].decode(errors="replace")
