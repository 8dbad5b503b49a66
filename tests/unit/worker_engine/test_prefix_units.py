"""DeepSeek's prefix units: what ends one, and what a hit then is."""

from typing import Any

import pytest

from kvtier.blocks import MissReason
from worker.prefix_units import PrefixUnits, UnitPart
from worker.requests import CacheMode

BT = 8


def only(part: UnitPart, interval: int = 24) -> PrefixUnits:
    return PrefixUnits(True, frozenset([part]), interval)


INPUT, INTERVAL, OUTPUT = only("end_of_input"), only("interval"), only("end_of_output")
DEEPSEEK = PrefixUnits(True, interval_tokens=1024)

A = list(range(3, 27))
"""Three blocks; what follows are two and a bit."""
B, C, D = ([base + n % 5 for n in range(18)] for base in (40, 60, 80))


@pytest.mark.parametrize(
    ("units", "prompt", "blocks", "ended", "ends"),
    [
        (PrefixUnits(), 100, 12, True, ()),
        (INPUT, 100, 12, False, (12,)),
        (INPUT, 96, 12, False, (11,)),
        (INPUT, 8, 1, False, ()),
        (INPUT, 100, 14, True, (12,)),
        (INTERVAL, 100, 12, False, (3, 6, 9, 12)),
        (only("interval", 3), 20, 2, False, (1, 2)),
        (OUTPUT, 100, 12, False, ()),
        (OUTPUT, 100, 14, True, (14,)),
        (DEEPSEEK, 100, 14, True, (12, 14)),
        (DEEPSEEK, 5, 0, True, ()),
    ],
)
def test_units_end_at_whole_blocks(
    units: PrefixUnits, prompt: int, blocks: int, ended: bool, ends: tuple[int, ...]
) -> None:
    assert units.ends(prompt, blocks, BT, output_ended=ended) == ends


def hits(bench: Any, engine: Any, tokens: list[int], new: int = 1, **more: Any) -> int:
    (watcher,) = bench.run(engine, bench.request("r", tokens, new=new, **more))
    count: int = watcher.end.usage.hit_tokens
    return count


def test_what_two_requests_share_is_a_unit_for_the_third(bench: Any) -> None:
    engine = bench.engine(units=DEEPSEEK)
    assert hits(bench, engine, A + B) == 0
    assert hits(bench, engine, A + C) == 0
    assert hits(bench, engine, A + D) == 24
    # The whole of a former input is one as well, up to its last whole block.
    assert hits(bench, engine, A + B) == 40
    assert hits(bench, engine, A + B + D) == 40


def test_every_block_is_the_default(bench: Any) -> None:
    engine = bench.engine()
    assert hits(bench, engine, A + B) == 0
    assert hits(bench, engine, A + C) == 24


def test_the_beginning_of_an_input_is_no_unit_until_it_was_one(bench: Any) -> None:
    engine = bench.engine(units=DEEPSEEK)
    assert hits(bench, engine, A + B) == 0
    assert hits(bench, engine, [*A, 1]) == 0
    assert hits(bench, engine, [*A, 2]) == 24


def test_the_end_of_an_output_is_a_unit(bench: Any) -> None:
    engine = bench.engine(units=OUTPUT)
    (first,) = bench.run(engine, bench.request("one", A, new=17))
    turn = A + first.tokens() + D
    assert hits(bench, engine, A + D) == 0
    assert hits(bench, engine, turn) == 40


def test_long_inputs_are_cut_at_fixed_intervals(bench: Any) -> None:
    engine = bench.engine(units=only("interval", 16))
    assert hits(bench, engine, A + B) == 0
    assert hits(bench, engine, A + C) == 16


def test_a_unit_that_loses_its_end_ends_before_it(bench: Any) -> None:
    engine = bench.engine(units=INPUT, page_count=12)
    assert hits(bench, engine, A + B) == 0
    # Nine pages for one that leaves nothing: two of the five that are there must go.
    assert hits(bench, engine, [9] * 66, cache_mode=CacheMode.BYPASS) == 0
    assert engine.stats().cached_page_count == 3
    assert hits(bench, engine, A + B) == 24


def test_who_reads_only_makes_no_unit(bench: Any) -> None:
    engine = bench.engine(units=DEEPSEEK)
    assert hits(bench, engine, A + B) == 0
    assert hits(bench, engine, A + C, cache_mode=CacheMode.READ_ONLY) == 0
    assert hits(bench, engine, A + D, cache_mode=CacheMode.READ_ONLY) == 0


def test_without_a_cache_service_what_is_within_a_unit_is_a_plain_miss(bench: Any) -> None:
    engine = bench.engine(units=DEEPSEEK)
    bench.run(engine, bench.request("one", A + B))
    (watcher,) = bench.run(engine, bench.request("two", A + C))
    assert watcher.end.usage.miss_reason is MissReason.UNAVAILABLE
