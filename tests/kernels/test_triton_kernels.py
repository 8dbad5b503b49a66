"""The Triton kernels: run by the interpreter, compiled for a device, and run on one if there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SECONDS_MAX = 800
"""A bound; alone on a machine they take half a minute."""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "kernel_cases.py"))


def run(*arguments: str, **environment: str) -> None:
    pytest.importorskip("triton", reason="Triton has no build for this machine")
    ran = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_kernels_in_the_interpreter() -> None:
    run(*PYTEST, TRITON_INTERPRET="1", KVTIER_ATTENTION_DEVICE="cpu")


def test_kernels_compile_for_a_device_that_is_not_here(tmp_path: Path) -> None:
    run(str(HERE / "compiled.py"), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_device() -> None:
    run(*PYTEST, TRITON_INTERPRET="0", KVTIER_ATTENTION_DEVICE="cuda")
