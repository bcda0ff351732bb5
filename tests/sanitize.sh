#!/usr/bin/env bash
# The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: builds them anew, runs their tests, restores the build.
#   bash tests/sanitize.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export KITHKIN_KERNELS=all
trap 'python -m kithkin.ops.kernels > /dev/null 2>&1' EXIT
KITHKIN_SANITIZE=1 python -m kithkin.ops.kernels 2> /dev/null
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    python -m pytest tests/test_native.py tests/test_ops_attention.py tests/test_ops_feedforward.py tests/test_ops_gated.py \
    tests/test_ops_fuzz.py "$@"
