"""What a request used comes out of the journal as it went in, and goes to billing as it lies."""

from hypothesis import given
from hypothesis import strategies as st

from billing.wire import submission_of
from journal.format import End
from kvtier.blocks import Tier
from kvtier.v1 import usage_pb2
from worker.usage_delivery import request_bytes
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)
from worker.usage_journal_format import USAGE_FORMAT
from worker.usage_wire import event_message

TEXTS = st.text(max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
COUNTS = st.integers(1, 2**31 - 1)
TIMES = st.integers(0, 2**62)
RUNS = st.builds(
    ProvenRun,
    blocks=st.dictionaries(st.sampled_from([*Tier, None]), COUNTS, max_size=5),
    digest=st.binary(max_size=32),
)
PROOFS = st.builds(
    PromptProof,
    scheme=COUNTS,
    block_tokens=COUNTS,
    commitment=st.binary(max_size=16),
    namespace_mark=st.binary(max_size=16),
    runs=st.lists(RUNS, max_size=4).map(tuple),
    digest_blocks=COUNTS,
    digests=st.binary(max_size=64),
)


@st.composite
def requests(draw: st.DrawFn) -> AdmittedRequest:
    """As workers of each format have them: what came together is noted together."""
    said = [draw(TEXTS) for _ in range(5)]
    noted = draw(st.sampled_from([0, 2, 5]))
    return AdmittedRequest(
        *(draw(TEXTS) for _ in range(5)), draw(TIMES), *said[:noted], *[None] * (5 - noted)
    )


@st.composite
def events(draw: st.DrawFn) -> UsageEvent:
    written = draw(st.integers(0, 50))
    tokens = ChargedTokens(
        draw(st.dictionaries(st.sampled_from(list(Tier)), COUNTS, max_size=4)),
        draw(st.integers(25, 2**40)),
        draw(st.integers(25, 2**40)),
        written,
        draw(TEXTS),
    )
    return UsageEvent(
        request=draw(requests()),
        end_time_ns=draw(TIMES),
        end=draw(st.sampled_from(UsageEnd)),
        tokens=tokens,
        ttft_ns=draw(st.none() | TIMES),
        lease_ids=draw(st.none() | st.lists(TEXTS, max_size=3).map(tuple)),
        schema_version=draw(COUNTS),
        proof=draw(st.none() | PROOFS),
    )


@given(st.lists(events(), min_size=1, max_size=3))
def test_what_is_journaled_comes_back_and_is_sent_as_it_lies(written: list[UsageEvent]) -> None:
    lines = [USAGE_FORMAT.encode(n, End(each)) for n, each in enumerate(written, 1)]
    ends = [USAGE_FORMAT.decode_end(line.removesuffix(b"\n")) for line in lines]
    stored = [end for end in ends if end is not None]
    assert [(end.sequence, end.event) for end in stored] == list(enumerate(written, 1))
    assert [end.name for end in stored] == [each.request.request_id for each in written]
    for number, (line, each) in enumerate(zip(lines, written, strict=True), 1):
        assert USAGE_FORMAT.decode(line.removesuffix(b"\n")) == (number, End(each))
    sent = usage_pb2.RecordUsageRequest.FromString(request_bytes(end.wire for end in stored))
    assert list(sent.events) == [event_message(each) for each in written]
    for message, each in zip(sent.events, written, strict=True):
        said = submission_of(message).event
        assert (said.start_time_ns, said.end_time_ns, said.ttft_ns) == (
            *(each.request.start_time_ns, each.end_time_ns),
            each.ttft_ns,
        )
        assert (said.tokens.prompt, said.tokens.output) == (
            *(each.tokens.prompt_tokens, each.tokens.completion_tokens),
        )
