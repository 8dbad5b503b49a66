"""The bulk lane's frames: golden bytes, every frame there and back, and nothing else let in."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import bulk
from kvtier.bulk import BlockRun, Frame, Kind, MalformedFrameError, StopReason

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "bulk.json"
EVERY_KIND = frozenset(Kind)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
CALLS = st.integers(1, 2**32 - 1)

FRAMES = st.one_of(
    st.builds(Frame, st.just(Kind.HELLO), length=st.just(32)),
    st.builds(Frame, st.just(Kind.WELCOME)),
    st.builds(Frame, st.just(Kind.LOAD), CALLS, U32, length=st.just(20)),
    st.builds(Frame, st.just(Kind.STORE), CALLS, length=st.just(16)),
    st.builds(Frame, st.sampled_from([Kind.GO, Kind.DONE]), CALLS, U32),
    st.builds(Frame, st.just(Kind.DATA), CALLS, U32, U64, st.integers(1, bulk.FRAME_BYTES_MAX)),
    st.builds(Frame, st.just(Kind.STOP), U32, st.sampled_from(StopReason)),
)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_golden_frames(case: dict[str, object]) -> None:
    fields = case["frame"]
    assert isinstance(fields, list)
    frame = Frame(Kind[fields[0]], *fields[1:])
    header = bytes.fromhex(str(case["header"]))
    assert bulk.pack(frame) == header
    assert bulk.unpack(header, EVERY_KIND) == frame


@given(FRAMES)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert bulk.unpack(bulk.pack(frame), EVERY_KIND) == frame


@given(FRAMES)
def test_a_frame_of_the_other_side_is_refused(frame: Frame) -> None:
    for kinds in (bulk.FROM_CLIENT, bulk.FROM_SERVICE):
        if frame.kind not in kinds:
            with pytest.raises(MalformedFrameError):
                bulk.unpack(bulk.pack(frame), kinds)


@given(st.one_of(st.binary(max_size=64), st.binary(min_size=28, max_size=28).map(b"KVB2".__add__)))
def test_any_bytes_are_a_frame_or_a_typed_error(header: bytes) -> None:
    try:
        frame = bulk.unpack(header, EVERY_KIND)
    except MalformedFrameError:
        return
    assert bulk.pack(frame) == header


@given(FRAMES, st.integers(0, 31), st.integers(1, 255))
def test_a_flipped_byte_is_another_frame_or_a_typed_error(frame: Frame, at: int, by: int) -> None:
    header = bytearray(bulk.pack(frame))
    header[at] ^= by
    try:
        read = bulk.unpack(header, EVERY_KIND)
    except MalformedFrameError:
        return
    assert read != frame
    assert read.length <= bulk.FRAME_BYTES_MAX


@given(st.binary(min_size=16, max_size=16), U32)
def test_a_load_comes_back_as_it_was(lease_id: bytes, count: int) -> None:
    assert bulk.unpack_load(bulk.pack_load(lease_id, count)) == (lease_id, count)
    assert bulk.raw_id(bulk.id_of(lease_id)) == lease_id


@given(st.text(max_size=40))
def test_an_id_is_sixteen_bytes_or_a_typed_error(text: str) -> None:
    try:
        raw = bulk.raw_id(text)
    except MalformedFrameError:
        return
    assert len(raw) == bulk.ID_BYTES


def test_reasons_without_a_code_are_internal() -> None:
    assert bulk.stop_reason("LEASE_EXPIRED") is StopReason.LEASE_EXPIRED
    assert bulk.stop_reason("NO_SUCH") is StopReason.INTERNAL


def views_of(sizes: list[int]) -> list[memoryview]:
    return [memoryview(bytes([at % 251]) * size) for at, size in enumerate(sizes)]


SIZES = st.lists(st.sampled_from([1, 100, 1 << 19, (1 << 20) - 1, 1 << 20, 3 << 20]), max_size=4)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(0, 4))
def test_frames_carry_every_byte_once_in_order(sizes: list[int], whole_count: int) -> None:
    views = views_of(sizes)
    whole_count = min(whole_count, len(sizes))
    positions = [at * 3 for at in range(len(sizes))]
    coming = BlockRun(positions, views, whole_count)
    sent = b""
    for frame, pieces in BlockRun(positions, views, whole_count).frames(7):
        assert (frame.kind, frame.call) == (Kind.DATA, 7)
        assert 1 <= frame.length <= bulk.FRAME_BYTES_MAX
        assert bulk.unpack(bulk.pack(frame), bulk.FROM_CLIENT) == frame
        assert len(pieces) <= bulk.PIECES_MAX
        assert (frame.index, frame.offset) == coming.place()
        assert [bytes(p) for p in coming.take(frame.length)] == [bytes(p) for p in pieces]
        sent += b"".join(pieces)
    assert coming.ended()
    assert sent == b"".join(views[whole_count:])


def test_small_blocks_travel_together_and_a_frame_has_so_many_pieces() -> None:
    frames = BlockRun(range(1200), views_of([100] * 1200)).frames(1)
    assert [len(pieces) for _, pieces in frames] == [512, 512, 176]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=8),
    st.lists(st.integers(1, 5000), max_size=8),
)
def test_any_cut_of_a_run_is_taken_and_nothing_past_its_end(
    sizes: list[int], cuts: list[int]
) -> None:
    views = views_of(sizes)
    run, taken, left = BlockRun(range(len(sizes)), views), b"", sum(sizes)
    for size in [cut for cut in cuts if cut < left] + [left + 1]:
        if size > left:
            with pytest.raises(MalformedFrameError):
                run.take(size)
        else:
            taken += b"".join(run.take(size))
            left -= size
            assert len(b"".join(views[: run.whole_count])) <= len(taken)
    taken += b"".join(run.take(left))
    assert run.ended()
    assert taken == b"".join(views)
