"""The v2 messages as Python classes: ``protos.ModelConfig()``, ``protos.ModelInferRequest()``.

They come from the descriptor set that the build makes, in a pool of our own: the default pool may already hold
the same names from tritonclient. Must not know anything but protobuf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SET = Path(__file__).with_name("v2.binpb")
_PACKAGES = ("inference", "grpc.health.v1")


def _load() -> tuple[Any, Any, dict[str, Any]]:
    try:
        data = _SET.read_bytes()
    except FileNotFoundError:
        raise ImportError(
            f"{_SET.name} is missing from triton_fast/protos; the build makes it: run 'pip install -e .'"
        ) from None
    files = descriptor_pb2.FileDescriptorSet.FromString(data)
    pool = descriptor_pool.DescriptorPool()
    twin = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())  # type: ignore[no-untyped-call, unused-ignore]
        if file.name == "model_config.proto":
            twin_file = descriptor_pb2.FileDescriptorProto()
            twin_file.CopyFrom(file)
            twin_file.syntax = "proto2"
            twin.AddSerializedFile(twin_file.SerializeToString())  # type: ignore[no-untyped-call, unused-ignore]
    return pool, twin, {file.name: file for file in files.file}


# FILES: the FileDescriptorProto of each .proto file, by name.
POOL, _TWIN, FILES = _load()


def message_class(name: str) -> Any:
    """Return the class of a message by its full name, such as ``inference.ModelConfig``. Raises KeyError."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def presence_class(name: str) -> Any:
    """Return the class of a model_config.proto message that knows which scalars were set, zero or not.

    Same fields as `message_class`, for reading text only: it tells ``max_batch_size: 0`` from no such line.
    """
    return message_factory.GetMessageClass(_TWIN.FindMessageTypeByName(name))


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for package in _PACKAGES:
            try:
                found = message_class(f"{package}.{name}")
            except KeyError:
                continue
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
