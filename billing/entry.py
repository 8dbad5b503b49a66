"""The canonical bytes of a ledger entry, and the hash chain over them.

    bytes = "kvtier-ledger-entry 1"                                                LF
            {"position":P,"price":"<price id>"|null,"recorded_time_ns":T}          LF
            <canonical text of the usage event>                                    LF
            ["<account>","<class>",<quantity>,"<amount>","<currency>"]             LF   per posting
    hash  = SHA-256(previous hash || bytes)
    before position 1: SHA-256("kvtier-ledger " || ledger id)

Invariant: equal content gives equal bytes on every machine; pinned by a golden file, described in
docs/formats/ledger.md. Every constant here is frozen: it is hashed. Pure, any thread.
"""

import hashlib
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import NewType

from billing.frozen import frozen_dataclass
from billing.money import to_text
from billing.price_book import PriceId
from billing.rating import Posting

__all__ = ["Entry", "EntryHash", "genesis_hash"]

EntryHash = NewType("EntryHash", bytes)

_HEAD = "kvtier-ledger-entry 1\n"


@frozen_dataclass(frozen=True, slots=True)
class Entry:
    """One usage event in the ledger, with what it costs."""

    position: int
    """From 1, without gaps."""
    recorded_time_ns: int
    event_text: str
    price_id: PriceId | None
    """None: unrated, no price book version covered the event."""
    postings: tuple[Posting, ...]

    def canonical_bytes(self, amounts: Sequence[str] | None = None) -> bytes:
        """`amounts`: `to_text` of the postings' amounts, where they are there already."""
        if amounts is None:
            amounts = [to_text(posting.amount) for posting in self.postings]
        price = f'"{self.price_id}"' if self.price_id is not None else "null"
        lines = [
            f'{{"position":{self.position},"price":{price},'
            f'"recorded_time_ns":{self.recorded_time_ns}}}',
            self.event_text,
        ]
        lines += [
            f'[{_quoted(p.account)},"{p.token_class}",{p.quantity_tokens}'
            f',"{amount}","{p.currency}"]'
            for p, amount in zip(self.postings, amounts, strict=True)
        ]
        return (_HEAD + "\n".join(lines) + "\n").encode()

    def hash_after(self, previous: EntryHash, amounts: Sequence[str] | None = None) -> EntryHash:
        """The chain's next hash, 32 bytes. `amounts`: of `canonical_bytes`."""
        return EntryHash(hashlib.sha256(previous + self.canonical_bytes(amounts)).digest())


def genesis_hash(ledger_id: str) -> EntryHash:
    """What the first entry's hash continues: differs per ledger, so chains cannot be mixed."""
    return EntryHash(hashlib.sha256(f"kvtier-ledger {ledger_id}".encode()).digest())
