"""Checks a receipt from its bytes alone, and says of each thing whether it holds, and where not.

    form        the bytes are a receipt's, to the last one
    signature   the key signed them; where it did not, what was changed
    keys        each key is vouched for by the one before, and one that is trusted is among them
    event       it is one that a ledger takes, and its classes add up
    prices      price versions are those whose hashes the ledger names, in force at that time
    lines       rating the event with them gives these lines
    amount      which are what is charged, in this currency
    entry       the entry's hash follows from all this and the hash before it
    corrections each follows from its entry, and what is owed from all of them
    blocks      where the prompt's blocks came from is what its token classes say
    opening     it is that of the digests
    tokens      the digests are those of the tokens that are given

Invariant: nothing in a receipt is believed that can be recomputed; a check that cannot be made is
said to be skipped, or, where it was asked for, fails. Pure, any thread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from billing.checkpoint import LedgerKey, signed_by
from billing.checkpoint_check import Trust, key_problem
from billing.entry import Entry, EntryHash, genesis_hash
from billing.line import RatedLine, total_of
from billing.money import to_text
from billing.price_book import PriceBook, PriceId, PriceVersion, version_from_text
from billing.rating import facts_of, rate, rated_lines
from billing.receipt import (
    ReceiptFormError,
    canonical,
    changed_parts,
    line_fields,
    parsed,
    signed_bytes,
)
from billing.receipt_corrections import corrections_problem
from billing.receipt_shape import check_shape
from billing.receipt_tokens import opening_problem, token_problem
from billing.usage import UsageEvent, event_from_text, refusal_of

__all__ = ["Finding", "Given", "Report", "Result", "check_receipt"]

PARTS_NAMED_MAX = 5


class Result(Enum):
    """Values are in the JSON: frozen."""

    HOLDS = "holds"
    FAILED = "failed"
    SKIPPED = "skipped"


class _UncheckedError(Exception):
    """A check cannot be made, because a part that it goes by does not hold itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    result: Result
    where: str = ""
    """The part that does not hold: a path in the receipt, a byte of the file, a block."""
    note: str = ""
    """What is wrong, why it was skipped, or what there is to know."""


@dataclass(frozen=True, slots=True)
class Given:
    """What whoever checks brings along."""

    public_key: bytes | None = None
    token_ids: Sequence[int] | None = None
    book: PriceBook | None = None


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]
    receipt: dict[str, Any] | None = None
    """None: the bytes are none."""
    sealed: bool = True
    trusted: bool = False
    """A public key was given, and the key that signed is it or one that it vouched for; else who
    signed is the receipt's own word."""

    @property
    def verified(self) -> bool:
        return all(finding.result is not Result.FAILED for finding in self.findings)


class _BrokenError(Exception):
    """A check fails at a part."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(problem)
        self.where = where


def check_receipt(raw: bytes, given: Given | None = None) -> Report:
    """`raw`: a receipt's file."""
    given = given or Given()
    try:
        data = parsed(raw)
    except ReceiptFormError as error:
        return Report((Finding("form", Result.FAILED, error.where, str(error)),))
    receipt, sealed = data.get("receipt"), "opening" not in data
    try:
        check_shape(data)
    except ReceiptFormError as error:
        found = [Finding("form", Result.FAILED, error.where, str(error))]
        if isinstance(receipt, dict) and (parts := changed_parts(receipt)):
            found.append(_changed(parts))
        return Report(tuple(found), receipt if isinstance(receipt, dict) else None, sealed)
    assert isinstance(receipt, dict), "its shape is right"
    findings = [Finding("form", Result.HOLDS), *_Checks(data, given).run()]
    trusted = given.public_key is not None and all(
        each.result is Result.HOLDS for each in findings if each.check in ("signature", "keys")
    )
    return Report(tuple(findings), receipt, sealed, trusted)


