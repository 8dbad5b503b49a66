"""A copy past the processor's caches that takes the xxh3-64 of what it writes in the same pass.

    memory -> registers -> memory        (stores that do not first read what they overwrite)
                   \\-> sum

A copy of a block, by NumPy, reads the source, reads the target's lines only to overwrite them, and
writes them; the checksum reads the block again. Here each byte crosses the memory bus twice, and is
in registers while it is summed: the sum is that of the very bytes that were written, whatever
anybody else does to either side meanwhile.

Written as vectors in LLVM's own language and compiled for the processor it runs on, which takes
milliseconds; called without the interpreter lock. The checksum is XXH3 with a seed, of inputs above
240 bytes (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md); `load_kernel` compares
with the library's before anything else does.

Any thread; immutable once made.
"""

import ctypes
import functools
import logging
import struct
import threading
import time
from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np
import xxhash
from llvmlite import ir
from numpy.typing import NDArray

__all__ = ["LINE_BYTES", "CopyKernel", "KernelError", "load_kernel"]

log = logging.getLogger(__name__)

LINE_BYTES = 64
"""A processor's cache line, a stripe of XXH3, and what sizes and targets are multiples of."""

SHORT_BYTES_MAX = 240
"""XXH3 treats inputs up to there in other ways."""

_STRIPES = 16
"""Of a block of XXH3: as many as its secret has room for, 8 bytes apart."""
_SCRAMBLE_AT, _LAST_AT, _MERGE_AT = 128, 121, 11
"""Offsets into the secret."""

_PRIMES_32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_PRIMES_64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_MIX = 0x165667919E3779F9
_START = (
    _PRIMES_32[2],
    *_PRIMES_64[:4],
    _PRIMES_32[1],
    _PRIMES_64[4],
    _PRIMES_32[0],
)
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)

_WORD, _LONG = ir.IntType(64), ir.IntType(128)
_LANES = ir.VectorType(_WORD, 8)
_NAME = "copy_summed"

_Addresses = NDArray[np.uint64]


_making = threading.Lock()


class KernelError(Exception):
    """The kernel cannot be had on this machine."""


class CopyKernel:
    """The compiled function. Keep it as long as calls run."""

    def __init__(self) -> None:
        """Raises KernelError."""
        began = time.perf_counter()
        try:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            machine = llvm.Target.from_default_triple().create_target_machine(
                cpu=llvm.get_host_cpu_name(),
                features=llvm.get_host_cpu_features().flatten(),
                opt=3,
            )
            parsed = llvm.parse_assembly(str(_module()))
            parsed.verify()
            self._engine = llvm.create_mcjit_compiler(parsed, machine)
            self._engine.finalize_object()
            address = self._engine.get_function_address(_NAME)
        except RuntimeError as error:
            raise KernelError(f"LLVM says {error}") from error
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 6)(address)
        self._check()
        log.info("compiled copies that sum", extra={"seconds": time.perf_counter() - began})

    def fits(self, size: int, targets: _Addresses) -> bool:
        """Whether blocks of `size` bytes can be copied to these addresses."""
        return size > SHORT_BYTES_MAX and not size % LINE_BYTES and not (targets % LINE_BYTES).any()

    def copy(
        self, sources: _Addresses, targets: _Addresses, size: int, seeds: _Addresses
    ) -> Sequence[int]:
        """Copies blocks of `size` bytes from address to address; the xxh3-64 of each, seeded.

        REQUIRES: `fits`; the addresses are those of so many bytes, to be read and to be written,
        that nobody frees before this returns.
        """
        sums = np.empty(len(sources), np.uint64)
        at = [array.__array_interface__["data"][0] for array in (sources, targets, seeds, sums)]
        self._call(*at, len(sources), size)
        found: list[int] = sums.tolist()
        return found

    def _check(self) -> None:
        """Raises KernelError unless copies and sums are right, of sizes with and without a part of
        a block of XXH3 at their end."""
        for size in (256, 1024, 1088, 3 * 1024 + 960, 64 * 1024):
            data = (np.arange(size + LINE_BYTES, dtype=np.uint64) * 2654435761 >> 13).astype("u1")
            source, target = data[1 : size + 1], np.zeros(size + LINE_BYTES, np.uint8)
            start = target.__array_interface__["data"][0]
            gap = -start % LINE_BYTES
            seeds = np.array([0, 2**63 + 12345], np.uint64)
            where = np.array([source.__array_interface__["data"][0]] * 2, np.uint64)
            sums = self.copy(where, np.array([start + gap] * 2, np.uint64), size, seeds)
            right = [xxhash.xxh3_64_intdigest(source.data, seed) for seed in seeds.tolist()]
            if sums != right or not np.array_equal(target[gap : gap + size], source):
                raise KernelError("what was compiled copies or sums otherwise than the library")


