"""Attesting: the cache's side that ticks the witness, and has it attest what is open at the end."""

from cache_service.attest.witness import Witness
from cache_service.lease import LeaseTable
from cache_service.side import Side

__all__ = ["Attesting"]


class Attesting(Side):
    """Event loop only."""

    def __init__(self, witness: Witness, leases: LeaseTable) -> None:
        self._witness = witness
        self._leases = leases

    def tick(self) -> None:
        self._witness.tick()

    def check_integrity(self) -> None:
        assert self._witness.open_count == len(self._leases), "a lease without its witness"

    async def drain(self) -> None:
        await self._witness.close(dict(self._leases.all))
