#!/usr/bin/env bash
# The fuzzers tests/fuzz/fuzz_*.py, TF_FUZZ_SECONDS (default 60) for all of them together: each is told its share in the
# same variable. All run; the exit code is 0 only when none found anything.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
total=${TF_FUZZ_SECONDS:-60}
targets=(tests/fuzz/fuzz_*.py)
[ -e "${targets[0]}" ] || die "no fuzzer found in tests/fuzz"
share=$((total / ${#targets[@]}))
[ "$share" -ge 1 ] || share=1
say "${#targets[@]} fuzzers, $share s each"
failed=()
for target in "${targets[@]}"; do
  TF_FUZZ_SECONDS=$share timeout $((share * 2 + 120)) "$VENV/bin/python" "$target" </dev/null || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
say "fuzz: ${#targets[@]} passed"
