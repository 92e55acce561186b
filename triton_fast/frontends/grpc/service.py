"""The unary calls of the v2 service as one table: path, request message, restricted category, handler.

ModelInfer and ModelStreamInfer are native and not here; Health/Check stands here, its other half in health.py.
Source: spec/grpc.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from triton_fast import protos
from triton_fast.dataplane import Dataplane, UnknownModel, parse_version
from triton_fast.errors import INTERNAL_ERROR, InvalidArg, ServerError, Unsupported
from triton_fast.frontends.grpc import health
from triton_fast.frontends.grpc.calls import BROKEN, INTERNAL, MAX_LOAD_MESSAGE, MAX_MESSAGE, OK, failure
from triton_fast.frontends.grpc.log_settings import log_settings
from triton_fast.frontends.work import Where
from triton_fast.observability import log
from triton_fast.observability.tracing import settings

SERVICE = "inference.GRPCInferenceService"

# The message classes are made at run time; see triton_fast/protos.
Message = Any
Handler = Callable[[Dataplane, Message], Message]


class Method(NamedTuple):
    """One row of the table. ``where``: the handler runs, with reading and printing the messages; ``limit``: bytes of a
    request message.
    """

    request: Any
    category: str
    handler: Handler
    where: Where = Where.LOOP
    limit: int = MAX_MESSAGE


class Reply(NamedTuple):
    """``data`` is the response message, and means nothing unless ``status`` is OK."""

    status: int
    text: str = ""
    data: bytes = b""


# ---- handlers: one for each verb


def server_live(plane: Dataplane, message: Message) -> Message:
    return protos.ServerLiveResponse(live=plane.server_live())


def server_ready(plane: Dataplane, message: Message) -> Message:
    return protos.ServerReadyResponse(ready=plane.server_ready())


def model_ready(plane: Dataplane, message: Message) -> Message:
    # Not plane.model_ready, which answers false where Triton's gRPC has the error of the look-up.
    name, version = _model(message)
    plane.native_model(name, version)
    return protos.ModelReadyResponse(ready=plane.model_ready(name, version))


def server_metadata(plane: Dataplane, message: Message) -> Message:
    return protos.ServerMetadataResponse(**plane.server_metadata())


def model_metadata(plane: Dataplane, message: Message) -> Message:
    return protos.ModelMetadataResponse(**plane.model_metadata(*_model(message)))


def model_config(plane: Dataplane, message: Message) -> Message:
    return protos.ModelConfigResponse(config=plane.model_config(*_model(message)))


def model_statistics(plane: Dataplane, message: Message) -> Message:
    return protos.ModelStatisticsResponse(**plane.model_statistics(*_model(message)))


def repository_index(plane: Dataplane, message: Message) -> Message:
    _refuse_repository(message)
    return protos.RepositoryIndexResponse(models=plane.repository_index(message.ready))


def repository_load(plane: Dataplane, message: Message) -> Message:
    _refuse_repository(message)
    plane.load_model(message.model_name, _load_parameters(message))
    return protos.RepositoryModelLoadResponse()


def repository_unload(plane: Dataplane, message: Message) -> Message:
    _refuse_repository(message)
    dependents = False
    if "unload_dependents" in message.parameters:
        value = message.parameters["unload_dependents"]
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidArg("invalid value type for 'unload_dependents' parameter, expected bool_param.")
        dependents = value.bool_param
    plane.unload_model(message.model_name, unload_dependents=dependents)
    return protos.RepositoryModelUnloadResponse()


def system_memory_status(plane: Dataplane, message: Message) -> Message:
    return _regions(protos.SystemSharedMemoryStatusResponse, plane.shared_memory.status("system", message.name))


def cuda_memory_status(plane: Dataplane, message: Message) -> Message:
    return _regions(protos.CudaSharedMemoryStatusResponse, plane.shared_memory.status("cuda", message.name))


def system_memory_register(plane: Dataplane, message: Message) -> Message:
    plane.shared_memory.register(message.name, message.key, message.offset, message.byte_size)
    return protos.SystemSharedMemoryRegisterResponse()


def system_memory_unregister(plane: Dataplane, message: Message) -> Message:
    plane.shared_memory.unregister("system", message.name)
    return protos.SystemSharedMemoryUnregisterResponse()


def cuda_memory_register(plane: Dataplane, message: Message) -> Message:
    plane.shared_memory.register_cuda(message.name, message.raw_handle, message.device_id, message.byte_size)
    return protos.CudaSharedMemoryRegisterResponse()


def cuda_memory_unregister(plane: Dataplane, message: Message) -> Message:
    plane.shared_memory.unregister("cuda", message.name)
    return protos.CudaSharedMemoryUnregisterResponse()


def trace_setting(plane: Dataplane, message: Message) -> Message:
    try:
        shown = plane.trace_settings(message.model_name, _trace_changes(message))
    except UnknownModel:
        return protos.TraceSettingResponse()
    return protos.TraceSettingResponse(settings={name: {"value": values} for name, values in shown.items()})


def _row(name: str, category: str, handler: Handler, where: Where = Where.LOOP,
         limit: int = MAX_MESSAGE) -> tuple[str, Method]:  # fmt: skip
    return f"/{SERVICE}/{name}", Method(getattr(protos, f"{name}Request"), category, handler, where, limit)


METHODS: dict[str, Method] = dict((
    _row("ServerLive", "health", server_live),
    _row("ServerReady", "health", server_ready, Where.READY),
    _row("ModelReady", "health", model_ready, Where.READY),
    _row("ServerMetadata", "metadata", server_metadata),
    _row("ModelMetadata", "metadata", model_metadata),
    _row("ModelConfig", "model-config", model_config),
    # The statistics of many models take long to gather.
    _row("ModelStatistics", "statistics", model_statistics, Where.WORK),
    _row("RepositoryIndex", "model-repository", repository_index, Where.WORK),
    _row("RepositoryModelLoad", "model-repository", repository_load, Where.LOAD, MAX_LOAD_MESSAGE),
    _row("RepositoryModelUnload", "model-repository", repository_unload, Where.LOAD),
    _row("SystemSharedMemoryStatus", "shared-memory", system_memory_status),
    # Mapping and unmapping much memory takes long.
    _row("SystemSharedMemoryRegister", "shared-memory", system_memory_register, Where.WORK),
    _row("SystemSharedMemoryUnregister", "shared-memory", system_memory_unregister, Where.WORK),
    _row("CudaSharedMemoryStatus", "shared-memory", cuda_memory_status),
    _row("CudaSharedMemoryRegister", "shared-memory", cuda_memory_register, Where.WORK),
    _row("CudaSharedMemoryUnregister", "shared-memory", cuda_memory_unregister, Where.WORK),
    _row("TraceSetting", "trace", trace_setting),
    _row("LogSettings", "logging", log_settings),
    (health.CHECK, Method(protos.HealthCheckRequest, "health", health.check, Where.READY)),
))  # fmt: skip


def run(method: Method, plane: Dataplane, path: str, data: bytes) -> Reply:
    """Answer one request message; whatever goes wrong becomes a status."""
    try:
        request = method.request.FromString(data)
    except DecodeError:
        return Reply(INTERNAL, BROKEN)
    try:
        return Reply(OK, "", method.handler(plane, request).SerializeToString())
    except ServerError as error:
        return Reply(*failure(error))
    except Exception as error:
        log.error(f"{path} failed: {type(error).__name__}: {error}")
        return Reply(INTERNAL, INTERNAL_ERROR)


# ---- parts of messages


def _model(message: Message) -> tuple[str, int]:
    return message.name, parse_version(message.version)


def _refuse_repository(message: Message) -> None:
    if message.repository_name:
        raise Unsupported("'repository_name' specification is not supported")


def _trace_changes(message: Message) -> dict[str, int | None]:
    """Return what a settings request asks for; no value lets a setting fall back."""
    changes: dict[str, int | None] = {}
    given = message.settings
    if "trace_file" in given:
        settings.refuse_file()
    for name in ("trace_level", *settings.SCALARS):
        if name not in given:
            continue
        values = list(given[name].value)
        if not values:
            changes[name] = None
        elif name == "trace_level":
            level = settings.parse_level(values)
            if level is not None:
                changes[name] = level
        elif len(values) != 1:
            raise InvalidArg(f"expect only 1 value for '{name}'")
        else:
            changes[name] = settings.parse_scalar(name, values[0])
    return changes


def _load_parameters(message: Message) -> dict[str, str | bytes]:
    result: dict[str, str | bytes] = {}
    for key, value in message.parameters.items():
        if key == "config":
            expected = "string_param"
        elif key.startswith("file:"):
            expected = "bytes_param"
        else:
            raise InvalidArg(f"unrecognized load parameter '{key}'.")
        if value.WhichOneof("parameter_choice") != expected:
            raise InvalidArg(f"invalid value type for load parameter '{key}', expected {expected}.")
        result[key] = getattr(value, expected)
    return result


def _regions(response: Any, rows: list[dict[str, Any]]) -> Message:
    return response(regions={row["name"]: response.RegionStatus(**row) for row in rows})
