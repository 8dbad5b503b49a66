"""Checkpoints in a walk over the ledger: whether the keys hold, the signatures, and what they say.

A kept checkpoint is one that somebody noted elsewhere: what it covers must still be there, as must
the entry of a receipt that somebody kept. A trusted key is one that somebody noted elsewhere: it,
or keys it vouched for, must have signed.
Pure; used by `ledger_verify` on a reader's thread.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from billing.checkpoint import Checkpoint, LedgerKey, key_id_of
from billing.meter import Head

__all__ = ["CheckpointWalk", "Kept", "KeptEntry", "Trust", "key_problem"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint from elsewhere, and the key it came with."""

    checkpoint: Checkpoint
    public_key: bytes


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """What a receipt from elsewhere says of the ledger; the receipt itself holds."""

    ledger_id: str
    position: int
    entry_hash: bytes
    request_id: str
    public_key: bytes
    """That signed the receipt."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What the person who asks brings along."""

    kept: Sequence[Kept] = ()
    public_key: bytes | None = None
    entries: Sequence[KeptEntry] = ()

    @property
    def public_keys(self) -> list[bytes]:
        given = [self.public_key] if self.public_key is not None else []
        given += [each.public_key for each in self.kept]
        return given + [each.public_key for each in self.entries]


def key_problem(
    keys: Sequence[LedgerKey], key_ids: Sequence[str], ledger_id: str, trust: Trust
) -> str:
    """What is wrong with the ledger's keys; "" when nothing is."""
    lost_after = 0
    for number, (key, key_id) in enumerate(zip(keys, key_ids, strict=True), 1):
        if key.number != number:
            return f"key {number} is missing"
        before = keys[number - 2].public_key if number > 1 else key.public_key
        vouched = key.vouched_by(before, ledger_id)
        if not vouched and number > 1 and key.vouched_by(key.public_key, ledger_id):
            lost_after, vouched = number, True
        if not vouched or key_id != key.key_id:
            return f"key {number} was changed"
    for public_key in trust.public_keys:
        number = next((key.number for key in keys if key.public_key == public_key), 0)
        if not number:
            return f"the public key {key_id_of(public_key)} is none of this ledger's"
        if number < lost_after:
            return (
                f"key {lost_after} took over without a word of the one before: the public key"
                f" {key_id_of(public_key)} says nothing about what it signed"
            )
    return ""


class CheckpointWalk:
    """Holds the chain against checkpoints as it is walked. `passed` after each entry."""

    def __init__(
        self, stored: Sequence[Checkpoint], keys: Sequence[LedgerKey], trust: Trust, ledger_id: str
    ) -> None:
        self._stored = stored
        self._keys = {key.key_id: key.public_key for key in keys}
        self._trust = trust
        self._ledger_id = ledger_id
        self._at: dict[int, list[Checkpoint]] = defaultdict(list)
        for checkpoint in [*stored, *(each.checkpoint for each in trust.kept)]:
            self._at[checkpoint.position].append(checkpoint)
        self._refused_at: dict[int, list[Checkpoint]] = defaultdict(list)
        for checkpoint in [*stored, *(each.checkpoint for each in trust.kept)]:
            self._refused_at[checkpoint.refused_count].append(checkpoint)
        self._entries_at: dict[int, list[KeptEntry]] = defaultdict(list)
        for entry in trust.entries:
            self._entries_at[entry.position].append(entry)
        self.good_position = 0
        """Everything up to here is as a checkpoint says."""

    def problem(self) -> str:
        """What is wrong with the checkpoints by themselves; "" when nothing is."""
        for number, checkpoint in enumerate(self._stored, 1):
            if checkpoint.number != number:
                return f"checkpoint {number} is missing"
            public_key = self._keys.get(checkpoint.key_id)
            if public_key is None or not checkpoint.holds_under(public_key):
                return f"checkpoint {number} was changed: its signature does not hold"
        for each in self._trust.kept:
            checkpoint = each.checkpoint
            if not checkpoint.holds_under(each.public_key):
                return f"the signature of the checkpoint that was kept ({checkpoint.number}) fails"
            if checkpoint.ledger_id != self._ledger_id:
                return f"the checkpoint that was kept is of another ledger, {checkpoint.ledger_id}"
        for entry in self._trust.entries:
            if entry.ledger_id != self._ledger_id:
                return f"the receipt of {entry.request_id} is of another ledger, {entry.ledger_id}"
        return ""

    def passed(self, head: Head) -> str:
        """What checkpoints say against the chain at `head`; "" when nothing."""
        for checkpoint in self._at.get(head.position, ()):
            if checkpoint.entry_hash != head.hash:
                return (
                    "is the first that may not be what was signed: entries from here to position"
                    f" {head.position} are not those of checkpoint {checkpoint.number}"
                )
            self.good_position = head.position
        for entry in self._entries_at.get(head.position, ()):
            if entry.entry_hash != head.hash:
                return (
                    "is the first that may not be what was signed: entries from here to position"
                    f" {head.position} are not those of the receipt of {entry.request_id}"
                )
            self.good_position = head.position
        return ""

    def refused_passed(self, head: Head) -> str:
        for checkpoint in self._refused_at.get(head.refused_count, ()):
            if checkpoint.refused_hash != head.refused_hash:
                return f"refused events are not those that checkpoint {checkpoint.number} signed"
        return ""

    def entries_cut(self, head: Head) -> str:
        """Says so when a checkpoint covers more entries than there are; "" else."""
        covering = [c for c in self._all() if c.position > head.position]
        if not covering:
            beyond = [each for each in self._trust.entries if each.position > head.position]
            if not beyond:
                return ""
            entry = min(beyond, key=lambda each: each.position)
            return (
                f"is missing: the receipt of {entry.request_id} has position {entry.position}, so"
                " entries were cut off the ledger's end"
            )
        first = min(covering, key=lambda c: c.position)
        return (
            f"is missing: checkpoint {first.number} covers {first.position} entries, so they were"
            " cut off the ledger's end"
        )

    def others_cut(self, head: Head) -> str:
        """The same of refused events, and of checkpoints themselves."""
        if any(c.refused_count > head.refused_count for c in self._all()):
            return "refused events were cut off the end: a checkpoint covers more"
        kept = [each.checkpoint.number for each in self._trust.kept]
        if kept and max(kept) > len(self._stored):
            return f"checkpoint {len(self._stored) + 1} is missing: a later one was kept"
        return ""

    def _all(self) -> list[Checkpoint]:
        return [*self._stored, *(each.checkpoint for each in self._trust.kept)]
