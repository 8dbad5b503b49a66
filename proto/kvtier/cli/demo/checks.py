"""The demo's promises as named checks, computed from replies, statistics and the ledger.

Each is a function of what was observed; none may be dropped quietly: `run_checks` runs them all.
"""

from collections.abc import Callable
from decimal import Decimal

from kvtier.cli.demo.result import DemoResult, TenantBill, Turn
from kvtier.cli.demo.session import DemoSession

__all__ = ["run_checks"]

BLOCK_TOKENS = 64
WARM_RATIO_MIN = 10.0
SSD_RATIO_MIN = 5.0
CLASSES = {"hit": "hit_tokens", "miss": "miss_tokens", "output": "completion_tokens"}


def run_checks(session: DemoSession, first: str, second: str) -> None:
    """Fills `result.checks`."""
    result = session.result
    cold = result.turn("cold question")
    other = result.turn("other tenant, same text")
    public = result.turn("public prompt, tenant two")
    crashed = [t for t in result.turns if t.name.startswith("after crash")]
    checks: dict[str, Callable[[], bool]] = {
        "hit + miss = prompt in every reply": lambda: all(
            t.hit_tokens + t.miss_tokens == t.prompt_tokens
            and sum(t.hit_tokens_by_tier.values()) == t.hit_tokens
            for t in result.turns
        ),
        "hits are whole blocks and one token is always computed": lambda: all(
            t.hit_tokens % BLOCK_TOKENS == 0 and t.miss_tokens >= 1 for t in result.turns
        ),
        "the cold question reuses nothing": lambda: cold.hit_tokens == 0,
        "later turns reuse the whole earlier conversation": lambda: all(
            reuses(result.turn(later), result.turn(earlier))
            for later, earlier in (
                ("second turn", "cold question"),
                ("third turn", "second turn"),
            )
        ),
        "another tenant never hits a private document": lambda: other.hit_tokens == 0,
        "the second tenant hits exactly the public prompt": lambda: (
            0 < public.hit_tokens < public.prompt_tokens
            and result.turn("public prompt, tenant one").hit_tokens == 0
            and public.hit_tokens == _public_tokens(session)
        ),
        "after kill -9 the conversation hits from the SSD": lambda: (
            all(t.hit_tokens_by_tier["ssd"] >= 0.9 * t.hit_tokens > 0 for t in crashed[:1])
            and all(t.hit_tokens >= 0.9 * t.prompt_tokens for t in crashed)
        ),
        "no block on the SSD was lost in the crash": lambda: (
            result.restart is not None
            and result.restart.blocks_after >= result.restart.blocks_before > 0
        ),
        "a new worker hits from host RAM": lambda: (
            result.turn("new worker, third turn").hit_tokens_by_tier["host"] > 0
        ),
        f"warm first token at least {WARM_RATIO_MIN:.0f}x sooner (GPU pages, host RAM)": lambda: (
            ratio(result, cold, ("gpu", "host")) >= WARM_RATIO_MIN
        ),
        f"warm first token at least {SSD_RATIO_MIN:.0f}x sooner (SSD, after the crash)": lambda: (
            ratio(result, cold, ("ssd",)) >= SSD_RATIO_MIN
        ),
        "every answer equals its cold computation": lambda: all(
            t.tokens_equal_cold is True for t in result.turns
        ),
        "the ledger's hash chain and amounts hold": session.ledger_holds,
    }
    for bill in result.bills:
        checks[f"{bill.tenant}: report equals the sum of the replies"] = _report_matches(
            result, bill, interrupted=bill.tenant == second
        )
        checks[f"{bill.tenant}: invoice equals the sum of the replies"] = _invoice_matches(
            result, bill
        )
    assert {bill.tenant for bill in result.bills} == {first, second}
    result.checks = {name: check() for name, check in checks.items()}


def reuses(later: Turn, earlier: Turn) -> bool:
    """Every full block of the earlier prompt was a hit."""
    return later.hit_tokens >= earlier.prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS


def ratio(result: DemoResult, cold: Turn, tiers: tuple[str, ...]) -> float:
    """Cold TTFT over the median TTFT of turns of that length served from `tiers`; 0 if none."""
    warm = sorted(
        t.ttft_seconds
        for t in result.turns
        if t.hit_tokens >= 0.9 * cold.prompt_tokens
        and sum(t.hit_tokens_by_tier[k] for k in tiers) >= 0.9 * t.hit_tokens
    )
    return cold.ttft_seconds / warm[len(warm) // 2] if warm else 0.0


def _public_tokens(session: DemoSession) -> int:
    """What of the two prompts is common and public: the system message's whole blocks."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(session.cluster.model / "tokenizer.json"))
    content = session.sent["public prompt, tenant two"].chat.messages[0].content
    rendered = f"<|im_start|>system\n{content}<|im_end|>\n"
    ids = tokenizer.encode(rendered, add_special_tokens=False).ids
    return len(ids) // BLOCK_TOKENS * BLOCK_TOKENS


def _report_matches(result: DemoResult, bill: TenantBill, interrupted: bool) -> Callable[[], bool]:
    def check() -> bool:
        turns = [t for t in result.turns if t.tenant == bill.tenant]
        tokens = bill.usage.tokens
        return (
            bill.usage.request_count == len(turns) + interrupted
            and tokens.prompt_tokens == sum(t.prompt_tokens for t in turns)
            and all(
                getattr(tokens, field) == sum(getattr(t, field) for t in turns)
                for field in CLASSES.values()
            )
            and all(
                getattr(tokens.hit_tokens_by_tier, tier)
                == sum(t.hit_tokens_by_tier[tier] for t in turns)
                for tier in ("gpu", "host", "ssd")
            )
        )

    return check


def _invoice_matches(result: DemoResult, bill: TenantBill) -> Callable[[], bool]:
    def check() -> bool:
        turns = [t for t in result.turns if t.tenant == bill.tenant]
        charged = {
            kind: sum(
                line.quantity_tokens for line in bill.invoice.lines if line.token_class == kind
            )
            for kind in CLASSES
        }
        exact = sum(
            (
                Decimal(line.unit_price) * line.quantity_tokens / line.unit_tokens
                for line in bill.invoice.lines
            ),
            Decimal(0),
        )
        total = Decimal(bill.invoice.total_amount)
        return (
            all(
                charged[kind] == sum(getattr(t, field) for t in turns)
                for kind, field in CLASSES.items()
            )
            and bill.lines_total == total
            and abs(exact - total) <= Decimal("0.000001") * len(bill.invoice.lines)
        )

    return check