def load_kernel() -> CopyKernel | None:
    """The process's kernel, made at the first call; None where it cannot be had, and the log says
    why."""
    with _making:
        return _made()


@functools.cache
def _made() -> CopyKernel | None:
    try:
        return CopyKernel()
    except KernelError as error:
        log.warning("blocks are copied and summed one after the other", extra={"why": str(error)})
        return None


def _module() -> ir.Module:
    """copy_summed(sources*, targets*, seeds*, sums*, count, size)."""
    module = ir.Module(_NAME)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_WORD] * 6), _NAME)
    _Writer(module, function).write()
    return module


class _Writer:
    """Writes the function's body: a loop over blocks, and in it one over a block's kilobytes."""

    def __init__(self, module: ir.Module, function: ir.Function) -> None:
        self._function = function
        self._past_caches = module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        # As words: llvmlite's table for strings is filled by the first thread that needs it, and
        # another that compiles meanwhile meets half of it.
        words = struct.unpack(f"<{len(_SECRET) // 8}Q", _SECRET)
        secret = ir.Constant(ir.ArrayType(_WORD, len(words)), words)
        self._plain = ir.GlobalVariable(module, secret.type, "secret")
        self._plain.initializer, self._plain.global_constant = secret, True
        self._b = ir.IRBuilder(function.append_basic_block("entry"))

    def write(self) -> None:
        b = self._b
        sources, targets, seeds, sums, count, size = self._function.args
        self._secret = b.alloca(self._plain.type.pointee)
        self._size = size
        with _Loop(b, count) as loop:
            each = b.mul(loop.index, _word(8))
            source, target, seed = (
                b.load(self._pointer(b.add(base, each), _WORD))
                for base in (sources, targets, seeds)
            )
            self._make_secret(seed)
            total = self._copied(source, target)
            b.store(self._merged(total), self._pointer(b.add(sums, each), _WORD))
        b.fence("seq_cst")  # such stores are not ordered with others
        b.ret_void()

    def _make_secret(self, seed: ir.Value) -> None:
        """The seed, added to and taken from every other 8 bytes."""
        b = self._b
        signed = b.insert_element(_vector([0] * 8), seed, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0, 1] * 4)
        minus = b.insert_element(signed, b.neg(seed), ir.IntType(32)(1))
        added = b.shuffle_vector(minus, minus, mask)
        for at in range(0, len(_SECRET), LINE_BYTES):
            plain = self._load_at(self._plain, at)
            place = self._pointer(self._address(self._secret, at), _LANES)
            b.store(b.add(plain, added), place, align=1)

    def _copied(self, source: ir.Value, target: ir.Value) -> ir.Value:
        """Copies `size` bytes; the eight sums."""
        b = self._b
        whole = b.udiv(b.sub(self._size, _word(1)), _word(_STRIPES * LINE_BYTES))
        start = _vector(_START)
        with _Loop(b, whole, start) as loop:
            offset, total = b.mul(loop.index, _word(_STRIPES * LINE_BYTES)), loop.carried
            for stripe in range(_STRIPES):
                at = b.add(offset, _word(stripe * LINE_BYTES))
                data = self._moved(source, target, at)
                total = self._added(total, data, self._load_at(self._secret, 8 * stripe))
            loop.carry(self._scrambled(total))
        done = b.mul(whole, _word(_STRIPES * LINE_BYTES))
        stripes = b.udiv(b.sub(b.sub(self._size, _word(1)), done), _word(LINE_BYTES))
        with _Loop(b, stripes, loop.result) as rest:
            at = b.add(done, b.mul(rest.index, _word(LINE_BYTES)))
            data = self._moved(source, target, at)
            key = self._load(b.add(self._address(self._secret, 0), b.mul(rest.index, _word(8))))
            rest.carry(self._added(rest.carried, data, key))
        data = self._moved(source, target, b.sub(self._size, _word(LINE_BYTES)))
        return self._added(rest.result, data, self._load_at(self._secret, _LAST_AT))

    def _moved(self, source: ir.Value, target: ir.Value, at: ir.Value) -> ir.Value:
        data = self._load(self._b.add(source, at))
        place = self._pointer(self._b.add(target, at), _LANES)
        store = self._b.store(data, place, align=LINE_BYTES)
        store.set_metadata("nontemporal", self._past_caches)
        return data

    def _added(self, total: ir.Value, data: ir.Value, key: ir.Value) -> ir.Value:
        b = self._b
        mixed = b.xor(data, key)
        product = b.mul(b.and_(mixed, _vector([2**32 - 1] * 8)), b.lshr(mixed, _vector([32] * 8)))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 8), [1, 0, 3, 2, 5, 4, 7, 6])
        return b.add(b.add(total, b.shuffle_vector(data, data, mask)), product)

    def _scrambled(self, total: ir.Value) -> ir.Value:
        b = self._b
        total = b.xor(total, b.lshr(total, _vector([47] * 8)))
        total = b.xor(total, self._load_at(self._secret, _SCRAMBLE_AT))
        return b.mul(total, _vector([_PRIMES_32[0]] * 8))

    def _merged(self, total: ir.Value) -> ir.Value:
        b = self._b
        mixed = b.xor(total, self._load_at(self._secret, _MERGE_AT))
        result = b.mul(self._size, _word(_PRIMES_64[0]))
        for pair in range(4):
            first, second = (
                b.zext(b.extract_element(mixed, ir.IntType(32)(2 * pair + i)), _LONG)
                for i in (0, 1)
            )
            product = b.mul(first, second)
            high = b.trunc(b.lshr(product, _LONG(64)), _WORD)
            result = b.add(result, b.xor(b.trunc(product, _WORD), high))
        result = b.mul(b.xor(result, b.lshr(result, _word(37))), _word(_MIX))
        return b.xor(result, b.lshr(result, _word(32)))

    def _load(self, address: ir.Value) -> ir.Value:
        return self._b.load(self._pointer(address, _LANES), align=1)

    def _load_at(self, array: ir.Value, offset: int) -> ir.Value:
        return self._load(self._address(array, offset))

    def _address(self, array: ir.Value, offset: int) -> ir.Value:
        return self._b.add(self._b.ptrtoint(array, _WORD), _word(offset))

    def _pointer(self, address: ir.Value, of: ir.Type) -> ir.Value:
        return self._b.inttoptr(address, of.as_pointer())


