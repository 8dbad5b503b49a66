"""What a service's full garbage collections look at: what came after its start, and no more.

Modules, tables and models are some hundred thousand objects that stay. A full collection that walks
them stops the interpreter for tens of milliseconds, again and again while calls make objects of
their own. Any thread.
"""

import gc
from contextlib import AsyncExitStack, ExitStack

__all__ = ["leave_out_of_collections"]


def leave_out_of_collections(parts: AsyncExitStack | ExitStack) -> None:
    """All that was made until now, until `parts` close. Called once by a process that has
    started."""
    gc.collect()
    gc.freeze()
    parts.callback(gc.unfreeze)
