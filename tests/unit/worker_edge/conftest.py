"""Usage events to write and read back."""

from collections.abc import Callable

import pytest

from kvtier.blocks import Tier
from worker.usage_event import (
    AdmittedRequest,
    ChargedTokens,
    PromptProof,
    ProvenRun,
    UsageEnd,
    UsageEvent,
)

MakeRequest = Callable[[str], AdmittedRequest]
MakeEvent = Callable[[str], UsageEvent]


@pytest.fixture
def make_request() -> MakeRequest:
    def make(request_id: str) -> AdmittedRequest:
        return AdmittedRequest(request_id, "acme", "demo", "node-1", "client ü", 1_000_000_000)

    return make


@pytest.fixture
def make_event(make_request: MakeRequest) -> MakeEvent:
    def make(request_id: str) -> UsageEvent:
        tokens = ChargedTokens({Tier.GPU: 64, Tier.SSD: 128}, 17, 5, 16, "5m")
        runs = (ProvenRun({Tier.GPU: 1}, b"g" * 32), ProvenRun({Tier.SSD: 2, None: 1}, b"c" * 32))
        proof = PromptProof(1, 64, b"k" * 16, b"n" * 16, runs, 2, b"d" * 64)
        return UsageEvent(
            make_request(request_id), 2_000_000_000, UsageEnd.STOP, tokens, 123, proof=proof
        )

    return make
