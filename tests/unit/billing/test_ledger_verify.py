"""What a person with the file and a SQL prompt could do, and where verify finds it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from billing.entry import Entry, EntryHash
from billing.ledger_schema import metadata
from billing.ledger_verify import verify_ledger
from billing.price_book import version_from_text
from billing.rating import rate
from billing.usage import UsageEvent, event_from_text
from kvtier.serving import ShuttingDownError

Events = Callable[..., UsageEvent]
Till = Any

COUNT = 12
BROKEN = 7


@pytest.fixture
def kept(till: Till, usage_event: Events) -> Till:
    till.record(*(usage_event(f"r{i}", hit=i * 64, miss=i + 1, output=i) for i in range(COUNT)))
    till.record(usage_event("bad", prompt=1))
    assert till.verify().problem == ""
    return till


def _other(till: Till, column: str, kind: str) -> str:
    if "INT" in kind:
        return f"COALESCE({column}, 0) + 1"
    if kind == "BLOB":
        return _blob(till, "00" * 32)
    return f"'~' || SUBSTR(COALESCE({column}, ''), 2)"


def _blob(till: Till, digits: str) -> str:
    return f"'\\x{digits}'::bytea" if till.url else f"X'{digits}'"


def _asked(till: Till, query: str) -> Any:
    return till.store.read(lambda c: c.execute(text(query)).all())


@pytest.mark.parametrize(
    "column",
    [c.name for c in metadata.tables["entries"].columns if c.name != "position"],
)
def test_a_change_in_any_column_of_an_entry_is_found_where_it_is(kept: Till, column: str) -> None:
    kind = str(metadata.tables["entries"].c[column].type)
    kept.alter(
        f"UPDATE entries SET {column} = {_other(kept, column, kind)} WHERE position = {BROKEN}",
    )
    found = kept.verify()
    assert found.broken_position == BROKEN
    assert found.problem
    assert found.head.position == BROKEN - 1


@pytest.mark.parametrize(
    "change",
    [
        "account = 'receivable/other'",
        "token_class = 'miss'",
        "quantity_tokens = quantity_tokens + 1",
        "amount = amount || '0'",
        "amount = '-' || amount",
        "currency = 'USD'",
        "line = 9",
        "position = 999",
    ],
)
def test_a_change_in_any_column_of_a_posting_is_found_where_it_is(kept: Till, change: str) -> None:
    kept.alter(f"UPDATE postings SET {change} WHERE position = {BROKEN} AND line = 1")
    found = kept.verify()
    assert (found.broken_position, "postings" in found.problem) == (BROKEN, True)


@pytest.mark.parametrize(
    ("statements", "position"),
    [
        (["DELETE FROM entries WHERE position = 7"], BROKEN),
        (["DELETE FROM postings WHERE position = 7 AND line = 2"], BROKEN),
        (["UPDATE entries SET position = 100 WHERE position = 7"], BROKEN),
        (
            ["DELETE FROM postings WHERE position = 12", "DELETE FROM entries WHERE position = 12"],
            12,
        ),
        (["INSERT INTO postings VALUES (13, 1, 'x', 'hit', 1, '1', 'CNY')"], 13),
        (["UPDATE ledger_meta SET value = 'other' WHERE key = 'ledger_id'"], 1),
        (["UPDATE entries SET price_id = NULL WHERE position = 7"], BROKEN),
        (
            [
                "UPDATE entries SET position = -1 WHERE position = 7",
                "UPDATE entries SET position = 7 WHERE position = 8",
                "UPDATE entries SET position = 8 WHERE position = -1",
            ],
            BROKEN,
        ),
    ],
)
def test_what_is_missing_moved_or_invented_is_found(
    kept: Till, statements: list[str], position: int
) -> None:
    kept.alter(*statements)
    assert kept.verify().broken_position == position


def test_a_changed_price_is_found_at_the_first_entry_it_rated(kept: Till) -> None:
    kept.alter("""UPDATE price_versions SET text = REPLACE(text, '"0.2"', '"0.1"')""")
    found = kept.verify()
    assert (found.broken_position, "price version" in found.problem) == (1, True)


def test_an_entry_whose_hash_was_recomputed_breaks_the_next_one(
    kept: Till, usage_event: Events
) -> None:
    ((previous,),) = _asked(kept, f"SELECT hash FROM entries WHERE position = {BROKEN - 1}")
    ((event, price, recorded),) = _asked(
        kept, f"SELECT event, price_id, recorded_time_ns FROM entries WHERE position = {BROKEN}"
    )
    ((version,),) = _asked(kept, "SELECT text FROM price_versions")
    rated = rate(event_from_text(event), version_from_text(version))
    forged = Entry(BROKEN, recorded + 1, event, price, rated)
    digest = forged.hash_after(EntryHash(previous)).hex()
    kept.alter(
        f"UPDATE entries SET recorded_time_ns = {recorded + 1}, hash = {_blob(kept, digest)}"
        f" WHERE position = {BROKEN}",
    )
    assert kept.verify().broken_position == BROKEN + 1


def test_a_changed_refusal_is_found_beside_the_chain(kept: Till) -> None:
    kept.alter(f"UPDATE refused_events SET wire = {_blob(kept, '00')}")
    found = kept.verify()
    assert (found.broken_position, found.head.position) == (0, COUNT)
    assert "refused event bad was changed" in found.problem


def test_a_missing_trigger_is_found(kept: Till) -> None:
    kept.alter(f"DROP TRIGGER entries_no_update{' ON entries' if kept.url else ''}", guards=True)
    assert "entries_no_update" in kept.verify().problem


def test_a_walk_gives_up_when_the_service_stops(kept: Till) -> None:
    answers = iter([False, False, True])
    with pytest.raises(ShuttingDownError):
        kept.store.read(lambda c: verify_ledger(c, kept.ledger.head, lambda: next(answers)))


def test_an_empty_ledger_holds(till: Till) -> None:
    found = till.verify()
    assert (found.problem, found.entry_count, found.broken_position) == ("", 0, 0)
