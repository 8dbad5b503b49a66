"""Signed checkpoints: when they are made, what they prove, and the keys they are made with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from billing.checkpoint_check import Kept, Trust
from billing.entry import Entry, EntryHash, genesis_hash
from billing.errors import LedgerKeyError
from billing.ledger_key import KEY_FILE, KeyFile
from billing.ledger_schema import checkpoints, entries, price_versions
from billing.ledger_signer import CheckpointRule
from billing.meter import Head
from billing.price_book import version_from_text
from billing.rating import rate
from billing.usage import UsageEvent, event_from_text
from billing.wire_proof import checkpoint_data, kept_from_data, kept_message, kept_of
from tests.roll_up import ROLL_UP

Events = Callable[..., UsageEvent]
Till = Any


def _positions(till: Till) -> list[int]:
    query = select(checkpoints.c.position).order_by(checkpoints.c.number)
    return list(till.store.read(lambda c: c.execute(query).scalars().all()))


def _nothing(till: Till) -> Head:
    """For a walk that knows of no commit, as over a copy."""
    return Head(0, genesis_hash(till.store.ledger_id))


def test_one_is_made_after_so_many_entries(open_till: Any, usage_event: Events) -> None:
    till = open_till(rule=CheckpointRule(entries=4))
    for number in range(10):
        till.record(usage_event(f"r{number}"))
    assert _positions(till) == [4, 8]
    found = till.verify()
    assert (found.problem, found.checkpoint_count) == ("", 2)


def test_one_is_made_when_nothing_more_comes_for_a_while(
    open_till: Any, usage_event: Events
) -> None:
    till = open_till(rule=CheckpointRule(seconds=0.01))
    till.record(usage_event("a"))
    while not _positions(till):
        pass
    assert _positions(till) == [1]


def test_asking_makes_one_that_covers_everything_and_only_then(
    till: Till, usage_event: Events
) -> None:
    first = till.checkpoint()
    assert (first.checkpoint.number, first.checkpoint.position) == (1, 0)
    till.record(usage_event("a"))
    till.record(usage_event("bad", prompt=1))
    second, again = till.checkpoint(), till.checkpoint()
    assert second == again
    assert (second.checkpoint.position, second.checkpoint.refused_count) == (1, 1)
    assert second.checkpoint.holds_under(second.public_key)
    assert till.verify(Trust((first, second), second.public_key)).problem == ""


def test_closing_leaves_nothing_uncovered(open_till: Any, usage_event: Events) -> None:
    till = open_till()
    till.record(usage_event("a"))
    till.close()
    assert _positions(open_till()) == [1]


def test_entries_cut_off_the_end_are_found_by_a_checkpoint_that_was_kept(
    till: Till, usage_event: Events
) -> None:
    till.record(*(usage_event(f"r{number}") for number in range(5)))
    kept = till.checkpoint()
    till.alter(
        "DELETE FROM checkpoints",
        "DELETE FROM postings WHERE position > 3",
        "DELETE FROM entries WHERE position > 3",
        *ROLL_UP,
    )
    assert till.verify(committed=_nothing(till)).problem == ""  # the ledger alone cannot know
    found = till.verify(Trust((kept,)), _nothing(till))
    assert (found.broken_position, "cut off" in found.problem) == (4, True)


def test_refused_events_cut_off_the_end_are_found_as_well(till: Till, usage_event: Events) -> None:
    till.record(usage_event("bad", prompt=1), usage_event("worse", prompt=2))
    kept = till.checkpoint()
    till.alter("DELETE FROM checkpoints", "DELETE FROM refused_events WHERE sequence = 2")
    assert till.verify(committed=_nothing(till)).problem == ""
    assert "refused events were cut off" in till.verify(Trust((kept,)), _nothing(till)).problem


def test_a_chain_that_was_computed_anew_is_not_what_was_signed(
    till: Till, usage_event: Events
) -> None:
    till.record(*(usage_event(f"r{number}") for number in range(3)))
    till.checkpoint()
    till.record(*(usage_event(f"r{number}") for number in range(3, 6)))
    kept = till.checkpoint()
    till.alter("DELETE FROM checkpoints WHERE number = 2", *_written_anew(till, 5))
    assert till.verify(committed=_nothing(till)).problem == ""  # all that is left agrees
    found = till.verify(Trust((kept,)), _nothing(till))
    assert (found.broken_position, "not those of checkpoint 2" in found.problem) == (4, True)


def _written_anew(till: Till, start: int) -> list[str]:
    """Statements that pretend entries from `start` on were recorded later, hashes and all."""
    query = select(entries, price_versions.c.text).join(price_versions).order_by("position")
    rows = till.store.read(lambda c: c.execute(query).all())
    chain, statements = EntryHash(bytes(rows[start - 2].hash)), []
    for row in rows[start - 1 :]:
        rated = rate(event_from_text(row.event), version_from_text(row.text))
        recorded = row.recorded_time_ns + 1
        chain = Entry(row.position, recorded, row.event, row.price_id, rated).hash_after(chain)
        digest = f"'\\x{chain.hex()}'::bytea" if till.url else f"X'{chain.hex()}'"
        statements.append(
            f"UPDATE entries SET recorded_time_ns = {recorded}, hash = {digest}"
            f" WHERE position = {row.position}"
        )
    return statements


def test_a_kept_checkpoint_that_was_changed_or_a_missing_one_is_told(
    till: Till, usage_event: Events
) -> None:
    till.record(usage_event("a"))
    kept = till.checkpoint()
    lying = Kept(replace(kept.checkpoint, entry_hash=bytes(32)), kept.public_key)
    assert "fails" in till.verify(Trust((lying,))).problem
    till.alter("UPDATE checkpoints SET number = 2")
    assert "checkpoint 1 is missing" in till.verify().problem


@pytest.mark.parametrize(
    "change",
    ["position = 2", "time_ns = time_ns + 1", "refused_count = 7", "key_id = 'x'"],
)
def test_a_changed_checkpoint_is_named(till: Till, usage_event: Events, change: str) -> None:
    till.record(*(usage_event(f"r{number}") for number in range(3)))
    till.checkpoint()
    till.alter(f"UPDATE checkpoints SET {change}")
    found = till.verify()
    assert (found.broken_position, found.problem[:24]) == (0, "checkpoint 1 was changed")


def test_a_new_key_is_vouched_for_and_signs_from_then_on(
    till: Till, usage_event: Events, tmp_path: Path
) -> None:
    till.record(usage_event("a"))
    before = till.checkpoint()
    key = till.ledger.rotate_key().result(30)
    till.record(usage_event("b"))
    after = till.checkpoint()
    assert after.public_key == key.public_key != before.public_key
    for trusted in (before.public_key, after.public_key):
        assert till.verify(Trust((before, after), trusted)).problem == ""
    path = tmp_path / "ledger" / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.glob("*.pem")] == [KEY_FILE]
    stranger = bytes(31) + b"\x01"
    assert "none of this ledger's" in till.verify(Trust((), stranger)).problem


def test_a_rotation_cut_short_is_finished_at_the_next_start(
    open_till: Any, usage_event: Events, tmp_path: Path
) -> None:
    till = open_till()
    old = (tmp_path / "ledger" / KEY_FILE).read_bytes()
    till.ledger.rotate_key().result(30)
    till.close()
    # As a crash leaves it between the commit and the renaming.
    path = tmp_path / "ledger" / KEY_FILE
    path.rename(path.with_name("ledger_key.next.pem"))
    path.write_bytes(old)
    path.chmod(0o600)
    till = open_till()
    till.record(usage_event("a"))
    assert till.checkpoint().public_key == till.ledger.keys[1].public_key
    assert till.verify().problem == ""


def test_a_rotation_that_was_never_committed_changes_nothing(
    open_till: Any, usage_event: Events, tmp_path: Path
) -> None:
    open_till().close()
    KeyFile(tmp_path / "ledger").make_next()
    till = open_till()
    till.record(usage_event("a"))
    assert till.checkpoint().public_key == till.ledger.keys[0].public_key
    assert len(till.ledger.keys) == 1


def test_a_lost_key_stops_the_start_and_a_new_one_is_seen_by_who_kept_the_old(
    open_till: Any, usage_event: Events, tmp_path: Path
) -> None:
    till = open_till()
    till.record(usage_event("a"))
    kept = till.checkpoint()
    till.close()
    (tmp_path / "ledger" / KEY_FILE).unlink()
    with pytest.raises(LedgerKeyError, match="is gone"):
        open_till()
    till = open_till(accept_new_key=True)
    till.record(usage_event("b"))
    assert till.verify().problem == ""
    assert "took over without a word" in till.verify(Trust((kept,))).problem
    assert till.verify(Trust((till.checkpoint(),))).problem == ""


def test_a_key_that_others_may_read_is_refused(open_till: Any, tmp_path: Path) -> None:
    open_till().close()
    path = tmp_path / "ledger" / KEY_FILE
    path.chmod(0o640)
    with pytest.raises(LedgerKeyError, match="chmod 600"):
        open_till()
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(LedgerKeyError, match="not an Ed25519 key"):
        open_till()


@pytest.mark.parametrize("change", ["time_ns = 1", "public_key = signature", "key_id = 'x'"])
def test_a_changed_key_is_named(till: Till, change: str) -> None:
    till.alter(f"UPDATE ledger_keys SET {change}")
    assert "key 1 was changed" in till.verify().problem


def test_a_checkpoint_survives_its_file_and_the_wire(till: Till, usage_event: Events) -> None:
    till.record(usage_event("a"))
    kept = till.checkpoint()
    assert kept_from_data(json.loads(json.dumps(checkpoint_data(kept)))) == kept
    assert kept_of(kept_message(kept)) == kept
    for broken in ({}, {**checkpoint_data(kept), "signature": "%"}, {"number": None}):
        with pytest.raises(ValueError, match="not a checkpoint"):
            kept_from_data(broken)


def test_every_entry_and_refusal_of_many_transactions_is_covered(
    open_till: Any, usage_event: Events
) -> None:
    till = open_till(rule=CheckpointRule(entries=3))
    for number in range(20):
        till.record(usage_event(f"r{number}"), usage_event(f"bad{number}", prompt=number))
    assert _positions(till) == [3, 6, 9, 12, 15, 18]
    found = till.verify()
    assert (found.problem, found.refused_count, found.entry_count) == ("", 20, 20)
