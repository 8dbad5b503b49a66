"""Compiles the kernels for a CUDA device that is not here, down to its machine code. Run by
`test_triton_kernels.py` in a process of its own; a line for each."""

import inspect
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.attention.triton_kernels import attend_work, sum_parts

HOPPER = GPUTarget("cuda", 90, 32)
TENSORS = {"WORK": "*i64", "SPANS": "*i64", "TABLE": "*i64", "SUMS": "*i64"}
TENSORS |= {"PART": "*fp32", "PART_SUM": "*fp32"}
NUMBERS = {"scale": "fp32", "softcap": "fp32", "window": "i32"}
HEADS = {"GROUP": 4, "K_EACH": 1, "V_EACH": 1, "D": 128, "D1": 128, "D2": 16}
HEADS |= {"DV": 128, "DV1": 128, "DV2": 16, "BM": 64, "BN": 64, "PAGE": 64}
ASKED = {"SOFTCAP": False, "WINDOW": False, "HAS_SINKS": False, "PRECISION": "tf32"}
LATENT = {"GROUP": 16, "D": 576, "D1": 512, "D2": 64, "DV": 512, "DV1": 512, "BM": 16}
UNEVEN = {"D": 80, "D1": 64, "D2": 16, "DV": 80, "DV1": 64, "DV2": 16}
EVERYTHING = {"SOFTCAP": True, "WINDOW": True, "HAS_SINKS": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of 128, bf16": ("bf16", {}),
    "single queries, fp16": ("fp16", {"BM": 16}),
    "heads of 80 with everything, bf16": ("bf16", {**UNEVEN, **EVERYTHING}),
    "latents, bf16": ("bf16", LATENT),
}


def compiled(kernel: Any, kind: str, constants: dict[str, Any]) -> None:
    names = list(inspect.signature(kernel.fn).parameters)
    tensors = dict.fromkeys(("Q", "K", "V", "OUT", "SINKS"), f"*{kind}") | TENSORS
    signature = {
        name: "constexpr" if name in constants else (tensors | NUMBERS).get(name, "i64")
        for name in names
    }
    source = ASTSource(kernel, signature, {k: v for k, v in constants.items() if k in names})
    made = compile_kernel(source, target=HOPPER)
    print(f"{len(made.asm['cubin'])} bytes, {made.metadata.shared} bytes shared", end="")
    assert made.metadata.shared <= 160 * 1024


for name, (kind, other) in KINDS.items():
    compiled(attend_work, kind, HEADS | ASKED | other)
    print(f": {name}")
compiled(sum_parts, "bf16", {"DV": 80, "WIDTH": 128, "HAS_SINKS": True})
print(": sum of parts")
