"""Every verb of the tritonclient clients but infer, as cases that HTTP and gRPC, sync and aio share.

``call`` is a fixture: it takes a method's name and its arguments and returns what the method returns.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.conformance import models
from tests.conformance.client_tensors import INTERNAL, INVALID, NOT_FOUND, UNSUPPORTED, Call, refused

SHM_OFF = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
UPLOAD_OFF = "Model file override is disabled. Start the server with '--allow-code-upload=true' to enable."
EXTENSIONS = [
    "classification", "sequence", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "parameters",
    "statistics", "trace", "logging",
]  # fmt: skip


class Health:
    def test_live(self, call: Call) -> None:
        assert call("is_server_live") is True

    def test_ready(self, call: Call) -> None:
        assert call("is_server_ready") is True

    def test_model_ready(self, call: Call) -> None:
        assert call("is_model_ready", "two") is True
        assert call("is_model_ready", "versions", "2") is True

    def test_model_not_ready(self, call: Call) -> None:
        assert call("is_model_ready", "nobody") is False
        assert call("is_model_ready", "versions", "9") is False

    def test_headers_and_query(self, call: Call) -> None:
        query = {"a": "b c", "list": [1, 2], "slash": "/"}
        assert call("is_server_live", headers={"X-Any": "1"}, query_params=query) is True
        assert call("is_model_ready", "two", headers={"X-Any": "1"}, query_params=query) is True


class Metadata:
    def test_server(self, call: Call) -> None:
        found = call("get_server_metadata")
        assert found["name"] == "triton"
        assert found["extensions"] == EXTENSIONS
        assert found["version"]

    def test_model(self, call: Call) -> None:
        assert call("get_model_metadata", "two") == {
            "name": "two",
            "versions": ["1"],
            "platform": "identity",
            "inputs": [{"name": f"INPUT{i}", "datatype": "INT32", "shape": [-1, 4]} for i in range(2)],
            "outputs": [{"name": f"OUTPUT{i}", "datatype": "INT32", "shape": [-1, 4]} for i in range(2)],
        }

    def test_model_without_batching(self, call: Call) -> None:
        found = call("get_model_metadata", "plain")
        assert found["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [2, 2]}]

    def test_versions(self, call: Call) -> None:
        assert call("get_model_metadata", "versions")["versions"] == ["1", "2", "3"]
        assert call("get_model_metadata", "versions", "2")["versions"] == ["2"]

    @pytest.mark.parametrize("datatype", models.DATATYPES)
    def test_datatype(self, call: Call, datatype: str) -> None:
        assert call("get_model_metadata", models.of_type(datatype))["inputs"][0]["datatype"] == datatype

    def test_config(self, call: Call) -> None:
        found = call("get_model_config", "two")
        assert (found["name"], found["backend"], found["max_batch_size"]) == ("two", "identity", 4)
        assert [tensor["name"] for tensor in found["input"]] == ["INPUT0", "INPUT1"]
        assert found["version_policy"] == {"latest": {"num_versions": 1}}
        assert [group["name"] for group in found["instance_group"]] == ["two"]
        assert call("get_model_config", "versions", "3")["version_policy"] == {"all": {}}

    @pytest.mark.parametrize("method", ["get_model_metadata", "get_model_config"])
    def test_unknown(self, call: Call, method: str) -> None:
        assert refused(call, method, "nobody") == (NOT_FOUND, "Request for unknown model: 'nobody' is not found")
        assert refused(call, method, "versions", "9") == (
            NOT_FOUND, "Request for unknown model: 'versions' version 9 is not found",
        )  # fmt: skip


class Repository:
    def test_index(self, call: Call) -> None:
        rows = call("get_model_repository_index")
        assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
        versions = [row for row in rows if row["name"] == "versions"]
        assert versions == [{"name": "versions", "version": v, "state": "READY"} for v in ("1", "2", "3")]

    def test_load_and_unload(self, call: Call) -> None:
        assert call("load_model", "control") is None
        assert call("is_model_ready", "control") is True
        assert call("unload_model", "control") is None
        assert call("is_model_ready", "control") is False
        assert refused(call, "get_model_metadata", "control") == (
            NOT_FOUND, "Request for unknown model: 'control' has no available versions",
        )  # fmt: skip
        call("load_model", "control")
        assert call("is_model_ready", "control", "1") is True

    def test_unload_dependents(self, call: Call) -> None:
        call("unload_model", "control", unload_dependents=True)
        assert call("is_model_ready", "control") is False
        call("load_model", "control")

    def test_config_override(self, call: Call) -> None:
        on_disk = call("get_model_config", "control")
        call("load_model", "control", config=json.dumps({**on_disk, "max_batch_size": 3}))
        try:
            assert call("get_model_config", "control")["max_batch_size"] == 3
        finally:
            call("load_model", "control")
        assert call("get_model_config", "control") == on_disk

    def test_broken_config_override(self, call: Call) -> None:
        status, message = refused(call, "load_model", "control", config="{")
        assert status == INVALID
        assert message.startswith("Invalid config override: ")
        assert call("is_model_ready", "control") is True

    def test_file_override_is_off(self, call: Call) -> None:
        files = {"file:1/model.onnx": b"\x00\xff"}
        assert refused(call, "load_model", "control", config="{}", files=files) == (UNSUPPORTED, UPLOAD_OFF)
        assert call("is_model_ready", "control") is True

    def test_load_of_unknown(self, call: Call) -> None:
        status, message = refused(call, "load_model", "nobody")
        assert status == INTERNAL
        assert message.startswith("failed to load 'nobody', failed to poll from model repository")

    def test_unload_of_unknown_succeeds(self, call: Call) -> None:
        assert call("unload_model", "nobody") is None


class Statistics:
    def test_all(self, call: Call) -> None:
        found = call("get_inference_statistics")["model_stats"]
        names = {(row["name"], row["version"]) for row in found}
        assert {("two", "1"), ("versions", "1"), ("versions", "2"), ("versions", "3")} <= names

    def test_model(self, call: Call) -> None:
        found = call("get_inference_statistics", "versions")["model_stats"]
        assert [(row["name"], row["version"]) for row in found] == [("versions", v) for v in "123"]

    def test_version(self, call: Call) -> None:
        (found,) = call("get_inference_statistics", "versions", "2")["model_stats"]
        assert found["version"] == "2"
        assert set(found["inference_stats"]) == {
            "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
        }  # fmt: skip

    def test_unknown(self, call: Call) -> None:
        assert refused(call, "get_inference_statistics", "nobody") == (
            INVALID, "requested model 'nobody' is not available",
        )  # fmt: skip
        assert refused(call, "get_inference_statistics", "versions", "9") == (
            INVALID, "requested model version is not available for model 'versions'",
        )  # fmt: skip


class SharedMemory:
    @pytest.mark.parametrize("kind", ["system", "cuda"])
    def test_status(self, call: Call, kind: str) -> None:
        assert call(f"get_{kind}_shared_memory_status") == []
        assert refused(call, f"get_{kind}_shared_memory_status", "r") == (
            NOT_FOUND, f"Unable to find {kind} shared memory region: 'r'",
        )  # fmt: skip

    def test_register(self, call: Call) -> None:
        assert refused(call, "register_system_shared_memory", "r", "/key", 64) == (UNSUPPORTED, SHM_OFF)
        handle = base64.b64encode(b"h" * 64)
        assert refused(call, "register_cuda_shared_memory", "r", handle, 0, 64) == (UNSUPPORTED, SHM_OFF)

    @pytest.mark.parametrize("kind", ["system", "cuda"])
    def test_unregister(self, call: Call, kind: str) -> None:
        assert refused(call, f"unregister_{kind}_shared_memory") == (UNSUPPORTED, SHM_OFF)
        assert refused(call, f"unregister_{kind}_shared_memory", "r") == (UNSUPPORTED, SHM_OFF)


class Settings:
    """Trace and log settings through the clients; what each does is in tests of their own."""

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("get_trace_settings", {}),
            ("get_trace_settings", {"model_name": "two"}),
            ("update_trace_settings", {"settings": {"trace_rate": "2"}}),
            ("update_trace_settings", {"model_name": "two", "settings": {"trace_rate": "2"}}),
            ("get_log_settings", {}),
            ("update_log_settings", {"settings": {"log_info": True}}),
        ],
    )
    def test_answered(self, call: Call, method: str, arguments: dict[str, Any]) -> None:
        shown = str(call(method, **arguments))
        assert ("trace_rate" if "trace" in method else "log_verbose_level") in shown


class Verbs(Health, Metadata, Repository, Statistics, SharedMemory, Settings):
    """All of them."""
