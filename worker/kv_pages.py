"""The bytes behind the page pool: one tensor, `[pages, elements of all layers]`.

Block-first, so a page is one contiguous run and moving a block is one copy. Each layer's keys and
values are seen through strided views of that tensor. Transfers see pages through `landing` and
`source` only.

Written by the engine's thread, and by a transfer thread only into pages its job holds.
"""

from collections.abc import Callable, Sequence
from typing import NewType

import torch

from worker.device_copies import DeviceCopies, copies_for
from worker.device_pages import DeviceLanding, DeviceSource
from worker.host_pages import HostPages
from worker.landing import Landing, PageBytes, Source
from worker.layout import BlockLayout, Columns
from worker.paged_columns import PagedColumns

__all__ = ["KvPages", "PageId"]

PageId = NewType("PageId", int)


class KvPages:
    """`page_count` pages of `layout`, of which the first `touched_count` are in memory at once.

    Pages past `touched_count` cost address space only, until they are first written.
    """

    def __init__(
        self,
        layout: BlockLayout,
        page_count: int,
        device: torch.device,
        touched_count: int = 0,
        copies: Callable[[torch.Tensor], DeviceCopies | None] = copies_for,
    ) -> None:
        """`copies`: how pages are moved, None for those in host memory."""
        self.layout = layout
        self.page_count = page_count
        self.scratch_page = PageId(page_count)
        """One more, which no sequence gets: what is padding is written there."""
        self._data = torch.empty(
            page_count + 1, layout.block_elements, dtype=layout.dtype, device=device
        )
        # The first touch of memory costs several times a copy: pay it before the first request.
        self._data[:touched_count].zero_()
        self._copies = copies(self._data)
        self.keys = [self._columns(keys) for keys, _ in layout.columns]
        """Per layer, as are `values`."""
        self.values = [self._columns(values) for _, values in layout.columns]

    def copy_page(self, source: PageId, target: PageId) -> None:
        self._data[target].copy_(self._data[source])

    def landing(self, pages: Sequence[PageId]) -> Landing:
        """For a load into `pages`. Engine's thread, as `source`."""
        if self._copies is None:
            return self._host_pages(pages)
        return DeviceLanding(self._copies, pages)

    def source(self, pages: Sequence[PageId]) -> Source:
        """For a store of `pages`."""
        if self._copies is None:
            return self._host_pages(pages)
        return DeviceSource(self._copies, pages)

    def _columns(self, at: Columns) -> PagedColumns:
        return PagedColumns(self._data, at, self.layout.block_tokens)

    def _host_pages(self, pages: Sequence[PageId]) -> HostPages:
        return HostPages([self._bytes_of(page) for page in pages])

    def _bytes_of(self, page: PageId) -> PageBytes:
        content: PageBytes = self._data[page].view(torch.uint8).numpy()
        return content
