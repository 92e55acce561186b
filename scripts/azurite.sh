#!/usr/bin/env bash
# Azurite, the emulator of Azure Blob Storage, from npm into build/azurite; prints the command that starts it. The tests
# of repositories in the cloud call this; it does nothing when it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
version=3.35.0
place=build/azurite
command=$place/node_modules/.bin/azurite-blob
if [ ! -x "$command" ] || [ "$(cat "$place/version" 2>/dev/null)" != "$version" ]; then
  have npm || die "npm is missing: install Node.js 20 or later"
  mkdir -p "$place"
  if ! npm install --prefix "$place" --no-audit --no-fund --no-save --omit=dev --ignore-scripts "azurite@$version" \
    >"$place/npm.log" 2>&1 </dev/null; then
    tail -n 15 "$place/npm.log" >&2
    die "npm could not install azurite; whole log: $place/npm.log"
  fi
  printf '%s' "$version" >"$place/version"
fi
printf '%s\n' "$PWD/$command"
