"""A frozen picture of the engine, for metrics and GetModel. Any thread."""

from dataclasses import dataclass

__all__ = ["EngineStats"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges as of the last step; `*_total` fields only grow."""

    page_count: int
    free_page_count: int
    """Pages that hold nothing."""
    cached_page_count: int
    """Pages that hold a finished request's block and can be taken at once."""
    waiting_count: int
    """Requests without pages, those that were put back included."""
    loading_count: int
    running_count: int
    """Requests with pages, loading ones not included."""
    prefill_tokens_per_second: int = 0
    """As it was lately, while prompts were computed; 0: not measured."""
    prefill_tokens_total: int = 0
    decode_tokens_total: int = 0
    recomputed_tokens_total: int = 0
    """Of both: had been there before their request was put back."""
    preemptions_total: int = 0
    """Requests put back because a running one needed their pages."""
    steps_total: int = 0
    evicted_pages_total: int = 0
    restored_blocks_total: int = 0
    abandoned_transfers_total: int = 0
    """Calls to the cache service that did not return in time."""
    offered_blocks_total: int = 0
    """Blocks offered to the cache service."""
    skipped_stores_total: int = 0
    """Offers not made because too many waited."""
