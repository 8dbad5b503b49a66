"""Rated lines as messages of `kvtier.v1`. Pure functions, any thread."""

from billing.explain import ExplainedLine
from billing.money import to_text
from kvtier.v1 import usage_pb2

__all__ = ["rated_line_message"]


def rated_line_message(each: ExplainedLine) -> usage_pb2.RatedLine:
    key = each.line.key
    return usage_pb2.RatedLine(
        token_class=key.meter,
        cache_write_ttl_class=key.ttl_class,
        quantity=each.line.quantity,
        unit_price=to_text(key.unit_price),
        unit_tokens=key.per,
        amount=to_text(each.line.amount),
        rule=key.rule,
        derivation=each.derivation,
    )
