"""Command line and environment to ``Options``: parse, put together, check flags against each other.

The only place that reads the environment. Knows nothing of what the server does with an option.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, TextIO

from triton_fast.cli import values as v
from triton_fast.cli.getopt import GetoptError, split
from triton_fast.cli.options import Options, TraceOptions
from triton_fast.cli.table import DEPRECATED, FLAGS, Flag
from triton_fast.cli.usage import usage
from triton_fast.errors import InvalidArg
from triton_fast.observability.metrics_config import MetricsConfig

_HOST_SETTINGS = ("numa-node", "cpu-cores")
_OTEL_LIMITS = ("bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size")
_OTEL_DEFAULTS = {"bsp_max_queue_size": "2048", "bsp_schedule_delay": "5000", "bsp_max_export_batch_size": "512"}
# Only these parts of a row become something other than the field of their own name.
_FOLDED = {"help", "disable_auto_complete_config", "response_cache_byte_size"} | {
    f"trace_{part}" for part in ("config", "file", "level", "rate", "count", "log_frequency")
}
PROGRAM = "tritonserver"


class CliError(Exception):
    """The command line cannot be used. ``before`` goes to stderr ahead of the usage text, the message after it."""

    def __init__(self, message: str, *, with_usage: bool = True, before: str = "") -> None:
        super().__init__(message)
        self.with_usage = with_usage
        self.before = before

    def text(self) -> str:
        """Return what stderr gets."""
        return f"{self.before}{usage() if self.with_usage else ''}{self}\n"


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Options:
    """Return the options of ``argv`` (without the program's name).

    Raises CliError with Triton's text for anything wrong.
    """
    env = os.environ if environ is None else environ
    warnings: list[str] = []
    try:
        return _parse(argv, env, warnings)
    except CliError as error:
        # As Triton, which says so when it meets the flag: whatever is wrong may come from what it replaces.
        error.before = "".join(f"{line}\n" for line in warnings) + error.before
        raise


def _parse(argv: Sequence[str], env: Mapping[str, str], warnings: list[str]) -> Options:
    values = _defaults(env)
    given: list[Flag] = []
    try:
        for flag, text in split(argv, FLAGS):
            if flag is None:
                raise CliError(f"Unexpected argument: {text}")
            if flag.name == "help":
                raise CliError("")
            # The one that has its value in the text can not be told of before.
            told_later = flag.group != DEPRECATED or flag.name == "response-cache-byte-size"
            if not told_later:
                warnings.append(_deprecation(flag, values))
            try:
                values[flag.field] = flag.kind.merge(values[flag.field], flag.kind.convert(text))
            except v.BadValue as error:
                raise CliError(f'Bad option: "--{flag.name}".\n{error}\n') from None
            given.append(flag)
            if told_later and flag.group == DEPRECATED:
                warnings.append(_deprecation(flag, values))
    except GetoptError as error:
        hint = f'{str(error)[:1].upper()}{str(error)[1:]}. Did you mean "--{error.hint}"?' if error.hint else ""
        raise CliError(hint, before=f"{PROGRAM}: {error.line}\n") from None
    _read_secrets(values, env)
    if values["disable_auto_complete_config"] and values["strict_model_config"] is False:
        warnings.append(
            "Warning: Overriding deprecated '--strict-model-config' from False to True in favor of "
            "'--disable-auto-complete-config'!"
        )
    values["warnings"] = tuple(warnings)
    values["notes"] = _notes(given, values)
    values["gpu_notes"] = _gpu_notes(given, values)
    return _assemble(values, {flag.name for flag in given}, env)


def parse_or_exit(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, stderr: TextIO | None = None
) -> Options:
    """As ``parse``; prints deprecation warnings, or the error, and leaves with code 1 as Triton does."""
    out = sys.stderr if stderr is None else stderr
    try:
        options = parse(argv, environ)
    except CliError as error:
        _leave(error, out)
    for line in options.warnings:
        print(line, file=out)
    return options


def _leave(error: CliError, out: TextIO) -> NoReturn:
    out.write(error.text())
    raise SystemExit(1)


def defaults(**overrides: Any) -> Options:
    """Return the options of an empty command line and environment with fields replaced; for embedding and tests."""
    values = _defaults({})
    fields = Options.__dataclass_fields__
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        raise TypeError(f"no such option: {', '.join(unknown)}")
    return Options(**{**_fold(values, set(), {}), **overrides})


def _defaults(env: Mapping[str, str]) -> dict[str, Any]:
    values = {flag.field: flag.default for flag in FLAGS}
    if env.get("AIP_MODE") == "PREDICTION":
        values.update(allow_vertex_ai=True, allow_http=False, allow_grpc=False)
    if "AIP_HTTP_PORT" in env:
        try:
            values["vertex_ai_port"] = v.PORT.convert(env["AIP_HTTP_PORT"])
        except v.BadValue as error:
            raise CliError(f'Bad option: "AIP_HTTP_PORT".\n{error}\n') from None
    values["warnings"] = values["notes"] = values["gpu_notes"] = ()
    values["log_escape"] = env.get("TRITON_SERVER_ESCAPE_LOG_MESSAGES") != "0"
    values["sagemaker_ping_mode"] = env.get("SAGEMAKER_TRITON_PING_MODE", "ready")
    values["sagemaker_default_model"] = env.get(
        "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME", "unspecified_SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
    )
    values["sagemaker_inference_type"] = env.get("SAGEMAKER_TRITON_INFERENCE_TYPE", "infer")
    values["vertex_ai_predict_route"] = env.get("AIP_PREDICT_ROUTE", "")
    values["vertex_ai_health_route"] = env.get("AIP_HEALTH_ROUTE", "")
    values["cpu_only"] = "TRITON_SERVER_CPU_ONLY" in env
    return values


def _read_secrets(values: dict[str, Any], env: Mapping[str, str]) -> None:
    for field in ("http_restricted_api", "grpc_restricted_protocol"):
        option = field.replace("_", "-")
        try:
            read = {api: (key, v.secret(option, value, env)) for api, (key, value) in values[field].items()}
        except v.BadValue as error:
            raise CliError(f'Bad option: "--{option}".\n{error}\n') from None
        values[field] = MappingProxyType(read)


def _deprecation(flag: Flag, values: Mapping[str, Any]) -> str:
    if flag.name == "response-cache-byte-size":
        return (
            f"Warning: '--{flag.name}' has been deprecated! This will default to the 'local' cache implementation "
            "with the provided byte size for its config. Please use '--cache-config' instead. The equivalent "
            f"--cache-config CLI args would be: '--cache-config=local,size={values[flag.field]}'"
        )
    if flag.name.startswith("trace-"):
        return (
            f"Warning: '--{flag.name}' has been deprecated and will be removed in future releases. "
            f"Please use '{flag.replaced_by} instead."
        )
    return f"Warning: '--{flag.name}' has been deprecated! Please use '{flag.replaced_by}' instead."


def _notes(given: Sequence[Flag], values: Mapping[str, Any]) -> tuple[str, ...]:
    notes = {}
    for flag in given:
        # Switching off what is not there is what happens anyway.
        if flag.later and values[flag.field] is not False:
            notes[flag.name] = f"--{flag.name} is accepted, but {flag.later}"
    return tuple(notes.values())


def _gpu_notes(given: Sequence[Flag], values: Mapping[str, Any]) -> tuple[str, ...]:
    names = {flag.name: None for flag in given if flag.gpu and values[flag.field] is not False}
    return tuple(f"--{name} is accepted, but there is no GPU that it could be for" for name in names)


def _assemble(values: dict[str, Any], given: set[str], env: Mapping[str, str]) -> Options:
    if values["load_model"] and values["model_control_mode"] != "explicit":
        raise CliError("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
    if not values["model_repository"] and env.get("AIP_STORAGE_URI"):
        values["model_repository"] = (env["AIP_STORAGE_URI"],)
    if {"response-cache-byte-size", "cache-config"} <= given:
        raise CliError(
            "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. "
            "Please provide one or the other."
        )
    options = Options(**_fold(values, given, env))
    _check_ports(options)
    _check_build(options)
    _check_create(options)
    return options


def _fold(values: Mapping[str, Any], given: set[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Turn the fields of the table into the fields of Options."""
    out = {name: value for name, value in values.items() if name not in _FOLDED}
    out["strict_model_config"] = bool(values["disable_auto_complete_config"] or values["strict_model_config"])
    if values["response_cache_byte_size"] is not None:
        size = MappingProxyType({"size": str(values["response_cache_byte_size"])})
        out["cache_config"] = MappingProxyType({"local": size})
    out["trace"] = _trace(values, env)
    try:
        out["metrics_config"] = MetricsConfig.from_pairs(values["metrics_config"])
    except InvalidArg as error:
        raise CliError(f'Bad option: "--metrics-config".\n{error}\n') from None
    out["notes"] = (*values["notes"], *out["metrics_config"].notes)
    out["exit_timeout_secs"] = max(0, values["exit_timeout_secs"])
    out["model_load_thread_count"] = max(1, values["model_load_thread_count"])
    out["model_load_retry_count"] = max(0, values["model_load_retry_count"])
    out["buffer_manager_thread_count"] = max(0, values["buffer_manager_thread_count"])
    if values["model_control_mode"] != "poll":
        out["repository_poll_secs"] = 0
    out["metrics_address"] = values["metrics_address"] or values["http_address"]
    # As in Triton, even --grpc-use-ssl-mutual=false asks for TLS.
    out["grpc_use_ssl"] = values["grpc_use_ssl"] or "grpc-use-ssl-mutual" in given
    out["http_use_ssl"] = values["http_use_ssl"] or values["http_use_ssl_mutual"]
    for name in ("allow_gpu_metrics", "allow_cpu_metrics"):
        out[name] = values[name] and values["allow_metrics"]
    return out


def _trace(values: Mapping[str, Any], env: Mapping[str, str]) -> TraceOptions:
    level = {name for name in values["trace_level"] if name != "OFF"}
    base = TraceOptions()
    found: dict[str, Any] = {
        "rate": base.rate if values["trace_rate"] is None else values["trace_rate"],
        "count": base.count if values["trace_count"] is None else values["trace_count"],
        "log_frequency": base.log_frequency if values["trace_log_frequency"] is None else values["trace_log_frequency"],
        "file": values["trace_file"] or base.file,
        "mode": base.mode,
    }
    otel = {name: env.get(f"OTEL_{name.upper()}", value) for name, value in _OTEL_DEFAULTS.items()}
    extra: list[tuple[str, str]] = []
    for mode, setting, text in values["trace_config"]:
        where = f"--trace-config {mode + ',' if mode else ''}{setting}"
        try:
            if not mode and setting in ("rate", "count"):
                found[setting] = v.to_int(text)
            elif not mode and setting == "mode":
                found["mode"] = v.to_trace_mode(text)
            elif not mode and setting == "level":
                level.add(v.to_trace_level(text))
            elif mode == "triton" and setting == "file":
                found["file"] = text
            elif mode == "triton" and setting == "log-frequency":
                found["log_frequency"] = v.to_int(text)
            elif mode == "opentelemetry" and setting in _OTEL_LIMITS:
                v.to_int(text, v.UINT32)
                otel[setting] = text
            elif mode == "opentelemetry":
                extra.append((setting, text))
        except v.BadValue as error:
            raise CliError(f'Bad option: "{where}".\n{error}\n') from None
    for setting, text in otel.items():
        try:
            otel[setting] = str(v.to_int(text, v.UINT32))
        except v.BadValue as error:
            raise CliError(f'Bad option: "OTEL_{setting.upper()}".\n{error}\n') from None
    if "OFF" in values["trace_level"]:
        level.clear()
    settings = (*otel.items(), *extra) if found["mode"] == "opentelemetry" else ()
    return TraceOptions(level=tuple(sorted(level - {"OFF"}, reverse=True)), otel=settings, **found)


def _check_ports(o: Options) -> None:
    ports = [
        (o.allow_http, "HTTP", o.http_address, o.http_port, None),
        (o.allow_grpc, "GRPC", o.grpc_address, o.grpc_port, None),
        (o.allow_metrics, "metrics", o.metrics_address, o.metrics_port, None),
        (o.allow_sagemaker, "SageMaker", o.sagemaker_address, o.sagemaker_port, o.sagemaker_safe_port_range),
        (o.allow_vertex_ai, "Vertex AI", o.vertex_ai_address, o.vertex_ai_port, None),
    ]
    used = [row[1:] for row in ports if row[0]]
    for index, (name, address, port, safe) in enumerate(used):
        for other, other_address, other_port, _ in used if safe else used[index + 1 :]:
            if other == name or other_address != address:
                continue
            if safe and not safe[0] <= other_port <= safe[1]:
                raise CliError(
                    f"The server cannot listen to {other} requests at port {other_port}, allowed port range is "
                    f"[{safe[0]}, {safe[1]}]\n"
                )
            if port == other_port and port != 0:
                raise CliError(
                    f"The server cannot listen to {name} requests and {other} requests at the same address and port "
                    f"{address}:{port}\n"
                )


def _check_build(o: Options) -> None:
    """What Triton refuses when it hands options to its core: no usage text, other first line."""

    def fail(what: str) -> NoReturn:
        raise CliError(f"Failed to build Triton option:\nerror: setting {what}", with_usage=False)

    for settings in o.host_policy.values():
        for setting in settings:
            if setting not in _HOST_SETTINGS:
                fail(
                    f"host policy: Unsupported - Unsupported host policy setting '{setting}' is specified, supported "
                    "settings are 'numa-node', 'cpu-cores'"
                )
    for limit in o.model_load_gpu_limit.values():
        if not 0.0 <= limit <= 1.0:
            fail(
                "model load GPU limit: Invalid argument - expects limit fraction to be in range [0.0, 1.0], got "
                f"{limit:f}"
            )


def _check_create(o: Options) -> None:
    """What Triton refuses when its core starts."""

    def fail(what: str) -> NoReturn:
        raise CliError(f"error: creating server: Invalid argument - {what}", with_usage=False)

    if not o.model_repository:
        fail("--model-repository must be specified")
    if "*" in o.load_model and len(o.load_model) > 1:
        fail("Wildcard model name '*' must be the ONLY startup model if specified at all.")
    if len(o.cache_config) > 1:
        fail("found multiple cache configurations, but only a single cache is currently supported")
    secured = (
        ("http", o.allow_http and o.http_use_ssl, o.http_use_ssl_mutual, o.http_server_cert, o.http_server_key,
         o.http_root_cert),
        ("grpc", o.allow_grpc and o.grpc_use_ssl, o.grpc_use_ssl_mutual, o.grpc_server_cert, o.grpc_server_key,
         o.grpc_root_cert),
    )  # fmt: skip
    for protocol, is_on, is_mutual, cert, key, root in secured:
        if is_on and not (cert and key):
            fail(f"--{protocol}-use-ssl needs --{protocol}-server-cert and --{protocol}-server-key")
        if is_on and is_mutual and not root:
            fail(f"--{protocol}-use-ssl-mutual needs --{protocol}-root-cert")
