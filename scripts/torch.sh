#!/usr/bin/env bash
# PyTorch for the tests of its backend, which are skipped without it. A build for CPUs is taken where pip offers one, a
# CUDA build of some GB is not. TORCH=REQUIREMENT takes what that names, whatever it is; TORCH= nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

want=${TORCH-torch==2.13.0}
stamp="$VENV/.torch"
[ -n "$want" ] || exit 0
[ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || exit 0
pip=("$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-input)

# Exit code 0: pip would take a build that brings no packages of CUDA.
is_for_cpus() {
  "${pip[@]}" --dry-run --no-deps --ignore-installed --report build/torch.json "$want" >build/pip.log 2>&1 </dev/null &&
    "$VENV/bin/python" - <<'CODE'
import json
import sys

[found] = json.load(open("build/torch.json"))["install"]
needs = found["metadata"].get("requires_dist", [])
sys.exit(any(need.startswith(("nvidia-", "cuda-", "triton")) for need in needs))
CODE
}

mkdir -p build
if ! "$VENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then
  if [ -z "${TORCH+x}" ] && ! is_for_cpus; then
    say "pip offers no build of $want for CPUs here: the tests of PyTorch are skipped (TORCH=torch installs what there is)"
  else
    say "installing $want for the tests of PyTorch (a minute; TORCH= leaves it out)"
    if ! "${pip[@]}" "$want" >build/pip.log 2>&1 </dev/null; then
      tail -n 5 build/pip.log >&2
      die "pip could not install $want; TORCH= leaves it out"
    fi
  fi
fi
printf '%s' "$want" >"$stamp"
