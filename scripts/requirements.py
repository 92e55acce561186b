"""Print the requirements of pyproject.toml: python scripts/requirements.py build core cpu test ...

``build`` is build-system.requires, ``core`` the project's dependencies, everything else an extra. pip install -e would
compile everything in a temporary folder each time; with this list the build stays incremental.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pip brings a parser of its own
    from pip._vendor import tomli as tomllib

GROUPS = {"build": ("build-system", "requires"), "core": ("project", "dependencies")}


def main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, None] = {}
    for group in sys.argv[1:]:
        table, key = GROUPS.get(group, ("", ""))
        rows = project[table][key] if table else project["project"]["optional-dependencies"][group]
        found.update(dict.fromkeys(rows))
    print("\n".join(found))


if __name__ == "__main__":
    main()
