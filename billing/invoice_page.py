"""An invoice as a page for a browser and for paper: one HTML file, without scripts, that loads
nothing from anywhere.

Every amount and quantity is the text that the other formats have; what is drawn is rounded to the
screen's points and nothing else is. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from billing.statement import invoice_rows
from billing.tables import class_of, grouped

__all__ = ["invoice_page"]

DAYS_MAX = 62
"""More are drawn by month."""
_CHART_WIDTH, _CHART_HEIGHT = 680, 150
_NAMES = {
    "hit_tokens": "prompt, from the cache (hit)",
    "miss_tokens": "prompt, computed (miss)",
    "output_tokens": "output",
}
"""What is drawn, from the ground up."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a bar."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    x: float
    width: float
    parts: tuple[_Part, ...]
    says: str
    """The figures, for who points at it."""
    named: bool
    """Its label is written below it."""


def invoice_page(invoice: Mapping[str, Any], by_day: Sequence[Mapping[str, Any]]) -> str:
    """`invoice`: `invoice_data`; `by_day`: rows of a report by day of the same tenant and period,
    of any currencies. A whole HTML document."""
    rows = [row | {"class": class_of(row)} for row in invoice_rows(invoice)]
    days = _days(by_day)
    spans = days if len(days) <= DAYS_MAX else _months(days)
    most = max((sum(span.values()) for _, span in spans), default=0)
    return (
        _environment()
        .get_template("invoice.html")
        .render(
            invoice=invoice,
            rows=rows,
            start=_moment(invoice["period"]["start"], "the first event"),
            end=_moment(invoice["period"]["end"], "now"),
            sums=[(kind, name, sum(day[kind] for _, day in days)) for kind, name in _NAMES.items()],
            hit_rate=_hit_rate([day for _, day in days]),
            bars=_bars(spans, most),
            most=most,
            by="day" if spans is days else "month",
            chart_width=_CHART_WIDTH,
            chart_height=_CHART_HEIGHT,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("billing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["grouped"] = grouped
    return environment


def _moment(text: str | None, otherwise: str) -> str:
    """A day where it is a day's beginning."""
    return (text.removesuffix("T00:00:00Z") if text else otherwise).replace("T", " ")


def _days(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, int]]]:
    """Every day from the first with usage to the last."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if not any(row[kind] for kind in _NAMES):
            continue  # a day on which something was corrected
        day = found.setdefault(row["day"], dict.fromkeys(_NAMES, 0))
        for kind in _NAMES:
            day[kind] += row[kind]
    if not found:
        return []
    first, last = (date.fromisoformat(edge(found)) for edge in (min, max))
    names = [str(first + timedelta(n)) for n in range((last - first).days + 1)]
    return [(name, found.get(name, dict.fromkeys(_NAMES, 0))) for name in names]


def _bars(spans: Sequence[tuple[str, Mapping[str, int]]], most: int) -> list[_Bar]:
    """As high as the chart where a span has `most` tokens; none where no span has any."""
    if not most:
        return []
    room = _CHART_WIDTH / len(spans)
    every = -(-len(spans) // 12)
    bars = []
    for place, (name, span) in enumerate(spans):
        parts, top = [], float(_CHART_HEIGHT)
        for kind in _NAMES:
            height = span[kind] / most * _CHART_HEIGHT
            top -= height
            if height:
                parts.append(_Part(kind, round(top, 2), round(height, 2)))
        says = ", ".join(f"{span[kind]:,} {text}" for kind, text in _NAMES.items())
        x, width = round(place * room + room * 0.1, 2), round(min(room * 0.8, 48), 2)
        bars.append(_Bar(name, x, width, tuple(parts), f"{name}: {says}", place % every == 0))
    return bars


def _months(days: Sequence[tuple[str, Mapping[str, int]]]) -> list[tuple[str, dict[str, int]]]:
    months: dict[str, dict[str, int]] = {}
    for name, day in days:
        month = months.setdefault(f"{datetime.fromisoformat(name):%Y-%m}", dict.fromkeys(_NAMES, 0))
        for kind in _NAMES:
            month[kind] += day[kind]
    return list(months.items())


def _hit_rate(days: Sequence[Mapping[str, int]]) -> str:
    """In per cent, rounded down: what is not all from the cache never says 100."""
    hit = sum(day["hit_tokens"] for day in days)
    prompt = hit + sum(day["miss_tokens"] for day in days)
    return f"{hit * 1000 // prompt / 10:.1f} %" if prompt else "none"
