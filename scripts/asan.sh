#!/usr/bin/env bash
# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a tree of their own: build/asan/tree.
# PYTEST_ARGS are given to pytest; ASAN_TESTS chooses other tests than tests/native.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
python="$(cd "$VENV" && pwd)/bin/python"
tree=build/asan/tree
read -ra cc <<<"${CC:-cc}"

library() {
  local path
  path=$("${cc[@]}" -print-file-name="$1")
  [ -e "$path" ] || die "${cc[*]} has no $1; with gcc it belongs to the compiler's package"
  readlink -f "$path"
}

# OpenVINO's libraries are opened with RTLD_DEEPBIND, which no sanitizer bears.
without() { printf -- '--ignore=%s ' tests/native/test_"$1"*.py; }

say "building with sanitizers"
mkdir -p build/asan
if ! TF_ASAN=1 "$python" setup.py -q build_ext --build-lib "$tree" --build-temp build/asan/temp \
  >build/asan/build.log 2>&1 </dev/null; then
  build_failed build/asan/build.log
fi

# The sources are copied, so that nothing can fall back to the extensions of the ordinary build.
(cd "$tree" && find triton_fast tests bench -name '*.py' -delete 2>/dev/null) || true
tar -cf - --exclude='*.so' --exclude=__pycache__ triton_fast tests bench protos ext pyproject.toml | tar -xf - -C "$tree"

# A sanitizer lays its shadow over all of the address space, which trials of forests limit.
sed -i '/setrlimit(resource.RLIMIT_AS/d' "$tree/triton_fast/backends/fil/probe.py"

# libstdc++ goes first in line too: its exceptions must be known before the sanitizer looks for them.
preload="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so.6)"
export PYTHONMALLOC=malloc PYTHONPATH="$PWD/$tree" PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}" UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
cd "$tree"
# shellcheck disable=SC2086
LD_PRELOAD=$preload "$python" -c '
import importlib.machinery, pathlib, triton_fast
here = pathlib.Path.cwd()
assert pathlib.Path(triton_fast.__file__).is_relative_to(here), triton_fast.__file__
assert any(here.rglob("*" + importlib.machinery.EXTENSION_SUFFIXES[0])), "no extension was built"'
say "testing"
# shellcheck disable=SC2086
LD_PRELOAD=$preload "$python" -m pytest ${ASAN_TESTS:-tests/native $(without openvino)} ${PYTEST_ARGS:-}
for target in tests/fuzz/fuzz_*.py; do
  LD_PRELOAD=$preload TF_FUZZ_SECONDS=${TF_FUZZ_SECONDS:-5} "$python" "$target" </dev/null
done
