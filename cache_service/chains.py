"""What a chain of block hashes must be before the cache looks at it. Pure."""

from collections.abc import Sequence

from cache_service.errors import MalformedChainError, TooManyBlocksError
from kvtier.keys import HASH_BYTES, BlockHash

__all__ = ["check_chain"]


def check_chain(chain: Sequence[BlockHash], blocks_max: int) -> None:
    """Raises MalformedChainError, TooManyBlocksError."""
    if not chain:
        raise MalformedChainError("the chain is empty")
    if len(chain) > blocks_max:
        raise TooManyBlocksError(
            f"{len(chain)} blocks in one call; at most {blocks_max} fit", blocks_max=blocks_max
        )
    if any(len(block_hash) != HASH_BYTES for block_hash in chain):
        raise MalformedChainError(f"a block hash has {HASH_BYTES} bytes")
    if len(set(chain)) != len(chain):
        raise MalformedChainError("a block hash appears twice in the chain")
