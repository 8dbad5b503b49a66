"""What a process that has started leaves out of its garbage collections, and until when."""

import gc
from contextlib import ExitStack

import pytest

from kvtier.collecting import leave_out_of_collections


@pytest.mark.parametrize("new_objects", [None, 12_345])
def test_it_holds_until_the_parts_close_and_not_after(new_objects):
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with ExitStack() as parts:
        leave_out_of_collections(parts, new_objects)
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold() == (new_objects or before[0], *before[1:])
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
