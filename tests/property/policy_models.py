"""The eviction policies as one would write them without caring for time or memory."""

from typing import Protocol

__all__ = ["MODELS", "PolicyModel"]


class PolicyModel(Protocol):
    """Slots in plain lists; `offered` is kept by the test."""

    def insert(self, slot: int, name: int, uses: int) -> None: ...
    def use(self, slot: int) -> None: ...
    def refresh(self, slot: int) -> None: ...
    def evict(self, slot: int) -> None: ...
    def remove(self, slot: int) -> None: ...
    def victim(self, offered: set[int]) -> int | None: ...


class LruModel:
    def __init__(self) -> None:
        self.by_age: list[int] = []

    def insert(self, slot: int, name: int, uses: int) -> None:
        self.by_age.append(slot)

    def use(self, slot: int) -> None:
        self.refresh(slot)

    def refresh(self, slot: int) -> None:
        self.by_age.remove(slot)
        self.by_age.append(slot)

    def evict(self, slot: int) -> None:
        self.by_age.remove(slot)

    remove = evict

    def victim(self, offered: set[int]) -> int | None:
        return next((slot for slot in self.by_age if slot in offered), None)


class GreedyDualModel:
    def __init__(self) -> None:
        self.by_age: list[int] = []
        self.uses: dict[int, int] = {}
        self.worth: dict[int, int] = {}
        self.clock = 0

    def insert(self, slot: int, name: int, uses: int) -> None:
        self.by_age.append(slot)
        self.uses[slot] = uses
        self.worth[slot] = self.clock + uses

    def use(self, slot: int) -> None:
        self.uses[slot] = min(2, self.uses[slot] + 1)
        self.refresh(slot)

    def refresh(self, slot: int) -> None:
        self.by_age.remove(slot)
        self.by_age.append(slot)
        self.worth[slot] = self.clock + self.uses[slot]

    def evict(self, slot: int) -> None:
        self.clock = max(self.clock, self.worth[slot])
        self.remove(slot)

    def remove(self, slot: int) -> None:
        self.by_age.remove(slot)
        del self.uses[slot], self.worth[slot]

    def victim(self, offered: set[int]) -> int | None:
        ranked = [slot for slot in self.by_age if slot in offered]
        return min(ranked, key=lambda slot: (self.worth[slot], self.uses[slot]), default=None)


class ArcModel:
    def __init__(self) -> None:
        self.queues: tuple[list[int], list[int]] = ([], [])
        self.ghosts: tuple[list[int], list[int]] = ([], [])
        self.names: dict[int, int] = {}
        self.share = 0

    def insert(self, slot: int, name: int, uses: int) -> None:
        once, again = (max(1, len(ghosts)) for ghosts in self.ghosts)
        count = sum(len(queue) for queue in self.queues)
        if name in self.ghosts[0]:
            self.ghosts[0].remove(name)
            self.share = min(count + 1, self.share + max(1, again // once))
            uses = 2
        elif name in self.ghosts[1]:
            self.ghosts[1].remove(name)
            self.share = max(0, self.share - max(1, once // again))
            uses = 2
        self.names[slot] = name
        self.queues[uses > 1].append(slot)

    def use(self, slot: int) -> None:
        self.remove(slot)
        self.queues[1].append(slot)

    def refresh(self, slot: int) -> None:
        queue = self.queues[slot in self.queues[1]]
        queue.remove(slot)
        queue.append(slot)

    def evict(self, slot: int) -> None:
        count = sum(len(queue) for queue in self.queues)
        ghosts = self.ghosts[slot in self.queues[1]]
        if self.names[slot] in ghosts:
            ghosts.remove(self.names[slot])
        ghosts.append(self.names[slot])
        self.remove(slot)
        del self.ghosts[0][: max(0, len(self.ghosts[0]) - (count - len(self.queues[0])))]
        del self.ghosts[1][: max(0, len(self.ghosts[1]) - (count - len(self.ghosts[0])))]

    def remove(self, slot: int) -> None:
        self.queues[slot in self.queues[1]].remove(slot)

    def victim(self, offered: set[int]) -> int | None:
        first = 0 if len(self.queues[0]) > self.share else 1
        ranked = [*self.queues[first], *self.queues[1 - first]]
        return next((slot for slot in ranked if slot in offered), None)


class S3FifoModel:
    def __init__(self) -> None:
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghosts: list[int] = []
        self.names: dict[int, int] = {}
        self.uses: dict[int, int] = {}

    def insert(self, slot: int, name: int, uses: int) -> None:
        self.names[slot] = name
        self.uses[slot] = uses
        if name in self.ghosts:
            self.ghosts.remove(name)
            self.main.append(slot)
        else:
            self.small.append(slot)

    def use(self, slot: int) -> None:
        self.uses[slot] = min(4, self.uses[slot] + 1)

    def refresh(self, slot: int) -> None:
        pass

    def evict(self, slot: int) -> None:
        if slot in self.small:
            if self.names[slot] in self.ghosts:
                self.ghosts.remove(self.names[slot])
            self.ghosts.append(self.names[slot])
        self.remove(slot)
        del self.ghosts[: max(0, len(self.ghosts) - len(self.small) - len(self.main))]

    def remove(self, slot: int) -> None:
        (self.small if slot in self.small else self.main).remove(slot)

    def victim(self, offered: set[int]) -> int | None:
        while True:
            small = next((slot for slot in self.small if slot in offered), None)
            main = next((slot for slot in self.main if slot in offered), None)
            if small is None and main is None:
                return None
            full = len(self.small) * 10 >= len(self.small) + len(self.main)
            if small is not None and (full or main is None):
                if self.uses[small] <= 2:
                    return small
                self.small.remove(small)
                self.uses[small] = 1
                self.main.append(small)
            elif main is not None:
                if self.uses[main] == 1:
                    return main
                self.uses[main] -= 1
                self.main.remove(main)
                self.main.append(main)


MODELS: dict[str, type[PolicyModel]] = {
    "greedy_dual": GreedyDualModel,
    "lru": LruModel,
    "arc": ArcModel,
    "s3_fifo": S3FifoModel,
}
