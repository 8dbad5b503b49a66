"""What the engine may be told, and the limits it keeps. Frozen, any thread."""

from dataclasses import dataclass

from worker.prefix_units import EVERY_BLOCK, PrefixUnits

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Exactly one of `page_count` and `page_bytes` sizes the pool; a page holds one block.

    Raises ValueError when the values contradict each other.
    """

    page_count: int | None = None
    """Pages of the pool."""
    page_bytes: int | None = None
    """Or: bytes that all pages together may take; rounded down to whole pages."""
    step_tokens: int = 512
    """Tokens computed per step, decodes included; rounded down to whole blocks, at least one."""
    prompt_step_tokens: int = 0
    """The same of a step in which nobody decodes, where this is more than `step_tokens`."""
    running_requests_max: int = 16
    """Requests that hold pages at one time, loading ones included."""
    waiting_requests_max: int = 256
    """Requests accepted but not yet admitted; one more is refused."""
    load_timeout_seconds: float = 2.0
    """Longest that a request waits for the cache service."""
    age_limit_seconds: float = 5.0
    """A request that waited longer is admitted before any other, in order of arrival."""
    units: PrefixUnits = EVERY_BLOCK
    """What a hit may end at."""
    stores_waiting_max: int = 32
    """Offers to the cache service not yet taken by its thread; one more is skipped and counted."""

    def __post_init__(self) -> None:
        if (self.page_count is None) == (self.page_bytes is None):
            raise ValueError("set exactly one of page_count and page_bytes")
        for name in ("step_tokens", "running_requests_max", "waiting_requests_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.prompt_step_tokens < 0:
            raise ValueError("prompt_step_tokens must not be negative")
        if self.load_timeout_seconds < 0 or self.age_limit_seconds < 0:
            raise ValueError("time limits must not be negative")
        if self.stores_waiting_max < 1:
            raise ValueError("stores_waiting_max must be at least 1")

    def pages_for(self, block_bytes: int) -> int:
        """Pages the pool gets. Raises ValueError when it would have none."""
        if self.page_count is not None:
            count = self.page_count
        else:
            assert self.page_bytes is not None
            count = self.page_bytes // block_bytes
        if count < 1:
            raise ValueError(f"the page pool must hold at least one page of {block_bytes} bytes")
        return count
