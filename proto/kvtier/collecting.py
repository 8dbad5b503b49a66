"""What a service's full garbage collections look at: what came after its start, and no more.

Modules, tables and models are some hundred thousand objects that stay. A full collection that walks
them stops the interpreter for tens of milliseconds, again and again while calls make objects of
their own. Any thread.
"""

import gc
from contextlib import AsyncExitStack, ExitStack

__all__ = ["leave_out_of_collections"]


def leave_out_of_collections(
    parts: AsyncExitStack | ExitStack, new_objects: int | None = None
) -> None:
    """All that was made until now, until `parts` close. Called once by a process that has started.

    `new_objects`: how many there are before young ones are looked at; more where a call makes
    thousands of them, none of which is garbage before its end.
    """
    gc.collect()
    gc.freeze()
    parts.callback(gc.unfreeze)
    if new_objects is not None:
        before = gc.get_threshold()
        gc.set_threshold(new_objects, *before[1:])
        parts.callback(gc.set_threshold, *before)
