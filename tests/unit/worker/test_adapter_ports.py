"""One way to the cache service for each adapter: made when it is wanted, closed with the rest."""

from dataclasses import dataclass, field

import numpy as np

from kvtier.blocks import MissReason
from kvtier.keys import BlockHash
from tests.tiny_models import BytesCache
from worker.adapter_ports import AdapterPorts
from worker.cache_port import CacheHints

BLOCK = BlockHash(bytes(32))


class Port(BytesCache):
    open = True

    def connected(self) -> bool:
        return self.open

    def close(self) -> None:
        self.open = False


@dataclass
class Made:
    """The ports that were made, by adapter."""

    ports: dict[str, Port] = field(default_factory=dict)

    def __call__(self, adapter: str) -> Port:
        assert adapter not in self.ports
        self.ports[adapter] = Port()
        return self.ports[adapter]


def page(number: int) -> np.ndarray:
    return np.full(4, number, dtype=np.uint8)


def test_blocks_go_to_the_port_of_their_adapter_and_come_from_no_other() -> None:
    made = Made()
    ports = AdapterPorts(made)
    assert list(made.ports) == [""]
    for number, adapter in enumerate(("", "poet", "clerk")):
        hints = CacheHints(adapter=adapter)
        assert not ports.restore("r", [BLOCK], [page(9)], 1.0, hints).tiers
        assert ports.store("r", [BLOCK], [page(number)], hints).stored_count == 1
    assert list(made.ports) == ["", "poet", "clerk"]
    for number, adapter in enumerate(("", "poet", "clerk")):
        found = page(9)
        assert ports.restore("r", [BLOCK], [found], 1.0, CacheHints(adapter=adapter)).tiers
        assert found.tolist() == [number] * 4
        assert len(made.ports[adapter].blocks) == 1


def test_all_are_closed_and_none_is_made_after_that() -> None:
    made = Made()
    ports = AdapterPorts(made)
    ports.store("r", [BLOCK], [page(0)], CacheHints(adapter="poet"))
    assert ports.connected()
    ports.close()
    ports.close()
    assert not any(port.open for port in made.ports.values())
    assert not ports.connected()
    late = CacheHints(adapter="clerk")
    assert ports.restore("r", [BLOCK], [page(9)], 1.0, late).miss_reason is MissReason.UNAVAILABLE
    assert ports.store("r", [BLOCK], [page(9)], late).refused_count == 1
    assert list(made.ports) == ["", "poet"]
