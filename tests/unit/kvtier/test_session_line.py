"""Frames of the session line: whole ones come out however the bytes come in, others never."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.bulk import MalformedFrameError
from kvtier.session_line import (
    FRAME_BYTES_MAX,
    FROM_CLIENT,
    FROM_SERVICE,
    HEADER_BYTES,
    Frames,
    LineFrame,
    Method,
    Outcome,
    pack,
)

frames = st.lists(
    st.builds(
        LineFrame,
        st.integers(0, 2**32 - 1),
        st.sampled_from(sorted(FROM_CLIENT)),
        st.binary(max_size=200),
    ),
    max_size=6,
)


@given(frames, st.data())
def test_frames_come_out_whole_however_they_come_in(
    sent: list[LineFrame], data: st.DataObject
) -> None:
    raw, reader, came = b"".join(pack(frame) for frame in sent), Frames(FROM_CLIENT), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        came += reader.feed(raw[:size])
        raw = raw[size:]
    assert came == sent


def test_the_bytes_are_those_of_the_format() -> None:
    raw = pack(LineFrame(258, Method.RESERVE_BLOCKS, b"abc"))
    assert raw == bytes([3, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0]) + b"abc"
    assert [int(method) for method in Method] == [1, 2, 3, 4]
    assert (int(Outcome.ANSWER), int(Outcome.STATUS)) == (1, 2)


@pytest.mark.parametrize("kind", [0, 3, 9, 255])
def test_a_kind_that_the_peer_may_not_send_is_no_frame(kind: int) -> None:
    with pytest.raises(MalformedFrameError):
        Frames(FROM_SERVICE).feed(pack(LineFrame(1, kind, b"")))


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    header = struct.pack("<IIB3x", FRAME_BYTES_MAX + 1, 1, Method.COMMIT_BLOCKS)
    assert len(header) == HEADER_BYTES
    with pytest.raises(MalformedFrameError):
        Frames(FROM_CLIENT).feed(header)
