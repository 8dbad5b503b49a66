#!/bin/sh
# Everything that needs a CUDA device: the tests that are skipped without one, then the benchmarks.
#
#     benchmarks/gpu_run.sh DIRECTORY [PYTHON]
#
# Writes a log and, of each benchmark, a JSON object into DIRECTORY, and goes on when one fails;
# status 1 when any did, 2 without a device. Bounded: each step gets SECONDS_MAX (default 600).
# PYTHON has kvtier with the extras worker and gpu, and pytest. Run it at the repository's root.

set -u
out=${1:?"usage: benchmarks/gpu_run.sh DIRECTORY [PYTHON]"}
python=${2:-python}
seconds=${SECONDS_MAX:-600}
mkdir -p "$out"

"$python" - <<'PYTHON' || exit 2
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("gpu_run: torch finds no CUDA device here")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PYTHON

failed=0
step() {
    name=$1
    shift
    echo "== $name"
    if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then
        echo "   done"
    else
        echo "   failed, see $out/$name.log"
        failed=1
    fi
}
# A benchmark that prints its JSON.
printed() {
    name=$1
    shift
    step "$name" sh -c '"$@" >"$0"' "$out/$name.json" "$@"
}

kvtier="from kvtier.cli.main import main; main()"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
step kernels "$python" -m pytest -q -p no:cacheprovider tests/kernels/test_triton_kernels.py
step contracts "$python" -m pytest -q -p no:cacheprovider -m gpu tests/gpu
step page_in "$python" benchmarks/bench_page_in.py --json "$out/page_in.json"
step page_in_small "$python" benchmarks/bench_page_in.py --block-bytes 1048576 --blocks 4096 \
    --json "$out/page_in_small.json"
printed ttft_8b_32k "$python" -c "$kvtier" bench ttft --model-shape 8b --device cuda \
    --contexts 8192,32768 --decode-requests 1,8,32 --json
printed ttft_8b_128k "$python" -c "$kvtier" bench ttft --model-shape 8b --device cuda \
    --contexts 131072 --rounds 3 --decode-requests "" --json
printed ttft_1b "$python" -c "$kvtier" bench ttft --model-shape 1b --device cuda \
    --contexts 1024,4096,16384 --json
exit $failed
