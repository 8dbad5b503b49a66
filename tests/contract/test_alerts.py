"""Each alert rule fires on what it is about, and none of them where everything is well.

Series are in promtool's shorthand, a value every 30 s: "0+1x10" is 0, 1, ... 10.
"""

from pathlib import Path
from typing import Any

import yaml

from tests.contract.test_dashboards import RULES, rules
from tests.promtool import needed_promtool

W, C, B, G = (
    f'instance="{name}:9000",job="kvtier-{name}"'
    for name in ("worker", "cache", "billing", "gateway")
)
HOUR = 120
DAY = 24 * HOUR


def still(value: float, steps: int = 40) -> str:
    return f"{value}x{steps}"


def grows(by: float, steps: int = 40) -> str:
    return f"0+{by}x{steps}"


SLOW = {
    f'kvtier_worker_ttft_seconds_bucket{{{W},le="10.0"}}': grows(1, 60),
    f'kvtier_worker_ttft_seconds_bucket{{{W},le="30.0"}}': grows(10, 60),
    f'kvtier_worker_ttft_seconds_bucket{{{W},le="+Inf"}}': grows(10, 60),
}
FELL = {
    f'kvtier_worker_hit_tokens_total{{{W},tier="host"}}': f"0+90x{DAY} {90 * DAY}+10x{2 * HOUR}",
    f"kvtier_worker_miss_tokens_total{{{W}}}": f"0+10x{DAY} {10 * DAY}+90x{2 * HOUR}",
}
CASES: dict[str, tuple[dict[str, str], str]] = {
    "KvtierDown": ({f"up{{{W}}}": still(0)}, "10m"),
    "KvtierNoWorker": ({f'kvtier_gateway_worker_up{{{G},worker="a"}}': still(0)}, "5m"),
    "KvtierWorkerUnreachable": ({f'kvtier_gateway_worker_up{{{G},worker="a"}}': still(0)}, "5m"),
    "KvtierRequestsFail": (
        {
            f'kvtier_gateway_requests_total{{{G},outcome="failed",path="grpc"}}': grows(1),
            f'kvtier_gateway_requests_total{{{G},outcome="done",path="grpc"}}': grows(9),
        },
        "15m",
    ),
    "KvtierFirstTokenSlow": (SLOW, "25m"),
    "KvtierQueueLong": ({f"kvtier_worker_engine_waiting_requests{{{W}}}": still(40)}, "15m"),
    "KvtierPagesShort": ({f"kvtier_worker_engine_preemptions_total{{{W}}}": grows(9, 60)}, "25m"),
    "KvtierHitRateFell": (FELL, f"{24 * 60 + 100}m"),
    "KvtierCacheUnfollowed": (
        {f"kvtier_gateway_followed_caches{{{G}}}": still(0), f"up{{{C}}}": still(1)},
        "10m",
    ),
    "KvtierCorruptBlocks": (
        {f'kvtier_cache_corrupt_blocks_total{{{C},tier="ssd"}}': "_x10 1x30"},
        "10m",
    ),
    "KvtierSsdFails": (
        {f'kvtier_cache_ssd_failures_total{{{C},operation="read"}}': "_x10 1x30"},
        "10m",
    ),
    "KvtierSsdSlow": ({f"kvtier_cache_room_waits_total{{{C}}}": grows(90, 60)}, "25m"),
    "KvtierWriteBudgetCostsHits": (
        {
            f"kvtier_cache_lost_hits_total{{{C}}}": grows(2, 8 * HOUR),
            f'kvtier_cache_misses_total{{{C},reason="evicted"}}': grows(10, 8 * HOUR),
        },
        "8h",
    ),
    "KvtierSharedTierAbsent": (
        {
            f'kvtier_cache_shared_asked_total{{{C},outcome="unavailable"}}': grows(8),
            f'kvtier_cache_shared_asked_total{{{C},outcome="found"}}': grows(2),
        },
        "15m",
    ),
    "KvtierSharedTierBehind": (
        {f'kvtier_cache_shared_dropped_blocks_total{{{C},reason="queue_full"}}': grows(90, 90)},
        "40m",
    ),
    "KvtierClientsStall": ({f'kvtier_cache_expired_total{{{C},kind="lease"}}': grows(5)}, "12m"),
    "KvtierCallsRefused": ({f"kvtier_cache_refused_calls_total{{{C}}}": grows(5)}, "15m"),
    "KvtierRecoveryFoundDamage": ({f"kvtier_cache_recovery_problems{{{C}}}": still(1)}, "5m"),
    "KvtierUsageUndelivered": (
        {
            f"kvtier_worker_usage_journal_lag_events{{{W}}}": still(3),
            f"kvtier_worker_usage_delivery_failures_total{{{W}}}": grows(1),
        },
        "15m",
    ),
    "KvtierUsageJournalFills": ({f"kvtier_worker_usage_journal_bytes{{{W}}}": still(6e8)}, "5m"),
    "KvtierAttestationsUndelivered": (
        {
            f"kvtier_cache_attestation_journal_lag{{{C}}}": still(3, 90),
            f"kvtier_cache_attestation_delivery_failures_total{{{C}}}": grows(1, 90),
        },
        "40m",
    ),
    "KvtierLedgerCommitsFail": ({f"kvtier_billing_failed_commits_total{{{B}}}": grows(1)}, "15m"),
    "KvtierEventsRefused": (
        {f'kvtier_billing_refusals_total{{{B},reason="conflict"}}': grows(1)},
        "5m",
    ),
    "KvtierUnrated": ({f"kvtier_billing_unrated_events_total{{{B}}}": grows(1)}, "5m"),
    "KvtierBudgetPassed": (
        {f'kvtier_billing_budget_alerts_total{{{B},kind="spend"}}': "0x5 1x35"},
        "5m",
    ),
    "KvtierBudgetUnasked": (
        {f'kvtier_worker_budget_asks_total{{{W},outcome="unavailable"}}': grows(1)},
        "10m",
    ),
}

