"""What the server says when it starts: Triton's tables, and of each model that failed the cause and what to do.

Knows options and reports; starts nothing. Source: spec/cli.md section 4, spec/users.md 14.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from triton_fast import backends
from triton_fast._version import TRITON_COMPAT
from triton_fast.cli import Options
from triton_fast.dataplane import EXTENSIONS
from triton_fast.errors import ServerError, describe
from triton_fast.observability import log, tables
from triton_fast.repository import LoadFailure, cloud
from triton_fast.repository.check import Checker

# The names that Triton's table has for --rate-limit.
_RATE = {"off": "OFF", "execution_count": "EXEC_COUNT"}
# More than one finding of a model is rarely more than a consequence of the first.
_MAX_FINDINGS = 5


def print_tables(
    options: Options,
    *,
    agents: Iterable[tuple[str, str]],
    listed: Iterable[backends.Listed],
    settings: Callable[[str], Mapping[str, str]],
    models: Iterable[tuple[str, str, str]],
    cache_enabled: bool,
) -> None:
    """Print what is used, what is served and what was asked for.

    Parameters
    ----------
    agents
        Name and path of each repository agent.
    listed
        The backends.
    settings
        ``--backend-config`` of a backend by name.
    models
        Name, version and status of each version.
    """
    log.table(tables.agents(agents))
    log.table(
        tables.backends((one.name, one.path, json.dumps(dict(settings(one.name))), one.version) for one in listed)
    )
    log.table(tables.models(tables.ModelRow(*row) for row in models))
    log.table(tables.options(option_rows(options, cache_enabled)))


def option_rows(options: Options, cache_enabled: bool) -> list[tuple[str, str]]:
    """Return Triton's table of options."""
    resources = [
        {"name": name, "count": count, **({"device": device} if device >= 0 else {})}
        for name, count, device in options.rate_limit_resource
    ]
    return [
        ("server_id", options.server_id),
        ("server_version", TRITON_COMPAT),
        ("server_extensions", " ".join(EXTENSIONS)),
        *((f"model_repository_path[{i}]", cloud.shown(path)) for i, path in enumerate(options.model_repository)),
        ("model_control_mode", f"MODE_{options.model_control_mode.upper()}"),
        *((f"startup_models_{i}", name) for i, name in enumerate(options.load_model)),
        ("strict_model_config", str(int(options.strict_model_config))),
        ("model_config_name", options.model_config_name),
        ("rate_limit", _RATE[options.rate_limit]),
        *((f"rate_limit_resource[{i}]", json.dumps(resource)) for i, resource in enumerate(resources)),
        ("pinned_memory_pool_byte_size", str(options.pinned_memory_pool_byte_size)),
        *(
            (f"cuda_memory_pool_byte_size{{{gpu}}}", str(size))
            for gpu, size in sorted(options.cuda_memory_pool_byte_size.items())
        ),
        ("min_supported_compute_capability", f"{options.min_supported_compute_capability:.1f}"),
        ("strict_readiness", str(int(options.strict_readiness))),
        ("exit_timeout", str(options.exit_timeout_secs)),
        ("cache_enabled", str(int(cache_enabled))),
    ]


def failure_lines(
    options: Options, failures: Sequence[LoadFailure], gpus: Sequence[int] = (),
    fetch: Callable[[Collection[str]], list[Path]] = lambda _: [],
) -> list[str]:  # fmt: skip
    """Return, of each model that failed, why, and what a look at its files finds: file:line:column and the fix.

    ``gpus``: ids of those that the server uses. ``fetch``: names -> local directories that are as the repositories in
    the cloud are, with the files of those models.
    """
    findings: dict[str, list[str]] = {}
    try:
        checker = Checker(
            [
                *(Path(path) for path in options.model_repository if not cloud.kind_of(path) and Path(path).is_dir()),
                *fetch([name for name, _ in failures]),
            ],
            config_name=options.model_config_name, strict=options.strict_model_config,
            backend_directory=Path(options.backend_directory), gpus=gpus,
        )  # fmt: skip
        for finding in checker.run([name for name, _ in failures]):
            if not finding.warning:
                findings.setdefault(finding.model, []).append(str(finding))
    except (OSError, ServerError) as error:
        log.verbose(1, f"the repositories could not be checked: {describe(error)}")
    lines = []
    for name, reason in failures:
        lines.append(f"failed to load '{name}': {reason}")
        for text in findings.get(name, [])[:_MAX_FINDINGS]:
            lines += [f"    {line}" for line in text.splitlines()]
    return lines
