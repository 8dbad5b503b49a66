"""Engine against cache: one event's hits by tier, and what its leases are attested to have served.

GPU hits need no lease: their pages were the worker's own. Hits of the other
tiers do, and are at most what their leases served; a part of that may not have been used. Pure, any
thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from billing.attestation import Attestation
from billing.difference import Difference, Kind
from billing.usage import LEASES_MAX, UsageEvent

__all__ = ["DELIVERY_NS_MAX", "Gap", "compare_served"]

DELIVERY_NS_MAX = 15 * 60 * 10**9
"""What is younger may still be on its way."""

REQUEST_CHARACTERS_MAX = 200
"""Of a request's id, that its worker tells a cache service."""

TIERS = ("host", "ssd", "shared")


@dataclass(frozen=True, slots=True)
class Gap:
    """A time of which a cache service cannot attest everything."""

    node: str
    start_ns: int
    end_ns: int
    words: str

    def touches(self, start_ns: int, end_ns: int) -> bool:
        return self.start_ns <= end_ns and start_ns <= self.end_ns


GapAt = Callable[[int, int], Gap | None]
"""A gap that touches the time from .. to, if there is one."""


@dataclass(slots=True)
class _Sums:
    """Tokens that leases served for sure, and may have, by tier."""

    served: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))


def compare_served(
    event: UsageEvent, attested: Mapping[str, Attestation], gap_at: GapAt, now_ns: int
) -> list[Difference]:
    """`attested`: what is kept of the event's leases, by id."""
    tokens = event.tokens
    hits = {"host": tokens.hit_host, "ssd": tokens.hit_ssd, "shared": tokens.hit_shared}
    if event.lease_ids is None:
        if not any(hits.values()):
            return []
        text = "the worker did not say under which leases blocks were restored; nothing to compare"
        return [_difference(event, Kind.LEASES_UNSAID, text, found=sum(hits.values()))]
    found, sums, open_ended = [], _Sums(), False
    gap: Gap | None = None
    if not attested.keys() >= set(event.lease_ids):
        assert event.start_time_ns is not None
        assert event.end_time_ns is not None
        gap = gap_at(event.start_time_ns, event.end_time_ns)
    for lease_id in event.lease_ids:
        said = attested.get(lease_id)
        if said is None:
            missing = _missing(event, lease_id, gap, now_ns)
            open_ended |= missing.kind is not Kind.ATTESTATION_MISSING
            found.append(missing)
        else:
            found += _of_lease(event, said, sums)
    if len(event.lease_ids) == LEASES_MAX:
        open_ended = True
        text = f"an event names {LEASES_MAX} leases at most; the request may have had more"
        found.append(_difference(event, Kind.LEASES_CUT, text))
    for tier in TIERS:
        found += _of_tier(event, tier, hits[tier], sums, open_ended)
    return found


def _missing(event: UsageEvent, lease_id: str, gap: Gap | None, now_ns: int) -> Difference:
    assert event.end_time_ns is not None
    if gap is not None:
        text = f"no attestation, and {gap.words}"
        return _difference(event, Kind.ATTESTATION_IN_GAP, text, lease_id=lease_id)
    if event.end_time_ns > now_ns - DELIVERY_NS_MAX:
        text = "no attestation yet; the request ended less than 15 minutes ago"
        return _difference(event, Kind.ATTESTATION_PENDING, text, lease_id=lease_id)
    text = (
        "no cache service attests this lease, and none says that it was killed or full at that"
        " time; see whether billing.address is set in its settings, and its journal's lag"
    )
    return _difference(event, Kind.ATTESTATION_MISSING, text, lease_id=lease_id)


def _of_lease(event: UsageEvent, said: Attestation, sums: _Sums) -> list[Difference]:
    lease, name = said.lease, said.attestation_id
    if lease is None or lease.request_id != event.request_id[:REQUEST_CHARACTERS_MAX]:
        other = lease.request_id if lease is not None else "a gap"
        text = f"the event names a lease that was given for another request ({other})"
        return [_difference(event, Kind.LEASE_OF_OTHER_REQUEST, text, lease_id=name)]
    found = []
    if lease.tenant_id and lease.tenant_id != event.tenant_id:
        text = f"the blocks of this lease are {lease.tenant_id}'s, and the event another tenant's"
        found.append(_difference(event, Kind.LEASE_OF_OTHER_TENANT, text, lease_id=name))
    blocks = lease.granted if lease.served is None else lease.served
    into = sums.lost if lease.served is None else sums.served
    for tier in TIERS:
        into[tier] += getattr(blocks, tier) * lease.block_tokens
    return found


def _of_tier(
    event: UsageEvent, tier: str, hits: int, sums: _Sums, open_ended: bool
) -> list[Difference]:
    served, lost = sums.served[tier], sums.lost[tier]
    if hits > served + lost and not open_ended:
        text = (
            f"the worker claims {hits:,} hit tokens from {tier}, and its leases served"
            f" {served + lost:,}: {hits - served - lost:,} came from nowhere"
        )
        return [_difference(event, Kind.HITS_NOT_SERVED, text, tier, served + lost, hits)]
    if lost:
        text = (
            f"the cache service died: of the {lost:,} tokens that it had leased from {tier} any"
            f" part may have been served; {hits:,} are hits"
        )
        return [_difference(event, Kind.LEASE_LOST, text, tier, served + lost, hits)]
    if hits < served:
        why = "the load was cut, or the blocks were there already, or were computed before"
        text = f"{served - hits:,} tokens were restored from {tier} and not used as hits: {why}"
        return [_difference(event, Kind.RESTORED_NOT_USED, text, tier, served, hits)]
    return []


def _difference(
    event: UsageEvent,
    kind: Kind,
    text: str,
    subject: str = "",
    expected: int | None = None,
    found: int | None = None,
    lease_id: str = "",
) -> Difference:
    return Difference(
        kind, text, event.tenant_id, event.request_id, lease_id, subject, expected, found
    )
