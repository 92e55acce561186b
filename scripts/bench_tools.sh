#!/usr/bin/env bash
# The system's measuring tools, by name: bench_tools.sh wrk h2load nginx valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
PATH=$PATH:/usr/sbin
for tool in "$@"; do
  case $tool in
    nginx) need nginx nginx-light ;;
    h2load) need h2load nghttp2-client ;;
    *) need "$tool" "$tool" ;;
  esac
done
