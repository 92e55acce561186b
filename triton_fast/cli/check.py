"""``python -m triton_fast check REPOSITORY...``: find what is wrong in repositories without loading them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from triton_fast.cli.table import BY_NAME
from triton_fast.errors import ServerError
from triton_fast.memory import Gpus
from triton_fast.memory import find as find_gpus
from triton_fast.repository import cloud
from triton_fast.repository.check import Checker, report
from triton_fast.scheduling import warmup
from triton_fast.scheduling.queues import queue_options
from triton_fast.scheduling.sequence import max_waiting, read_states


def main(argv: Sequence[str]) -> int:
    """Print the findings; return 0 when there is no error, 1 when there is one, 2 when a repository can not be read."""
    parser = argparse.ArgumentParser(
        prog="python -m triton_fast check",
        description="Find what is wrong in model repositories, with file, line, column and what to do. Loads no model.",
    )
    parser.add_argument("repository", nargs="+", help="a directory, or a place in a store: s3://, gs://, as://")
    parser.add_argument("--model-config-name", default="", help="check configs/NAME.pbtxt where a model has it")
    parser.add_argument("--disable-auto-complete-config", action="store_true", help="a config must say everything")
    parser.add_argument("--backend-directory", type=Path, help="where Python-based backends are")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    given = parser.parse_args(argv)
    opened = None
    try:
        paths = [Path(path) for path in given.repository if not cloud.kind_of(path)]
        if len(paths) < len(given.repository):
            opened = cloud.OpenedSources([path for path in given.repository if cloud.kind_of(path)])
            paths += opened.fetch_all()
        least = BY_NAME["min-supported-compute-capability"].default
        checker = Checker(
            paths, config_name=given.model_config_name, strict=given.disable_auto_complete_config,
            backend_directory=given.backend_directory, gpus=Gpus(find_gpus()[0], least=least).ids,
            also=(lambda config, _: queue_options(config), lambda config, _: max_waiting(config), read_states,
                  warmup.read_files),
        )  # fmt: skip
        found = checker.run()
        models = sum(len(source.list_models()) for source in checker.sources)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if opened is not None:
            opened.close()
    if given.json:
        for finding in found:
            print(json.dumps(dataclasses.asdict(finding)))
    else:
        print("\n".join(report(found, models)))
    return 1 if any(not finding.warning for finding in found) else 0
