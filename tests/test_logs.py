"""Log output becomes numbered lines within limits, readable from any line."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.logs import follow, store
from backends_app.logs.store import (
    FULL,
    MAX_LINE_BYTES,
    MAX_LINES,
    Block,
    Line,
    LogBuffer,
)
from backends_app.models import Workload
from backends_app.workloads import Status
from tests.support.workloads import recorded

MB = 1024 * 1024


def logged(*said: tuple[str, bytes], max_bytes: int = MB) -> list[Block]:
    buffer = LogBuffer(max_bytes)
    for stream, data in said:
        buffer.write(stream, data)
    buffer.close()
    return list(buffer.pending_blocks())


def lines(blocks: list[Block], after: int = 0) -> list[tuple[int, str, str]]:
    return [(one.number, one.stream, one.text) for one in store.lines_after(blocks, after)]


def test_lines_are_numbered_over_both_streams_in_order():
    blocks = logged(("stdout", b"a\nb\n"), ("stderr", b"c\n"), ("stdout", b"d\n"))
    assert lines(blocks) == [
        (1, "stdout", "a"),
        (2, "stdout", "b"),
        (3, "stderr", "c"),
        (4, "stdout", "d"),
    ]


def test_a_line_is_added_when_it_ends():
    buffer = LogBuffer(MB)
    buffer.write("stdout", b"be")
    buffer.write("stderr", b"x\n")
    buffer.write("stdout", b"gun")
    assert [block.text for block in buffer.pending_blocks()] == ["x\n"]
    buffer.write("stdout", b"\nand")
    buffer.close()
    assert lines(list(buffer.pending_blocks())) == [
        (1, "stderr", "x"),
        (2, "stdout", "begun"),
        (3, "stdout", "and"),
    ]


def test_a_block_that_is_being_stored_is_not_extended():
    buffer = LogBuffer(MB)
    buffer.write("stdout", b"a\n")
    taken = buffer.pending_blocks()
    buffer.write("stdout", b"b\n")
    buffer.acknowledge(len(taken))
    assert [block.text for block in taken] == ["a\n"]
    assert buffer.pending_blocks() == (Block(2, "stdout", "b\n", 1),)


def test_a_line_without_an_end_is_split():
    blocks = logged(("stdout", b"x" * (3 * MAX_LINE_BYTES + 5)))
    assert [len(text) for _, _, text in lines(blocks)] == [MAX_LINE_BYTES] * 3 + [5]


@pytest.mark.parametrize(
    ("said", "max_bytes"),
    [
        ([b"line\n" * 1000] * 3, 7001),
        ([b"\n" * 3000] * 10, MB),
        ([b"x\n"] * (MAX_LINES + 5), MB),
        ([b"no end"] * 3000, 7001),
        ([b"x" * MB] * 20, MB),
        ([b"\xff" * MB] * 2, MB),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_log_is_bounded_and_says_when_it_is_full(said: list[bytes], max_bytes: int):
    blocks = logged(*(("stdout", data) for data in said), max_bytes=max_bytes)
    *kept, last = lines(blocks)
    assert last[1:] == ("host", FULL)
    assert len(kept) <= MAX_LINES
    assert sum(len(text) + 1 for _, _, text in kept) <= max_bytes + MAX_LINE_BYTES
    assert [number for number, _, _ in [*kept, last]] == [*range(1, len(kept) + 2)]


def test_invalid_utf8_is_replaced():
    assert lines(logged(("stdout", b"a\xff\x00b\r\nc"))) == [
        (1, "stdout", "a\ufffd\x00b"),
        (2, "stdout", "c"),
    ]


class Clock:
    """A clock that the test advances."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(buffer: LogBuffer) -> list[str]:
    return [text for _, _, text in lines(list(buffer.pending_blocks()))]


