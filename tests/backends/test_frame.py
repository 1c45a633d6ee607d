"""The harness's last word is told from what the program printed, however the stream is cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backends_app.backends.isolate.frame import FramedStdout


@given(
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.lists(st.integers(0, 150)),
)
def test_frame_is_found_in_any_pieces(before, frame, after, cuts):
    marker = b"<marker>"
    before = before.replace(b"<", b"")
    stream = before + marker + f"{len(frame):08x}".encode() + frame + after
    sink = FramedStdout(marker, 1000)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        sink.write(stream[start:end])
    sink.close()
    assert sink.capture.text() == (before + after).decode(errors="replace")
    assert sink.frame == frame


@given(st.binary(max_size=100), st.integers(1, 20))
def test_stream_without_a_marker_is_all_output(stream, size):
    sink = FramedStdout(b"never in there", 1000)
    for start in range(0, len(stream), size):
        sink.write(stream[start : start + size])
    sink.close()
    assert sink.capture.text() == stream.decode(errors="replace")
    assert not sink.has_frame


@given(st.binary(max_size=60))
def test_frame_is_bounded_whatever_follows_the_marker(garbage):
    sink = FramedStdout(b"<marker>", 10)
    sink.write(b"<marker>" + garbage)
    sink.close()
    assert sink.has_frame
    assert sink.frame is None or len(sink.frame) <= len(garbage)


def test_oversized_frame_is_counted_but_not_stored():
    sink = FramedStdout(b"<marker>", 10)
    sink.write(b"<marker>000f4240" + b"x" * 1_000_000 + b"after")
    assert sink.frame_too_large
    assert sink.capture.text() == "after"


def test_truncated_frame_is_ignored():
    sink = FramedStdout(b"<marker>", 1000)
    sink.write(b"<marker>00000010{")
    sink.close()
    assert (sink.has_frame, sink.frame) == (True, None)
