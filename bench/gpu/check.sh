#!/usr/bin/env bash
# The check of everything that needs a GPU: builds, runs tests/gpu and the benchmarks of this folder, prints one table.
#
#   bench/gpu/check.sh [--tests] [--bench]     default: both
#
# PYTHON=COMMAND runs with that interpreter and its packages instead of the venv's (nothing is installed then; the
# extensions are built where they are missing). SECONDS_EACH limits one file of tests or one benchmark (150).
# Exits with 1 when there is no GPU or anything failed; logs are left in bench/out/gpu.
set -uo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib.sh
each=${SECONDS_EACH:-150}
out=bench/out/gpu
tests=1 bench=1
case "${1:-}" in
    --tests) bench=0 ;;
    --bench) tests=0 ;;
    '') ;;
    *) echo "unknown option '$1': --tests or --bench" >&2; exit 2 ;;
esac

if [ -z "${PYTHON:-}" ]; then
    scripts/setup.sh || exit 1
    PYTHON=$VENV/bin/python
elif ! "$PYTHON" -c 'import triton_fast._native.cuda.driver' 2>/dev/null; then
    "$PYTHON" setup.py -q build_ext --inplace || exit 1
fi
rm -rf "$out" && mkdir -p "$out"

"$PYTHON" -c '
import sys
from triton_fast._native.cuda import driver
driver.open_driver()
found = driver.devices()
for one in found:
    print(f"GPU-TABLE: GPU {one.id} | {one.name}, compute capability {one.capability[0]}.{one.capability[1]}, "
          f"{one.total_bytes / 2**30:.1f} GiB")
sys.exit(not found)' > "$out/devices.log" 2>&1 || { cat "$out/devices.log"; echo "no GPU was found" >&2; exit 1; }

failed=0
# Files of tests side by side: they mostly wait for servers to start. Each has its own time, so that one that hangs
# costs the others nothing.
if [ $tests = 1 ]; then
    declare -A running
    for file in tests/gpu/test_*.py; do
        name=$(basename "$file" .py)
        timeout -k 5 "$each" "$PYTHON" -m pytest -v -rs --timeout=100 -o filterwarnings= "$file" > "$out/$name.log" 2>&1 &
        running[$name]=$!
    done
    for name in "${!running[@]}"; do
        wait "${running[$name]}"
        status=$?
        # 5: a file whose tests were all skipped at collection.
        [ $status = 0 ] || [ $status = 5 ] || failed=1
        echo "GPU-TABLE: $name | $(tail -1 "$out/$name.log" | tr -d '=') (exit $status)" >> "$out/tests.log"
    done
fi
# Benchmarks one after the other: they are timed.
if [ $bench = 1 ]; then
    for name in onnxruntime pytorch shared_memory; do
        timeout -k 5 "$each" "$PYTHON" -m "bench.gpu.$name" > "$out/bench_$name.log" 2>&1
        status=$?
        [ $status = 0 ] || { failed=1; echo "GPU-TABLE: bench $name | exit $status" >> "$out/tests.log"; }
    done
fi

for log in "$out"/test_*.log "$out"/bench_*.log; do
    [ -e "$log" ] || continue
    if grep -qE '^(FAILED|ERROR|E  )|Traceback' "$log"; then
        echo "== $(basename "$log")"
        grep -E '^(FAILED|ERROR|E  )|Error' "$log" | cut -c1-300 | head -40
    fi
done
echo
echo '| what | measured |'
echo '| --- | --- |'
cat "$out"/devices.log "$out"/tests.log "$out"/test_*.log "$out"/bench_*.log 2>/dev/null \
    | sed -n 's/^.*GPU-TABLE: *\(.*\)$/| \1 |/p'
exit $failed