def test_an_unfinished_line_is_flushed_after_half_a_second():
    clock = Clock()
    buffer = LogBuffer(MB, clock=clock)
    buffer.write("stdout", "Name ä".encode()[:-1])
    buffer.write("stderr", b"...")
    clock.now += 0.4
    assert shown(buffer) == []
    clock.now += 0.2
    assert shown(buffer) == ["Name ", "..."]
    assert shown(buffer) == ["Name ", "..."]
    buffer.write("stdout", "ä".encode()[1:] + b"!\n")
    buffer.write("stderr", b"\n\nx")
    buffer.close()
    assert shown(buffer) == ["Name ", "...", "ä!", "", "x"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (b"10%\r20%\r100%\n", ["100%"]),
        (b"10%\r\n20%\r\r\n", ["10%", "20%"]),
        (b"\r10%\r20%", ["20%"]),
        (b"20%\r", ["20%"]),
        (b"a\n\r\nb", ["a", "", "b"]),
        (b"\r", []),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_carriage_return_overwrites_the_line(said: bytes, kept: list[str], size: int):
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    assert [text for _, _, text in lines(logged(*(("stdout", piece) for piece in pieces)))] == kept


def test_a_progress_bar_is_shown_live_and_uses_no_space():
    clock = Clock()
    buffer = LogBuffer(20 * MAX_LINE_BYTES, clock=clock)
    for percent in range(101):
        buffer.write("stdout", f"\r{percent:3}% {'#' * 1000}".encode())
        clock.now += 0.01
        buffer.pending_blocks()
    buffer.write("stdout", b"\r\n")
    buffer.write("stdout", b"done\n")
    seen = [text.split("%")[0].strip() for text in shown(buffer)]
    assert seen[-2:] == ["100", "done"]
    assert 2 <= len(seen) <= 5


@given(
    st.text(alphabet="aä€😀\n", max_size=300), st.integers(1, 9), st.integers(8, 40), st.booleans()
)
def test_characters_are_never_split(text: str, size: int, longest: int, slow: bool):
    """Neither by the length of a line, nor where the log is full, nor by an early flush."""
    clock = Clock()
    data = text.encode()
    for max_bytes in (len(data) + 400, max(1, len(data) // 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "MAX_LINE_BYTES", longest)
            buffer = LogBuffer(max_bytes, clock=clock)
            for at in range(0, len(data), size):
                buffer.write("stdout", data[at : at + size])
                clock.now += slow
                buffer.pending_blocks()
            buffer.close()
            kept = [line for line in lines(list(buffer.pending_blocks())) if line[1] == "stdout"]
        assert all("\ufffd" not in line for _, _, line in kept)
        found = "".join(line for _, _, line in kept)
        assert text.replace("\n", "").startswith(found)
        assert max_bytes < len(data) or text.replace("\n", "") == found


def test_unknown_streams_are_ignored():
    assert logged(("host", b"forged\n")) == []


def test_a_second_attempt_continues_the_line_numbers():
    buffer = LogBuffer(MB, 8)
    assert buffer.empty
    buffer.write("stdout", b"a\n")
    assert not buffer.empty
    assert buffer.pending_blocks() == (Block(8, "stdout", "a\n", 1),)


@pytest.mark.database
@pytest.mark.django_db
def test_stored_lines_are_read_after_any_number():
    workload = recorded()
    store.save_blocks(workload.pk, logged(("stdout", b"1\n2\n3\n"), ("stderr", b"4\n\x00\n")))
    store.save_blocks(workload.pk, [Block(6, "stdout", "6\n", 1)])
    assert Workload.objects.get().log_lines == 6
    for after in range(8):
        found = list(store.lines_after(store.blocks_after(workload.pk, after), after))
        assert [line.number for line in found] == [*range(after + 1, 7)]
    assert found == []
    assert store.blocks_after("nobody", 0) == []
    [*_, line] = store.lines_after(store.blocks_after(workload.pk, 0), 0)
    assert line == Line(6, "stdout", "6")


# Following


@pytest.mark.django_db(transaction=True)
def test_a_log_is_read_in_pieces_of_bounded_size():
    workload = recorded(Status.COMPLETED, log_lines=0)
    store.save_blocks(workload.pk, [store.Block(1, "stdout", ("x" * 999 + "\n") * 1000, 1000)])
    with follow.log_hub.subscribe(workload.pk) as follower:
        pieces = list(follow.follow(follower))
        assert [line.number for piece in pieces for line in piece] == [*range(1, 1001)]
        longest = max(sum(len(line.text) for line in piece) for piece in pieces)
        assert longest < follow.MAX_PIECE_CHARS + 1000


@pytest.mark.django_db(transaction=True)
def test_a_log_is_read_from_any_line():
    workload = recorded(Status.COMPLETED)
    store.save_blocks(workload.pk, [store.Block(1, "stdout", "a\nb\n", 2)])
    store.save_blocks(workload.pk, [store.Block(3, "stderr", "c\n", 1)])
    for after in range(5):
        with follow.log_hub.subscribe(workload.pk) as follower:
            lines = [line.text for piece in follow.follow(follower, after) for line in piece]
            assert lines == ["a", "b", "c"][after:]


@pytest.mark.django_db(transaction=True)
def test_many_followed_logs_are_watched_with_one_query(django_assert_num_queries):
    workloads = [recorded(Status.RUNNING) for _ in range(20)]
    with ExitStack() as stack:
        followers = [stack.enter_context(follow.log_hub.subscribe(one.pk)) for one in workloads]
        with django_assert_num_queries(1):
            follow.refresh(followers)


@pytest.mark.django_db(transaction=True)
def test_readers_of_one_log_share_what_is_read_of_it(django_assert_num_queries):
    workload = recorded(Status.RUNNING)
    store.save_blocks(workload.pk, [store.Block(1, "stdout", "a\n", 1)])
    with follow.log_hub.subscribe(workload.pk) as follower:
        readers = [follow.LogReader(follower, 0) for _ in range(10)]
        with django_assert_num_queries(1):
            assert {reader.read()[0].text for reader in readers} == {"a"}
        with django_assert_num_queries(0):  # nothing new
            assert [reader.read() for reader in readers] == [[]] * 10


@pytest.mark.django_db(transaction=True)
def test_a_deleted_workload_ends_its_stream():
    workload = recorded(Status.RUNNING)
    store.save_blocks(workload.pk, [store.Block(1, "stdout", "a\n", 1)])
    with follow.log_hub.subscribe(workload.pk) as follower:
        reader = follow.LogReader(follower, 0)
        workload.delete()
        assert reader.read() == []
        follow.refresh([follower])
        assert reader.read() is None


@pytest.mark.django_db(transaction=True)
def test_events_are_polled_without_waiting():
    clock = Clock()
    workload = recorded(Status.RUNNING)
    with follow.log_hub.subscribe(workload.pk) as follower:
        events = follow.LogEvents(follow.LogReader(follower, 0), clock)
        assert events.poll() == b"retry: 1000\n\n"
        assert events.poll() == b""
        clock.now += follow.KEEP_ALIVE_S
        assert [events.poll(), events.poll()] == [b": keep-alive\n\n", b""]
        store.save_blocks(workload.pk, [store.Block(1, "stdout", "a\n", 1)])
        follow.refresh([follower])
        assert events.poll() == b'id: 1\nevent: log\ndata: {"stream": "stdout", "line": "a"}\n\n'
        clock.now += follow.MAX_STREAM_S
        assert events.poll() is None
