#!/usr/bin/env bash
# The system's measuring tools, by name: bench_tools.sh wrk nginx valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
PATH=$PATH:/usr/sbin
for tool in "$@"; do
  case $tool in
    nginx) need nginx nginx-light ;;
    *) need "$tool" "$tool" ;;
  esac
done
