"""The v2 messages equal those of the installed tritonclient, health and reflection those of grpcio's packages: every
message, field, number, type, label, oneof, enum value and method, in both directions. What only one side has is listed
here by name, with the reason.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from triton_fast import protos

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

# Added to the protocol after tritonclient 2.41, the oldest that the tests may meet. A newer client that has one
# is compared like everything else.
NEWER_THAN_CLIENT = {
    "InferResponseStatistics",
    "ModelStatistics.response_stats",
    "ModelStatistics.ResponseStatsEntry",
    "ModelConfig.runtime",
    "ModelConfig.model_metrics",
    "ModelMetrics",
    "ModelInput.is_non_linear_format_io",
    "ModelOutput.is_non_linear_format_io",
    "ModelEnsembling.max_inflight_requests",
}
# In a client but not served by 2.73: none is known.
ONLY_IN_CLIENT: set[str] = set()


def _repeated(field: Any) -> bool:
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)


def _message(descriptor: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    name = f"{prefix}{descriptor.name}"
    yield name, "message"
    for field in descriptor.fields:
        target = field.message_type or field.enum_type
        oneof = field.containing_oneof.name if field.containing_oneof else None
        yield (
            f"{name}.{field.name}",
            (field.number, field.type, _repeated(field), target.full_name if target else None, oneof, field.json_name),
        )
    for enum in descriptor.enum_types:
        yield from _enum(enum, f"{name}.")
    for nested in descriptor.nested_types:
        yield from _message(nested, f"{name}.")


def _enum(descriptor: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for value in descriptor.values:
        yield f"{prefix}{descriptor.name}={value.name}", value.number


def _facts(files: list[Any], package: str = "inference") -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for file in files:
        assert file.package == package
        for message in file.message_types_by_name.values():
            facts.update(_message(message, ""))
        for enum in file.enum_types_by_name.values():
            facts.update(_enum(enum, ""))
        for service in file.services_by_name.values():
            for method in service.methods:
                proto = _method_proto(service, method.name)
                facts[f"{service.full_name}/{method.name}"] = (
                    method.input_type.full_name,
                    method.output_type.full_name,
                    proto.client_streaming,
                    proto.server_streaming,
                )
    return facts


def _method_proto(service: Any, name: str) -> Any:
    from google.protobuf import descriptor_pb2

    proto = descriptor_pb2.ServiceDescriptorProto()
    service.CopyToProto(proto)
    return next(method for method in proto.method if method.name == name)


OURS = _facts([protos.POOL.FindFileByName(name) for name in ("grpc_service.proto", "model_config.proto")])
THEIRS = _facts([service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR])


def _listed(name: str, names: set[str]) -> bool:
    return any(name == entry or name.startswith((f"{entry}.", f"{entry}=")) for entry in names)


def test_every_common_name_is_identical() -> None:
    common = OURS.keys() & THEIRS.keys()
    assert len(common) > 350
    assert {name: (OURS[name], THEIRS[name]) for name in common if OURS[name] != THEIRS[name]} == {}


def test_nothing_of_the_client_is_missing() -> None:
    assert {name for name in THEIRS.keys() - OURS.keys() if not _listed(name, ONLY_IN_CLIENT)} == set()


def test_what_only_we_have_is_listed() -> None:
    assert {name for name in OURS.keys() - THEIRS.keys() if not _listed(name, NEWER_THAN_CLIENT)} == set()


def test_every_listed_name_exists() -> None:
    assert {name for name in NEWER_THAN_CLIENT if name not in OURS} == set()


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("InferParameter.double_param", 4, "TYPE_DOUBLE"),
        ("InferParameter.uint64_param", 5, "TYPE_UINT64"),
        ("ModelConfig.runtime", 25, "TYPE_STRING"),
        ("ModelConfig.model_metrics", 26, "TYPE_MESSAGE"),
        ("ModelInput.is_non_linear_format_io", 9, "TYPE_BOOL"),
        ("ModelEnsembling.max_inflight_requests", 2, "TYPE_UINT32"),
        ("ModelSequenceBatching.iterative_sequence", 6, "TYPE_BOOL"),
        ("ModelStatistics.response_stats", 9, "TYPE_MESSAGE"),
    ],
)
def test_newer_fields_have_the_numbers_of_the_protocol(name: str, number: int, kind: str) -> None:
    field = protos.POOL.FindFieldByName(f"inference.{name}")
    assert (field.number, field.type) == (number, getattr(field, kind))


def test_wire_format_is_read_by_the_client() -> None:
    ours = protos.ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"\1\2"])
    ours.inputs.add(name="x", datatype="UINT8", shape=[2]).parameters["p"].int64_param = -5
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert theirs.inputs[0].parameters["p"].int64_param == -5
    assert protos.ModelInferRequest.FromString(theirs.SerializeToString()) == ours


def test_health_messages() -> None:
    assert protos.HealthCheckRequest(service="x").SerializeToString() == b"\n\x01x"
    status = protos.HealthCheckResponse.ServingStatus
    assert dict(status.items()) == {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3}
    service = protos.POOL.FindServiceByName("grpc.health.v1.Health")
    assert [(method.name, _method_proto(service, method.name).server_streaming) for method in service.methods] == [
        ("Check", False), ("Watch", True),
    ]  # fmt: skip


# What the newest health package has and no Triton serves.
HEALTH_LIST = {"HealthListRequest", "HealthListResponse", "grpc.health.v1.Health/List"}


def test_health_is_that_of_the_reference_package() -> None:
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    ours = _facts([protos.POOL.FindFileByName("grpc_health.proto")], "grpc.health.v1")
    theirs = _facts([health_pb2.DESCRIPTOR], "grpc.health.v1")
    assert len(ours) > 8
    assert ours == {name: fact for name, fact in theirs.items() if not _listed(name, HEALTH_LIST)}


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_that_of_the_reference_package(version: str) -> None:
    """The package has v1alpha; v1 is the same under its own name."""
    reflection_pb2 = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
    package = f"grpc.reflection.{version}"
    ours = _facts([protos.POOL.FindFileByName(f"grpc_reflection_{version}.proto")], package)
    theirs = _facts([reflection_pb2.DESCRIPTOR], "grpc.reflection.v1alpha")
    assert len(ours) > 25
    assert _renamed(ours, package) == _renamed(theirs, "grpc.reflection.v1alpha")


def _renamed(facts: dict[str, Any], package: str) -> dict[str, str]:
    return {name.replace(package, "P"): repr(fact).replace(f"{package}.", "P.") for name, fact in facts.items()}


def test_files_are_those_of_the_pool() -> None:
    assert protos.FILES.keys() == {
        "grpc_health.proto", "grpc_reflection_v1.proto", "grpc_reflection_v1alpha.proto", "grpc_service.proto",
        "model_config.proto",
    }  # fmt: skip
    for name, file in protos.FILES.items():
        assert protos.POOL.FindFileByName(name).serialized_pb == file.SerializeToString()


def test_unknown_message_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchMessage"):
        protos.NoSuchMessage  # noqa: B018


@pytest.mark.parametrize("order", ["triton_fast.protos, tritonclient.grpc", "tritonclient.grpc, triton_fast.protos"])
def test_lives_beside_tritonclient_in_either_order(order: str) -> None:
    code = f"import {order}; from triton_fast import protos; print(protos.ModelConfig(name='x').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "x"), done.stderr
