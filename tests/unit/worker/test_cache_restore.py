"""A restore reads the same from an acquire however its events are spread over messages."""

from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest

from kvtier.blocks import MissReason, Tier
from kvtier.keys import BlockHash, pack_hashes, payload_checksum
from kvtier.v1 import cache_pb2 as pb
from worker.cache_restore import Restore, Restored, Wanted
from worker.cache_session import CacheSession
from worker.host_pages import HostPages
from worker.transfer import CopyLanes, NonsenseError

BLOCK_BYTES = 64
CHAIN = [BlockHash(bytes([i + 1]) * 32) for i in range(4)]
PAYLOADS = [bytes([i + 1]) * BLOCK_BYTES for i in range(4)]
CHECKSUMS = [payload_checksum(h, payload) for h, payload in zip(CHAIN, PAYLOADS, strict=True)]
COST = 0.02
TIERS = [Tier.HOST, Tier.HOST, Tier.SSD, Tier.HOST]

Message = pb.AcquirePrefixResponse
ORDER = ("match", "ready", "end")


class Call:
    """An answer that streams."""

    def __init__(self, messages: list[Any]) -> None:
        self._messages = iter(messages)
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        return self._messages

    def cancel(self) -> None:
        self.cancelled = True


class Wire:
    """The generated stub's place: answers an acquire as told, a load with the payloads."""

    def __init__(self, messages: list[Message], resident: bool) -> None:
        """`resident`: the one message is the whole answer, and no stream is asked for."""
        self.acquire = Call(messages)
        self._answer = messages[0] if resident else Message()
        self.asked: list[pb.AcquirePrefixRequest] = []
        self.released: list[pb.ReleaseLeaseRequest] = []
        self.ReleaseLease = self

    def AcquireResident(
        self, _: pb.AcquireResidentRequest, timeout: float
    ) -> pb.AcquireResidentResponse:
        return pb.AcquireResidentResponse.FromString(self._answer.SerializeToString())

    def AcquirePrefix(self, request: pb.AcquirePrefixRequest, timeout: float) -> Call:
        self.asked.append(request)
        return self.acquire

    def LoadBlocks(self, request: pb.LoadBlocksRequest, timeout: float) -> Call:
        assert request.lease_id == "lease"
        indexes = range(request.first_index, request.first_index + request.block_count)
        return Call([pb.LoadBlocksResponse(index=i, data=PAYLOADS[i]) for i in indexes])

    def future(self, request: pb.ReleaseLeaseRequest, timeout: float) -> Any:
        self.released.append(request)
        return cast(Any, self)

    def add_done_callback(self, callback: Any) -> None:
        callback(self)


def match(tiers: list[Tier] = TIERS) -> Message:
    found = pb.PrefixMatch(lease_id="lease", matched_count=len(tiers), tiers=bytes(tiers))
    return Message(match=found)


def ready(first: int, checksums: list[int]) -> Message:
    return Message(ready=pb.ReadyRange(first_index=first, checksums=checksums))


def end(count: int, reason: MissReason = MissReason.NONE) -> Message:
    return Message(end=pb.AcquireEnd(ready_count=count, miss_reason=cast(Any, int(reason))))


def merged(*messages: Message) -> Message:
    whole = Message()
    for message in messages:
        whole.MergeFrom(message)
    return whole


def spreads(events: list[Message]) -> Iterator[list[Message]]:
    """Every way to put these events into messages: order kept, no kind twice in one."""
    if not events:
        yield []
    for size in range(1, len(events) + 1):
        places = [ORDER.index(e.ListFields()[0][0].name) for e in events[:size]]
        if places == sorted(set(places)):
            for rest in spreads(events[size:]):
                yield [merged(*events[:size]), *rest]


