"""Which codec new blocks get: the one that was set, or with `auto` the one that pays here.

`auto` reads a few blocks back soon after they were written and measures disk and codecs on them;
again every `_BLOCKS_BETWEEN` blocks, because another model brings other bytes. Until the first
measurement blocks are stored as they are. Invariant: one measurement at a time. State belongs to
the event loop; measuring runs on a reader thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.codec import Codec
from storage.codec_choice import CodecChoice, Speeds, choose_codec
from storage.codec_speed import measure_codec
from storage.env import Env
from storage.errors import CapacityError, TierIOError
from storage.ssd.files import TruncatedFileError, aligned_buffer, read_all
from storage.ssd.format import record_bytes
from storage.ssd.reader import BlockReader
from storage.ssd.segments import SegmentTable
from storage.tier import BlockRecord, SsdLocation, rounded

__all__ = ["AUTO", "CODEC_SETTINGS", "CodecMeasurer", "CodecSelector", "Measure", "Placed"]

AUTO = "auto"
CODEC_SETTINGS = (*(codec.label for codec in Codec), AUTO)

Placed = tuple[BlockRecord, SsdLocation]
Measure = Callable[[Sequence[Placed]], Speeds]
"""Blocks; raises StorageError, which leaves the choice as it is."""

_BLOCKS_BETWEEN = 16_384
_SAMPLE_BLOCKS = 4
_SAMPLE_BYTES_MAX = 16 << 20
_SECONDS_MIN = 1e-9
"""For a clock that did not move, or went back."""


class CodecSelector:
    """Owned by the tier."""

    def __init__(self, setting: str) -> None:
        """Raises CapacityError for a name that is no codec's."""
        if setting not in CODEC_SETTINGS:
            raise CapacityError(f"codec must be one of {', '.join(CODEC_SETTINGS)}, not {setting}")
        self._auto = setting == AUTO
        self.choice = CodecChoice(Codec.NONE, "auto: no block has been measured yet")
        if not self._auto:
            self.choice = CodecChoice(Codec[setting.upper()], "set")
        self._left = 0
        self._measuring = False

    def due(self, block_count: int) -> bool:
        """Counts the blocks of an append; True when it is time to measure some of them."""
        self._left -= block_count
        return self._auto and not self._measuring and self._left < 0

    def sample(self, placed: Sequence[Placed]) -> list[Placed]:
        """The blocks of an append to measure, which is `due`. `settle` or `give_up` must follow,
        unless there is none."""
        chosen: list[Placed] = []
        size = 0
        for record, location in placed[:_SAMPLE_BLOCKS]:
            size += record.payload_bytes
            if size > _SAMPLE_BYTES_MAX and chosen:
                break
            chosen.append((record, location))
        self._measuring = bool(chosen)
        return chosen

    def settle(self, speeds: Speeds) -> bool:
        """Takes a measurement; True when the choice is another one now."""
        before = self.choice.codec
        self.choice = choose_codec(speeds)
        self._left = _BLOCKS_BETWEEN
        self._measuring = False
        return self.choice.codec is not before

    def give_up(self) -> None:
        """The measurement failed; the next append is another chance."""
        self._measuring = False


@dataclass(frozen=True, slots=True)
class CodecMeasurer:
    """Reads blocks back, timed, and tries every codec on them."""

    env: Env
    table: SegmentTable
    reader: BlockReader

    def __call__(self, placed: Sequence[Placed]) -> Speeds:
        """Raises CorruptBlockError, TierIOError. With buffered I/O the disk's speed is the page
        cache's: then nothing pays, which is right while that holds."""
        disk = 0.0
        payloads: list[memoryview] = []
        for record, location in placed:
            # The fastest counts: what others do with the disk only makes it look slower.
            seconds = max(self._read_seconds(location), _SECONDS_MIN)
            disk = max(disk, record_bytes(location.stored_bytes) / seconds)
            payload = aligned_buffer(rounded(record.payload_bytes))
            self.reader.read(record, location, payload)
            payloads.append(payload[: record.payload_bytes])
        clock = self.env.monotonic_seconds
        codecs = [measure_codec(c, payloads, clock) for c in Codec if c is not Codec.NONE]
        return Speeds(disk, codecs)

    def _read_seconds(self, location: SsdLocation) -> float:
        """Of the bytes alone: nothing is checked, and nothing of it is used."""
        segment = self.table.get(location.segment_id)
        buffer = aligned_buffer(record_bytes(location.stored_bytes))
        started = self.env.monotonic_seconds()
        try:
            if segment is not None:
                read_all(self.env, segment.fd, [buffer], location.offset)
        except (OSError, TruncatedFileError) as error:
            raise TierIOError(f"a block cannot be read back: {error}") from error
        return self.env.monotonic_seconds() - started
