"""What a piece of work cost: seconds, CPU of all threads, bytes to the device. Any thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Cost", "device_bytes_written", "measured"]


@dataclass
class Cost:
    """Filled when the measured block ends."""

    payload_bytes: int = 0
    """Set by the work."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """User and system time of this process with all its threads."""
    device_bytes: int | None = None
    """As the kernel accounts writes to this process; None where it does not."""
    block_seconds: list[float] = field(default_factory=list)
    """Of single blocks, where the work takes them one at a time."""

    @property
    def bytes_per_second(self) -> float:
        return self.payload_bytes / self.seconds

    @property
    def cpu_seconds_per_gb(self) -> float:
        return self.cpu_seconds / (self.payload_bytes / 1e9)

    @property
    def amplification(self) -> float | None:
        """Bytes to the device for each byte of payload."""
        return None if self.device_bytes is None else self.device_bytes / self.payload_bytes


@contextmanager
def measured() -> Iterator[Cost]:
    """Fills the cost it yields."""
    cost = Cost()
    device, cpu, began = device_bytes_written(), time.process_time(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - began
    cost.cpu_seconds = time.process_time() - cpu
    after = device_bytes_written()
    if device is not None and after is not None:
        cost.device_bytes = after - device


def device_bytes_written() -> int | None:
    """What this process caused to be written to devices; None without such accounting."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) for x in lines if x.startswith("write_bytes:")), None)