class _Checks:
    """Of one receipt whose shape is right; each check by itself, in an order in which later ones
    go by what earlier ones found."""

    def __init__(self, data: dict[str, Any], given: Given) -> None:
        self._receipt = data["receipt"]
        self._signature = bytes.fromhex(data["signature"])
        self._opening = bytes.fromhex(data.get("opening", ""))
        self._given = given
        self._event: UsageEvent | None = None
        self._versions: dict[PriceId, PriceVersion] = {}

    def run(self) -> Iterator[Finding]:
        checks: list[tuple[str, Callable[[], str | Finding]]] = [
            ("signature", self._check_signature),
            ("keys", self._check_keys),
            ("event", self._check_event),
            ("prices", self._check_prices),
            ("lines", self._check_lines),
            ("amount", self._check_amount),
            ("entry", self._check_entry),
            ("corrections", self._check_corrections),
            ("blocks", self._check_blocks),
            ("opening", self._check_opening),
            ("tokens", self._check_tokens),
        ]
        for name, check in checks:
            try:
                told = check()
            except _UncheckedError as unchecked:
                yield Finding(name, Result.SKIPPED, "", str(unchecked))
            except _BrokenError as broken:
                yield Finding(name, Result.FAILED, broken.where, str(broken))
            else:
                yield told if isinstance(told, Finding) else Finding(name, Result.HOLDS, "", told)

    def _check_signature(self) -> str | Finding:
        receipt, key = self._receipt, self._receipt["key"]
        signer = next((each for each in self._keys if each.key_id == key), None)
        if signer is not None and signed_by(
            signer.public_key, self._signature, signed_bytes(receipt)
        ):
            return f"by key {key}"
        parts = changed_parts(receipt)
        if parts:
            return _changed(parts)
        if signer is None:
            raise _BrokenError("key", f"key {key} is none of the receipt's keys")
        raise _BrokenError(
            "signature",
            f"is not by key {key} over this receipt: it was changed, or the receipt was written"
            " anew by somebody else",
        )

    def _check_keys(self) -> str:
        receipt, trusted = self._receipt, self._given.public_key
        keys, ledger_id = self._keys, receipt["ledger"]
        if not keys or keys[-1].key_id != receipt["key"]:
            raise _BrokenError("keys", "the last of them is not the one that signs")
        key_ids = [key.key_id for key in keys]
        if problem := key_problem(keys, key_ids, ledger_id, Trust()):
            raise _BrokenError("keys", problem)
        if trusted is None:
            return "the receipt's own word: give the ledger's public key to check who signed"
        if problem := key_problem(keys, key_ids, ledger_id, Trust(public_key=trusted)):
            raise _BrokenError(
                "keys", f"{problem}; a receipt has the keys up to the one that signed it"
            )
        return "the public key that was given, or keys that it vouched for"

    @property
    def _keys(self) -> list[LedgerKey]:
        return [
            LedgerKey(
                each["number"],
                bytes.fromhex(each["public_key"]),
                each["time_ns"],
                bytes.fromhex(each["signature"]),
            )
            for each in self._receipt["keys"]
        ]

    def _check_event(self) -> str:
        try:
            event = event_from_text(canonical(self._receipt["event"]))
            refusal = refusal_of(event, self._receipt["entry"]["recorded_time_ns"])
        except (ValueError, ArithmeticError, AttributeError, TypeError) as error:
            raise _BrokenError("event", str(error)) from None
        if refusal is not None:
            raise _BrokenError("event", f"no ledger takes it: {refusal.value}")
        self._event = event
        return ""

    def _check_prices(self) -> str:
        event, own = self._of_event(), self._receipt["entry"]["price"]
        wanted = [own, *(each["price"] for each in self._receipt["corrections"])]
        for index, fields in enumerate(self._receipt["price_versions"]):
            where = f"price_versions[{index}]"
            try:
                version = version_from_text(canonical(fields))
            except (ValueError, ArithmeticError, KeyError) as error:
                raise _BrokenError(where, str(error)) from None
            if version.id not in wanted:
                raise _BrokenError(where, "its hash is none that the ledger names")
            if event.end_time_ns is None or version.effective_time_ns > event.end_time_ns:
                raise _BrokenError(where, "it was not in force when the request ended")
            self._versions[version.id] = version
        for index, price in enumerate(wanted):
            if price is not None and price not in self._versions:
                where = "entry.price" if not index else f"corrections[{index - 1}].price"
                raise _BrokenError(where, "no price version in the receipt has this hash")
        return self._priced_by()

    def _priced_by(self) -> str:
        """What priced it, or settled it; all of it as in the book that was given."""
        prices = [("entry.price", self._receipt["entry"]["price"])]
        for index, each in enumerate(self._receipt["corrections"]):
            prices.append((f"corrections[{index}].price", each["price"]))
        named = [(where, self._versions[price]) for where, price in prices if price is not None]
        if not named:
            return "no price version covered the request"
        note = "; ".join(_name_of(version) for _, version in named)
        book, event = self._given.book, self._of_event()
        if book is None:
            return note
        assert event.end_time_ns is not None, "it is one that a ledger takes"
        held = book.version_for(event.end_time_ns, event.model)
        for where, version in named:
            if held is None or held.id != version.id:
                other = _name_of(held) if held is not None else "no version"
                raise _BrokenError(
                    where,
                    f"the book that was given has {other} for it, and not {_name_of(version)}",
                )
        return f"{note}, as in the book that was given"

    def _check_lines(self) -> str:
        event, said = self._of_event(), self._receipt["lines"]
        made = [line_fields(line) for line in self._rated(event)]
        for index, (line, follows) in enumerate(zip(said, made, strict=False)):
            for name, value in follows.items():
                if line[name] != value:
                    raise _BrokenError(
                        f"lines[{index}].{name}", f"is {line[name]}, and rating gives {value}"
                    )
        if len(said) != len(made):
            raise _BrokenError("lines", f"there are {len(said)}, and rating gives {len(made)}")
        return f"{len(said)} lines" if len(said) != 1 else "1 line"

    def _check_amount(self) -> str:
        receipt, version = self._receipt, self._version
        total = to_text(total_of(self._rated(self._of_event())))
        if receipt["amount"] != total:
            raise _BrokenError("amount", f"is {receipt['amount']}, and the lines are {total}")
        settled = [self._versions[PriceId(p)].currency for p in self._settling]
        currency = version.currency if version is not None else next(iter(settled), "")
        if receipt["currency"] != currency:
            raise _BrokenError("currency", f"is {receipt['currency']}, and prices {currency}")
        return f"{total} {currency}".strip()

    def _check_entry(self) -> str:
        said, event = self._receipt["entry"], self._of_event()
        previous = EntryHash(bytes.fromhex(said["previous_hash"]))
        position = said["position"]
        if position < 1:
            raise _BrokenError("entry.position", "positions begin with 1")
        if position == 1 and previous != genesis_hash(self._receipt["ledger"]):
            raise _BrokenError(
                "entry.previous_hash", "is not what a chain of this ledger begins at"
            )
        entry = Entry(
            position,
            said["recorded_time_ns"],
            canonical(self._receipt["event"]),
            said["price"],
            rate(event, self._version),
        )
        if entry.hash_after(previous).hex() != said["hash"]:
            raise _BrokenError(
                "entry.hash", "does not follow from the entry and the hash before it"
            )
        return f"position {position:,}"

    def _check_corrections(self) -> str:
        event = self._of_event()
        prices = (self._receipt["entry"], *self._receipt["corrections"])
        if any(each["price"] not in (None, *self._versions) for each in prices):
            raise _UncheckedError("goes by price versions that do not hold")
        problem = corrections_problem(self._receipt, event, self._versions)
        if problem is not None:
            raise _BrokenError(*problem)
        count = len(self._receipt["corrections"])
        owed = f"{self._receipt['owed']} {self._receipt['currency']}".strip()
        return f"{count}, {owed} owed" if count else "none until it was issued"

    def _check_blocks(self) -> str | Finding:
        proof = self._of_event().proof
        if proof is None:
            return Finding(
                "blocks",
                Result.SKIPPED,
                "event.proof",
                "the event has none: no prompt token is charged, or its worker made none",
            )
        return f"{proof.block_count:,} of {proof.block_tokens} tokens, {len(proof.runs)} runs"

    def _check_opening(self) -> str | Finding:
        proof = self._of_event().proof
        if not self._opening:
            return Finding("opening", Result.SKIPPED, "", "the receipt is sealed")
        problem = opening_problem(proof, self._opening)
        if problem:
            raise _BrokenError("opening", problem)
        return ""

    def _check_tokens(self) -> str | Finding:
        event, token_ids = self._of_event(), self._given.token_ids
        if token_ids is None:
            return Finding("tokens", Result.SKIPPED, "", "none were given")
        problem = token_problem(event, self._opening, token_ids)
        if problem is not None:
            raise _BrokenError(*problem)
        return f"{event.tokens.prompt:,} tokens are those of the receipt"

    def _of_event(self) -> UsageEvent:
        """Raises _UncheckedError where that could not be read."""
        if self._event is None:
            raise _UncheckedError("goes by the event, which does not hold")
        return self._event

    @property
    def _version(self) -> PriceVersion | None:
        """That rated it; None: unrated. Raises _UncheckedError where it is not there."""
        price = self._receipt["entry"]["price"]
        if price is None:
            return None
        if price not in self._versions:
            raise _UncheckedError("goes by its price version, which does not hold")
        return self._versions[price]

    def _rated(self, event: UsageEvent) -> Sequence[RatedLine]:
        version = self._version
        return rated_lines(facts_of(event), version) if version is not None else ()

    @property
    def _settling(self) -> list[str]:
        prices = [each["price"] for each in self._receipt["corrections"]]
        return [price for price in prices if price is not None and price in self._versions]


def _name_of(version: PriceVersion) -> str:
    return f"{version.name}, {version.id[:16]}"


def _changed(parts: Sequence[str]) -> Finding:
    named = ", ".join(parts[:PARTS_NAMED_MAX])
    more = f" and {len(parts) - PARTS_NAMED_MAX} more" if len(parts) > PARTS_NAMED_MAX else ""
    return Finding(
        "signature", Result.FAILED, named + more, "was changed after the receipt was signed"
    )
