"""The bytes behind the page pool: one tensor, `[pages, elements of all layers]`.

Block-first, so a page is one contiguous run and moving a block is one copy. Each layer's keys and
values are seen through strided views of that tensor. Invariant: on a CPU the byte views
given out are the pages themselves; elsewhere they are host buffers that the caller imports.

Written by the engine's thread, and by a transfer thread only into pages its job holds.
"""

from collections.abc import Sequence
from typing import NewType

import torch

from worker.cache_port import PageBytes
from worker.layout import BlockLayout, Columns
from worker.paged_columns import PagedColumns

__all__ = ["KvPages", "PageId"]

PageId = NewType("PageId", int)


class KvPages:
    """`page_count` pages of `layout`, of which the first `touched_count` are in memory at once.

    Pages past `touched_count` cost address space only, until they are first written.
    """

    def __init__(
        self, layout: BlockLayout, page_count: int, device: torch.device, touched_count: int = 0
    ) -> None:
        self.layout = layout
        self.page_count = page_count
        self.direct = device.type == "cpu"
        self._data = torch.empty(
            page_count, layout.block_elements, dtype=layout.dtype, device=device
        )
        # The first touch of memory costs several times a copy: pay it before the first request.
        self._data[:touched_count].zero_()
        self.keys = [self._columns(keys) for keys, _ in layout.columns]
        """Per layer, as are `values`."""
        self.values = [self._columns(values) for _, values in layout.columns]

    def copy_page(self, source: PageId, target: PageId) -> None:
        self._data[target].copy_(self._data[source])

    def export_bytes(self, pages: Sequence[PageId]) -> list[PageBytes]:
        """The content of `pages`: views on a CPU, else copies in host memory."""
        if self.direct:
            return [self._bytes_of(page) for page in pages]
        # Page by page: gathering them first would take as much memory again on the device.
        host = torch.empty(len(pages), self.layout.block_elements, dtype=self.layout.dtype)
        for row, page in zip(host, pages, strict=True):
            row.copy_(self._data[page])
        return [row.view(torch.uint8).numpy() for row in host]

    def landing_bytes(self, pages: Sequence[PageId]) -> list[PageBytes]:
        """Where a transfer thread writes new content of `pages`; see `import_bytes`."""
        if self.direct:
            return [self._bytes_of(page) for page in pages]
        host = torch.empty(len(pages), self.layout.block_elements, dtype=self.layout.dtype)
        return [row.view(torch.uint8).numpy() for row in host]

    def import_bytes(self, pages: Sequence[PageId], landed: Sequence[PageBytes]) -> None:
        """Takes what landed into `pages`; nothing to do where landing wrote the pages."""
        if self.direct:
            return
        for page, content in zip(pages, landed, strict=True):
            row = torch.from_numpy(content).view(self.layout.dtype)
            self._data[page].copy_(row)

    def _columns(self, at: Columns) -> PagedColumns:
        return PagedColumns(self._data, at, self.layout.block_tokens)

    def _bytes_of(self, page: PageId) -> PageBytes:
        content: PageBytes = self._data[page].view(torch.uint8).numpy()
        return content