WELL = {
    **{f"up{{{each}}}": still(1, 200) for each in (W, C, B, G)},
    f'kvtier_gateway_worker_up{{{G},worker="a"}}': still(1, 200),
    f'kvtier_gateway_requests_total{{{G},outcome="done",path="grpc"}}': grows(9, 200),
    f'kvtier_gateway_requests_total{{{G},outcome="failed",path="grpc"}}': still(1, 200),
    f"kvtier_gateway_followed_caches{{{G}}}": still(1, 200),
    f"kvtier_worker_engine_waiting_requests{{{W}}}": "0 40 0 40 0 40 0x190",
    f'kvtier_worker_hit_tokens_total{{{W},tier="host"}}': grows(90, 200),
    f"kvtier_worker_miss_tokens_total{{{W}}}": grows(10, 200),
    f"kvtier_worker_usage_journal_lag_events{{{W}}}": "1 5 2 0 7 0x190",
    f"kvtier_worker_usage_delivery_failures_total{{{W}}}": still(0, 200),
    f'kvtier_cache_shared_asked_total{{{C},outcome="found"}}': grows(5, 200),
    f'kvtier_cache_shared_asked_total{{{C},outcome="failed"}}': "0x5 1x190",
    f'kvtier_cache_misses_total{{{C},reason="never_stored"}}': grows(9, 200),
    f"kvtier_cache_lost_hits_total{{{C}}}": still(0, 200),
    f"kvtier_cache_recovery_problems{{{C}}}": still(0, 200),
    f'kvtier_billing_refusals_total{{{B},reason="conflict"}}': still(0, 200),
}


def case(series: dict[str, str], at: str, expression: str, value: float | None) -> dict[str, Any]:
    expected = [] if value is None else [{"labels": "{}", "value": value}]
    asked = {"expr": expression, "eval_time": at, "exp_samples": expected}
    return {
        "interval": "30s",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [asked],
    }


def check(cases: list[dict[str, Any]], directory: Path) -> None:
    promtool = needed_promtool()
    file = directory / "cases.yml"
    data = {"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": cases}
    file.write_text(yaml.safe_dump(data))
    promtool("test", "rules", str(file))


def test_every_alert_fires_on_what_it_is_about(tmp_path: Path) -> None:
    assert list(CASES) == [rule["alert"] for rule in rules()]
    firing = 'count(ALERTS{{alertname="{}",alertstate="firing"}})'
    check([case(said, at, firing.format(name), 1) for name, (said, at) in CASES.items()], tmp_path)


def test_no_alert_where_all_is_well(tmp_path: Path) -> None:
    check([case(WELL, at, "count(ALERTS)", None) for at in ("5m", "30m", "90m")], tmp_path)
