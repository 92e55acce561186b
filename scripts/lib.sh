# Shared by the scripts: short progress lines, system packages on demand, the venv's place. Source it from the root.

VENV=${VENV:-.venv}

say() { printf '%s\n' "[triton_fast] $*"; }
die() { printf '%s\n' "[triton_fast] error: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# system_packages PACKAGE...: install with apt-get where that needs no password, else name what is missing.
system_packages() {
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      die "missing system packages; install them and run make again: apt-get install $*"
    fi
  fi
  have apt-get || die "missing system packages, and this is no Debian or Ubuntu: the counterparts of $* are needed"
  say "installing system packages: $*"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get -qq update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"
  } >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    rm -f "$log"
    die "apt-get could not install: $*"
  fi
  rm -f "$log"
}

# need COMMAND PACKAGE...: the command exists, or the packages are installed.
need() {
  have "$1" && return
  shift
  system_packages "$@"
}

# build_failed LOG: the compilers' own complaints, or the end of the log when there is none.
build_failed() {
  grep -E '(^|/)[^ ]+\.(pyx|pxd|c|cpp|h):[0-9]+:[0-9]+: ' "$1" | grep -v 'warning:' | head -n 20 >&2 ||
    tail -n 30 "$1" >&2
  die "the build failed; whole log: $1"
}
