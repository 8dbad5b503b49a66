"""Data frozen to the type checker alone, of which thousands a second are made.

A frozen dataclass sets each field through `object.__setattr__`, which took a twentieth of what
billing spends on an event (a profile by py-spy). Nobody sets a field: mypy holds all of it
to that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as frozen_dataclass
else:
    from dataclasses import dataclass

    def frozen_dataclass(*, frozen: bool, slots: bool):
        """Takes the arguments of the checker's: `frozen=True, slots=True`."""
        assert frozen
        return dataclass(slots=slots, unsafe_hash=True)


__all__ = ["frozen_dataclass"]
