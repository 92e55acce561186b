#!/usr/bin/env bash
# Everything that must exist before the server runs from this tree: compiler, libnghttp2, venv, packages, extensions.
# Does only what is missing or changed. VENV=DIR and PYTHON=COMMAND choose the venv and the interpreter behind it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

python_is_usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if have "$candidate" && python_is_usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python >= 3.10 found (tried ${PYTHON:-python3, python3.10 to python3.14}); set PYTHON="
}

# packages_for_python PYTHON SUFFIX: Debian's package name, e.g. python3.11-venv.
debian_python() { "$1" -c "import sys; print('python%d.%d-$2' % sys.version_info[:2])"; }

make_venv() {
  local python=$1
  [ -x "$VENV/bin/python" ] && return
  "$python" -c 'import ensurepip, venv' 2>/dev/null || system_packages "$(debian_python "$python" venv)"
  say "creating $VENV"
  "$python" -m venv "$VENV"
}

compiler() {
  local CC=${CC:-cc} CXX=${CXX:-c++}
  # CC may be two words, as with ccache.
  { have "${CC%% *}" && have "${CXX%% *}"; } || system_packages g++ libc6-dev
  "$VENV/bin/python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    system_packages "$(debian_python "$VENV/bin/python" dev)"
}

# libnghttp2 carries the gRPC port. Its header is looked for as the compiler will look for it.
http2_library() {
  # shellcheck disable=SC2086
  echo '#include <nghttp2/nghttp2.h>' | ${CC:-cc} -E - >/dev/null 2>&1 || system_packages libnghttp2-dev
}

pip_install() {
  if ! "$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-input "$@" >build/pip.log 2>&1 </dev/null
  then
    grep -v '^WARNING' build/pip.log | tail -n 20 >&2
    die "pip install failed; whole log: build/pip.log"
  fi
}

install_packages() {
  local stamp="$VENV/.triton_fast" list
  list=$("$VENV/bin/python" scripts/requirements.py build core cpu openvino fil test)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$PWD
$list" ] && return
  say "installing Python packages into $VENV (a minute or two)"
  printf '%s\n' "$list" >build/requirements.txt
  pip_install -r build/requirements.txt
  # The package itself is linked to this tree; TF_EXT names no extension, so that nothing is compiled here.
  TF_EXT=none pip_install --no-deps --no-build-isolation -e .
  printf '%s\n%s\n' "$PWD" "$list" >"$stamp"
}

build() {
  local log=build/build.log started=$SECONDS
  if ! "$VENV/bin/python" setup.py -q build_ext --inplace >"$log" 2>&1 </dev/null; then
    build_failed "$log"
  fi
  # A nogil function that takes the GIL back after each call only gives a hint, never an error.
  grep -A6 'performance hint' "$log" >&2 || true
  local took=$((SECONDS - started))
  [ "$took" -lt 5 ] || say "built the native extensions in $took s"
}

mkdir -p build
python=$(find_python)
make_venv "$python"
compiler
http2_library
install_packages
build