def restore(
    messages: list[Message],
    restored: Restored,
    resident: bool = False,
    leases: tuple[str, ...] = ("lease",),
) -> tuple[list[bytes], list[bytes]]:
    """Restores by `messages` into fresh pages; the corrupt hashes of each lease given back."""
    wire = Wire(messages, resident)
    pages = [np.zeros(BLOCK_BYTES, dtype=np.uint8) for _ in CHAIN]
    landing = HostPages(pages)
    opened = pb.OpenSessionResponse(session_id="session", max_blocks_per_call=64)
    with grpc.insecure_channel("unix:/nowhere") as channel:
        session = CacheSession(cast(Any, wire), channel, opened, None, None)
        lanes = CopyLanes(1)
        try:
            Restore(
                session,
                lanes,
                lambda: 0.0,
                Wanted(CHAIN, landing, 10.0, recompute_seconds=COST),
            ).run("r", restored)
        finally:
            lanes.close()
            session.lease_returns.close()
            assert wire.acquire.cancelled != resident
            assert all(a.recompute_time_per_block.ToMilliseconds() == 20 for a in wire.asked)
    # Those that are not sound go back at once; the others when there is a call to go along with.
    given_back = [release.corrupt_block_hashes for release in wire.released]
    given_back += [b"" for _ in session.lease_returns.take()]
    assert tuple(landing.leases) == (leases if given_back else ())
    return [page.tobytes() for page in pages], given_back


WHOLE = [match(), ready(0, CHECKSUMS[:2]), ready(2, CHECKSUMS[2:]), end(4)]
IN_ONE = [match(), ready(0, CHECKSUMS), end(4)]
CUT = [match(), ready(0, CHECKSUMS[:3]), end(3, MissReason.DEADLINE)]
CORRUPT = [match(), ready(0, [*CHECKSUMS[:2], 7, CHECKSUMS[3]]), end(4)]
NOTHING_READY = [match(), end(0, MissReason.DEADLINE)]


def test_the_spreads_reach_from_one_message_to_one_for_each_event() -> None:
    assert [len(messages) for messages in spreads(IN_ONE)] == [3, 2, 2, 1]
    assert [len(messages) for messages in spreads(WHOLE)] == [4, 3, 3, 2]


@pytest.mark.parametrize(
    ("events", "good", "reason"),
    [
        (WHOLE, 4, MissReason.NONE),
        (IN_ONE, 4, MissReason.NONE),
        (CUT, 3, MissReason.DEADLINE),
        (CORRUPT, 2, MissReason.CORRUPT),
        (NOTHING_READY, 0, MissReason.DEADLINE),
    ],
    ids=["whole", "in one", "cut", "corrupt", "nothing ready"],
)
def test_however_events_are_spread_over_messages_the_same_is_restored(
    events: list[Message], good: int, reason: MissReason
) -> None:
    for messages in spreads(events):
        for resident in (False, True)[: 1 + (len(messages) == 1)]:
            restored = Restored()
            pages, given_back = restore(messages, restored, resident)
            assert (restored.tiers, restored.reason, restored.ended) == (TIERS[:good], reason, True)
            assert pages[:good] == PAYLOADS[:good]
            corrupt = CHAIN[good : good + 1] if reason is MissReason.CORRUPT else []
            assert given_back == [pack_hashes(corrupt)]


@pytest.mark.parametrize(
    ("messages", "good"),
    [
        ([merged(ready(0, CHECKSUMS), end(4))], 0),
        ([merged(match(), ready(1, CHECKSUMS[1:]), end(3))], 0),
        ([merged(match(), end(4))], 0),
        ([merged(match(), ready(0, CHECKSUMS[:2]), end(3))], 2),
        ([merged(match(), ready(0, CHECKSUMS[:2])), merged(match(), end(2))], 2),
        ([merged(match(), ready(0, CHECKSUMS[:2])), Message()], 2),
        ([merged(match(), ready(0, CHECKSUMS))], 4),
    ],
    ids=["no match", "late range", "end too far", "end past ready", "two", "nothing", "no end"],
)
def test_nonsense_in_messages_of_several_keeps_what_was_verified(
    messages: list[Message], good: int
) -> None:
    for resident in (False, True)[: 1 + (len(messages) == 1)]:
        restored = Restored()
        with pytest.raises(NonsenseError):
            restore(messages, restored, resident)
        expected = 0 if resident and not messages[0].HasField("end") else good
        assert (restored.tiers, restored.ended) == (TIERS[:expected], False)


@pytest.mark.parametrize("lease_id", ["x" * 65, "two\nlines"])
def test_a_lease_that_no_event_could_name_is_nonsense(lease_id: str) -> None:
    messages = [merged(match(), ready(0, CHECKSUMS), end(4))]
    messages[0].match.lease_id = lease_id
    for resident in (False, True):
        restored = Restored()
        with pytest.raises(NonsenseError, match="no name"):
            restore(messages, restored, resident, leases=())
        assert not restored.tiers
