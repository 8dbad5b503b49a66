"""Who signs: when a checkpoint is due, and how one key follows another.

Invariant: a checkpoint is a row of the transaction that wrote what it covers, or of a later one; it
never says more than what is committed with it. Checkpoints and keys are numbered without gaps.
Prepared on the main thread, then used on the ledger writer's only, in its transactions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, select

from billing.checkpoint import (
    Checkpoint,
    LedgerKey,
    key_id_of,
    public_bytes,
    sign_checkpoint,
    sign_key,
)
from billing.errors import LedgerKeyError
from billing.ledger_key import KeyFile
from billing.ledger_schema import checkpoints, ledger_keys
from billing.meter import Head

__all__ = ["CheckpointRule", "LedgerSigner", "stored_keys"]


@dataclass(frozen=True, slots=True)
class CheckpointRule:
    """How far the ledger goes without one."""

    entries: int = 10_000
    seconds: float = 60.0


class LedgerSigner:
    """Signs for one ledger. `prepare` before anything else."""

    def __init__(
        self,
        ledger_id: str,
        key_file: KeyFile,
        rule: CheckpointRule | None = None,
        *,
        accept_new_key: bool = False,
    ) -> None:
        """`accept_new_key`: take a key that the last one did not vouch for."""
        self.rule = rule or CheckpointRule()
        self._ledger_id = ledger_id
        self._file = key_file
        self._accept_new_key = accept_new_key
        self._private: Ed25519PrivateKey | None = None
        self._keys: list[LedgerKey] = []
        self._last: Checkpoint | None = None
        self._since_ns = 0

    @property
    def keys(self) -> Sequence[LedgerKey]:
        """Oldest first; the last one signs."""
        return tuple(self._keys)

    @property
    def last(self) -> Checkpoint | None:
        return self._last

    def prepare(self, connection: Connection, now_ns: int) -> None:
        """Finds the key that fits the ledger, or makes the first. Raises LedgerKeyError."""
        self.load(connection)
        self._since_ns = self._since_ns or now_ns
        private = self._file.load()
        if not self._keys:
            private = private or self._file.make()
            self._name(connection, private, private, now_ns)
        elif private is None or not self._fits(private):
            successor = self._file.load_next()
            if successor is not None and self._fits(successor):
                self._file.adopt_next()
                private = successor
            elif self._accept_new_key:
                private = private or self._file.make()
                self._name(connection, private, private, now_ns)
            else:
                raise self._misfit(private)
        self._private = private

    def load(self, connection: Connection) -> None:
        """What is stored: at the start, and after a commit that may or may not have been."""
        self._keys = stored_keys(connection)
        query = select(checkpoints).order_by(checkpoints.c.number.desc()).limit(1)
        row = connection.execute(query).mappings().one_or_none()
        self._last = None if row is None else checkpoint_of(dict(row), self._ledger_id)

    def due(self, head: Head, now_ns: int) -> bool:
        if not self.behind(head):
            return False
        since = head.position - (self._last.position if self._last else 0)
        return since >= self.rule.entries or now_ns - self._since_ns >= self.rule.seconds * 1e9

    def behind(self, head: Head) -> bool:
        """Whether there is anything that no checkpoint covers."""
        last = self._last
        covered = (last.position, last.refused_count) if last is not None else (0, 0)
        return covered != (head.position, head.refused_count)

    def sign(self, connection: Connection, head: Head, now_ns: int) -> Checkpoint:
        """Adds a checkpoint of `head`; it counts once the transaction is committed: `committed`."""
        assert self._private is not None, "prepare comes first"
        number = self._last.number + 1 if self._last is not None else 1
        made = sign_checkpoint(self._private, self._ledger_id, number, head, now_ns)
        connection.execute(checkpoints.insert(), [checkpoint_row(made)])
        return made

    def sign_bytes(self, message: bytes) -> bytes:
        """By the present key."""
        assert self._private is not None, "prepare comes first"
        return self._private.sign(message)

    def committed(self, checkpoint: Checkpoint) -> None:
        self._last = checkpoint
        self._since_ns = checkpoint.time_ns

    def name_successor(self, connection: Connection, now_ns: int) -> Ed25519PrivateKey:
        """Makes a key and has the present one vouch for it; `succeed` once it is committed."""
        assert self._private is not None, "prepare comes first"
        successor = self._file.make_next()
        self._name(connection, successor, self._private, now_ns)
        return successor

    def succeed(self, successor: Ed25519PrivateKey) -> None:
        self._file.adopt_next()
        self._private = successor

    def _name(
        self, connection: Connection, key: Ed25519PrivateKey, by: Ed25519PrivateKey, now_ns: int
    ) -> None:
        number = len(self._keys) + 1
        named = sign_key(by, public_bytes(key), self._ledger_id, number, now_ns)
        row = {
            "number": number,
            "key_id": named.key_id,
            "public_key": named.public_key,
            "time_ns": now_ns,
            "signature": named.signature,
        }
        connection.execute(ledger_keys.insert(), [row])
        self._keys.append(named)

    def _fits(self, private: Ed25519PrivateKey) -> bool:
        return public_bytes(private) == self._keys[-1].public_key

    def _misfit(self, private: Ed25519PrivateKey | None) -> LedgerKeyError:
        wanted, path = self._keys[-1].key_id, self._file.path
        found = f"is key {key_id_of(public_bytes(private))}" if private is not None else "is gone"
        return LedgerKeyError(
            f"the ledger is signed by key {wanted}, but {path} {found}; put the key back, or, if it"
            " is lost, start once with --set checkpoints.accept_new_key=true: whoever keeps the"
            " public key sees that it was not passed on",
            path=path,
            key_id=wanted,
        )


def stored_keys(connection: Connection) -> list[LedgerKey]:
    """As they are, by number; nothing about them is checked."""
    return [
        LedgerKey(row.number, bytes(row.public_key), row.time_ns, bytes(row.signature))
        for row in connection.execute(select(ledger_keys).order_by(ledger_keys.c.number))
    ]


def checkpoint_row(checkpoint: Checkpoint) -> dict[str, object]:
    names = [column.name for column in checkpoints.columns]
    return {name: getattr(checkpoint, name) for name in names}


def checkpoint_of(row: dict[str, object], ledger_id: str) -> Checkpoint:
    """Inverse of `checkpoint_row`; nothing is checked."""
    taken = {name: bytes(v) if isinstance(v, memoryview) else v for name, v in row.items()}
    return Checkpoint(ledger_id=ledger_id, **taken)  # type: ignore[arg-type]
