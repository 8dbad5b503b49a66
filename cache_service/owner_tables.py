"""Owners of blocks as a message, as a table and as JSON. Pure; any thread."""

from collections.abc import Iterable
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from cache_service import wire
from cache_service.owner_views import AccountView, OwnersView, OwnerView
from kvtier.blocks import Tier
from kvtier.v1 import block_pb2
from kvtier.v1 import cache_pb2 as pb

__all__ = ["owners_data", "owners_message", "owners_table", "quotas_table"]

Tiers = Iterable[pb.TierStats]


def owners_message(view: OwnersView, tiers: Tiers) -> pb.OwnersStats:
    """`tiers`: those the service has."""
    there = [Tier(each.tier) for each in tiers]
    return pb.OwnersStats(
        owners=[_owner(each, there) for each in view.owners],
        owner_count=view.owner_count,
        total=_owner(view.total, there),
        quotas=[_quota(each, there) for each in view.accounts],
    )


def _quota(view: AccountView, there: Iterable[Tier]) -> pb.QuotaStats:
    quota = view.quota
    bounds = {
        Tier.HOST: (quota.host_soft_bytes, quota.host_hard_bytes),
        Tier.SSD: (quota.ssd_soft_bytes, quota.ssd_hard_bytes),
    }
    counted = {
        Tier.HOST: (view.host_bytes, view.host_claimed_bytes),
        Tier.SSD: (view.ssd_bytes, view.ssd_claimed_bytes),
    }
    return pb.QuotaStats(
        owner=view.name,
        tiers=[
            pb.QuotaTierStats(
                tier=wire.tier(tier),
                payload_bytes=counted[tier][0],
                reserved_bytes=counted[tier][1],
                soft_bytes=bounds[tier][0],
                hard_bytes=bounds[tier][1],
            )
            for tier in there
        ],
    )


def _owner(view: OwnerView, tiers: Iterable[Tier]) -> pb.OwnerStats:
    counts = {
        Tier.HOST: (view.host_count, view.host_bytes),
        Tier.SSD: (view.ssd_count, view.ssd_bytes),
    }
    return pb.OwnerStats(
        owner=view.path,
        tiers=[
            pb.OwnerTierStats(
                tier=wire.tier(tier), block_count=counts[tier][0], payload_bytes=counts[tier][1]
            )
            for tier in tiers
        ],
    )


def owners_table(response: pb.GetStatsResponse) -> Table:
    """Those that are listed, the others together, and what is nobody's."""
    owners = response.owners
    table = Table(title="Owners of blocks", title_justify="left")
    table.add_column("owner", overflow="fold")
    for tier in response.tiers:
        name = _name(tier.tier)
        table.add_column(f"{name} blocks", justify="right")
        table.add_column(f"{name} bytes", justify="right")
    for owner in owners.owners:
        table.add_row(owner.owner, *_cells((t.block_count, t.payload_bytes) for t in owner.tiers))
    table.add_section()
    more = owners.owner_count - len(owners.owners)
    if more:
        table.add_row(f"{more:,} others", *_cells(_rest(owners.total, owners.owners)))
    nobodys = [
        (tier.block_count - owned.block_count, tier.payload_bytes - owned.payload_bytes)
        for tier, owned in zip(response.tiers, owners.total.tiers, strict=True)
    ]
    table.add_row("nobody's, public too", *_cells(nobodys))
    return table


def quotas_table(response: pb.GetStatsResponse) -> Table:
    """What counts against each quota, tier by tier."""
    table = Table(title="Quotas", title_justify="left")
    table.add_column("owner", overflow="fold")
    table.add_column("tier")
    for name in ("used", "soft", "borrowed", "hard", "full"):
        table.add_column(name, justify="right")
    for quota in response.owners.quotas:
        for tier in quota.tiers:
            bounds = [
                decimal(value) if tier.HasField(field) else "-"
                for field, value in (
                    ("soft_bytes", tier.soft_bytes),
                    ("soft_bytes", _borrowed(tier)),
                    ("hard_bytes", tier.hard_bytes),
                )
            ]
            used = _used(tier)
            full = f"{used / tier.hard_bytes:.0%}" if tier.hard_bytes else "-"
            table.add_row(quota.owner, _name(tier.tier), decimal(used), *bounds, full)
    return table


def _used(tier: pb.QuotaTierStats) -> int:
    """What counts against the quota."""
    return tier.payload_bytes + tier.reserved_bytes


def _borrowed(tier: pb.QuotaTierStats) -> int:
    return max(0, _used(tier) - tier.soft_bytes) if tier.HasField("soft_bytes") else 0


def owners_data(response: pb.GetStatsResponse) -> dict[str, Any]:
    """Plain data: field names as in the contract."""
    owners = response.owners
    return {
        "owner_count": owners.owner_count,
        "owners": [{"owner": o.owner, "tiers": _tiers(o)} for o in owners.owners],
        "total": {"tiers": _tiers(owners.total)},
        "quotas": [
            {
                "owner": quota.owner,
                "tiers": [
                    {
                        "tier": _name(tier.tier),
                        "payload_bytes": tier.payload_bytes,
                        "reserved_bytes": tier.reserved_bytes,
                        "soft_bytes": tier.soft_bytes if tier.HasField("soft_bytes") else None,
                        "borrowed_bytes": _borrowed(tier),
                        "hard_bytes": tier.hard_bytes if tier.HasField("hard_bytes") else None,
                    }
                    for tier in quota.tiers
                ],
            }
            for quota in owners.quotas
        ],
        "tiers": [
            {
                "tier": _name(tier.tier),
                "block_count": tier.block_count,
                "payload_bytes": tier.payload_bytes,
            }
            for tier in response.tiers
        ],
    }


def _tiers(owner: pb.OwnerStats) -> list[dict[str, Any]]:
    return [
        {
            "tier": _name(each.tier),
            "block_count": each.block_count,
            "payload_bytes": each.payload_bytes,
        }
        for each in owner.tiers
    ]


def _rest(total: pb.OwnerStats, listed: Iterable[pb.OwnerStats]) -> list[tuple[int, int]]:
    rest = [(each.block_count, each.payload_bytes) for each in total.tiers]
    for owner in listed:
        mine = ((each.block_count, each.payload_bytes) for each in owner.tiers)
        rest = [(a - b, c - d) for (a, c), (b, d) in zip(rest, mine, strict=True)]
    return rest


def _cells(sums: Iterable[tuple[int, int]]) -> list[str]:
    return [cell for count, size in sums for cell in (f"{count:,}", decimal(size))]


def _name(tier: "block_pb2.Tier") -> str:
    return block_pb2.Tier.Name(tier).removeprefix("TIER_").lower()
