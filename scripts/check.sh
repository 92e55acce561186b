#!/usr/bin/env bash
# Static checks: ruff, cython-lint, mypy --strict, rules of layers, tree and pages. All run; the exit code tells whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
bin="$PWD/$VENV/bin"
[ "${VENV#/}" = "$VENV" ] || bin="$VENV/bin"
failed=()
# cython-lint calls pycodestyle by name.
export PATH="$bin:$PATH"

run() {
  local name=$1
  shift
  say "$name"
  "$@" </dev/null || failed+=("$name")
}

run ruff "$bin/ruff" check --quiet .
run cython-lint "$bin/cython-lint" ext
run mypy "$bin/mypy" --strict --no-error-summary triton_fast
run "layers, tree and pages" "$bin/python" -m pytest tests/unit/test_layers.py tests/unit/test_tree.py tests/unit/test_pages.py

[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
say "check: all passed"