class _Loop:
    """`for index in range(count)`, with one value carried from turn to turn."""

    def __init__(self, builder: ir.IRBuilder, count: ir.Value, carried: ir.Value | None = None):
        self._b = builder
        self._count = count
        self._start = _word(0) if carried is None else carried
        self._next: ir.Value | None = None

    def __enter__(self) -> "_Loop":
        b, before = self._b, self._b.block
        self._head, self._body, self._end = (
            b.append_basic_block(name) for name in ("head", "body", "end")
        )
        b.branch(self._head)
        b.position_at_end(self._head)
        self.index, self.carried = b.phi(_WORD), b.phi(self._start.type)
        self.index.add_incoming(_word(0), before)
        self.carried.add_incoming(self._start, before)
        b.cbranch(b.icmp_unsigned("<", self.index, self._count), self._body, self._end)
        b.position_at_end(self._body)
        return self

    def carry(self, value: ir.Value) -> None:
        self._next = value

    def __exit__(self, *_: object) -> None:
        b = self._b
        self.index.add_incoming(b.add(self.index, _word(1)), b.block)
        self.carried.add_incoming(self.carried if self._next is None else self._next, b.block)
        b.branch(self._head)
        b.position_at_end(self._end)

    @property
    def result(self) -> ir.Value:
        """What is carried when the loop has ended."""
        return self.carried


def _word(value: int) -> ir.Constant:
    return ir.Constant(_WORD, value)


def _vector(values: Sequence[int]) -> ir.Constant:
    return ir.Constant(_LANES, list(values))
