#!/usr/bin/env bash
# A CycloneDX list of what is installed in the venv, build/sbom.cdx.json; with AUDIT=1 also the gate: pip-audit ends with
# an error when a package has a known vulnerability, or cannot be looked up. It asks a vulnerability service, so it needs
# a network that reaches one; the list itself does not. The tools have a venv of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
tools=build/audit-tools
out=build/sbom.cdx.json
[ -x "$VENV/bin/python" ] || die "there is no $VENV: run make first"
if [ ! -x "$tools/bin/cyclonedx-py" ] || [ ! -x "$tools/bin/pip-audit" ]; then
  say "installing cyclonedx-bom and pip-audit into $tools"
  mkdir -p build
  "$VENV/bin/python" -m venv "$tools"
  "$tools/bin/python" -m pip install --quiet cyclonedx-bom pip-audit >"$tools/pip.log" 2>&1 ||
    { tail -n 5 "$tools/pip.log" >&2; die "the tools could not be installed"; }
fi
"$tools/bin/cyclonedx-py" environment "$VENV/bin/python" --output-format JSON --output-file "$out"
say "wrote $out: $("$VENV/bin/python" -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["components"]))' "$out") packages"
if [ "${AUDIT:-0}" = 1 ]; then
  "$VENV/bin/python" -m pip list --format=freeze --exclude-editable >build/installed.txt
  "$tools/bin/pip-audit" --strict --no-deps --disable-pip -r build/installed.txt || die "pip-audit: see above"
fi
