"""GET .../config prints what the real server prints: key for key, in its order, with its numbers and strings.

The JSON below was answered by Triton 2.51 for the config above it, on a machine without GPUs;
max_inflight_requests came with a later version.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast import protos

FULL_CONFIG = r"""
name: "full" backend: "python" max_batch_size: 8
version_policy { specific { versions: 1 } }
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 2, -1 ] format: FORMAT_NONE }, { name: "IN2" data_type:
TYPE_STRING dims: [1] reshape { shape: [] } optional: true allow_ragged_batch: true } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" reshape { shape: [2,2] } }
]
batch_input { kind: BATCH_ITEM_SHAPE target_name: "SHP" data_type: TYPE_FP32 source_input: "IN" }
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "OUT" source_input: "IN" }
optimization { graph { level: 1 } priority: PRIORITY_MAX cuda { graphs: true graph_spec { batch_size: 2 input {
key: "IN" value { dim: [1,2] } } graph_lower_bound { batch_size: 1 input { key: "IN" value { dim: [1,2] } } } }
} execution_accelerators { gpu_execution_accelerator { name: "tensorrt" parameters { key: "a" value: "b" } } }
input_pinned_memory { enable: false } gather_kernel_buffer_threshold: 5 eager_batching: true }
dynamic_batching { preferred_batch_size: [2,4] max_queue_delay_microseconds: 100 priority_levels: 2
default_priority_level: 1 default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 77
allow_timeout_override: true max_queue_size: 3 } priority_queue_policy { key: 2 value {
default_timeout_microseconds: 9007199254740993 } } }
instance_group { count: 2 kind: KIND_CPU rate_limiter { resources { name: "R" count: 2 } priority: 3 }
host_policy: "hp" secondary_devices { kind: KIND_NVDLA device_id: 3 } }
instance_group { passive: true count: 1}
default_model_filename: "model.py"
cc_model_filenames { key: "7.5" value: "x.py" }
metric_tags { key: "k" value: "v" }
parameters { key: "p" value: { string_value: "é\n\"/" } }
model_warmup { name: "w" batch_size: 1 inputs { key: "IN" value { data_type: TYPE_FP32 dims: [2,3] zero_data:
true } } inputs { key: "IN2" value { data_type: TYPE_STRING dims: [1] zero_data: true } } }
model_operations { op_library_filename: "o.so" }
model_transaction_policy { decoupled: false }
response_cache { enable: false }
"""
FULL_JSON = r"""
{"name": "full", "platform": "", "backend": "python", "runtime": "",
"version_policy": {"specific": {"versions": [1]}}, "max_batch_size": 8,
"input": [{"name": "IN", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [2,
-1], "is_shape_tensor": false, "allow_ragged_batch": false, "optional": false, "is_non_linear_format_io": false},
{"name": "IN2", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1],
"reshape": {"shape": []}, "is_shape_tensor": false, "allow_ragged_batch": true, "optional": true,
"is_non_linear_format_io": false}],
"output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [4], "reshape": {"shape": [2,
2]}, "label_filename": "labels.txt", "is_shape_tensor": false, "is_non_linear_format_io": false}],
"batch_input": [{"kind": "BATCH_ITEM_SHAPE", "target_name": ["SHP"], "data_type": "TYPE_FP32",
"source_input": ["IN"]}], "batch_output": [{"target_name": ["OUT"], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
"source_input": ["IN"]}],
"optimization": {"graph": {"level": 1}, "priority": "PRIORITY_MAX", "cuda": {"graphs": true,
"busy_wait_events": false, "graph_spec": [{"batch_size": 2, "input": {"IN": {"dim": ["1",
"2"]}}, "graph_lower_bound": {"batch_size": 1, "input": {"IN": {"dim": ["1", "2"]}}}}],
"output_copy_stream": false}, "execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt",
"parameters": {"a": "b"}}], "cpu_execution_accelerator": []}, "input_pinned_memory": {"enable": false},
"output_pinned_memory": {"enable": true}, "gather_kernel_buffer_threshold": 5, "eager_batching": true},
"dynamic_batching": {"preferred_batch_size": [2, 4], "max_queue_delay_microseconds": 100,
"preserve_ordering": false, "priority_levels": 2, "default_priority_level": 1,
"default_queue_policy": {"timeout_action": "DELAY",
"default_timeout_microseconds": 77, "allow_timeout_override": true, "max_queue_size": 3},
"priority_queue_policy": {"2": {"timeout_action": "REJECT", "default_timeout_microseconds": 9007199254740993,
"allow_timeout_override": false, "max_queue_size": 0}}},
"instance_group": [{"name": "full_0", "kind": "KIND_CPU", "count": 2, "rate_limiter": {"resources": [{"name": "R",
"global": false, "count": 2}], "priority": 3}, "gpus": [], "secondary_devices": [{"kind": "KIND_NVDLA",
"device_id": "3"}], "profile": [], "passive": false, "host_policy": "hp"}, {"name": "full_1",
"kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [], "profile": [],
"passive": true, "host_policy": ""}], "default_model_filename": "model.py",
"cc_model_filenames": {"7.5": "x.py"}, "metric_tags": {"k": "v"},
"parameters": {"p": {"string_value": "é\n\"/"}},
"model_warmup": [{"name": "w", "batch_size": 1, "inputs": {"IN": {"data_type": "TYPE_FP32",
"dims": [2, 3], "zero_data": true}, "IN2": {"data_type": "TYPE_STRING", "dims": [1],
"zero_data": true}}, "count": 0}], "model_operations": {"op_library_filename": ["o.so"]},
"model_transaction_policy": {"decoupled": false}, "response_cache": {"enable": false}}
"""

SEQ_CONFIG = r"""
backend: "python" max_batch_size: 4
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching { oldest { max_candidate_sequences: 7 max_queue_delay_microseconds: 11 }
 control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0,1] } control { kind:
CONTROL_SEQUENCE_READY fp32_false_true: [0,1.5] } }
 control_input { name: "C" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
 state { input_name: "SI" output_name: "SO" data_type: TYPE_INT32 dims: [ 1 ] initial_state { name: "i"
data_type: TYPE_INT32 dims: [1] zero_data: true } } }
"""
SEQ_JSON = r"""
{"name": "seq", "platform": "", "backend": "python", "runtime": "",
"version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 4,
"input": [{"name": "IN", "data_type": "TYPE_INT32", "format": "FORMAT_NONE", "dims": [1],
"is_shape_tensor": false, "allow_ragged_batch": false, "optional": false, "is_non_linear_format_io": false}],
"output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [1], "label_filename": "",
"is_shape_tensor": false, "is_non_linear_format_io": false}], "batch_input": [], "batch_output": [],
"optimization": {"priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": true},
"output_pinned_memory": {"enable": true}, "gather_kernel_buffer_threshold": 0, "eager_batching": false},
"sequence_batching": {"oldest": {"max_candidate_sequences": 7, "preferred_batch_size": [4],
"max_queue_delay_microseconds": 11, "preserve_ordering": false}, "max_sequence_idle_microseconds": 1000000,
"control_input": [{"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START",
"int32_false_true": [0, 1], "fp32_false_true": [], "bool_false_true": [], "data_type": "TYPE_INVALID"},
{"kind": "CONTROL_SEQUENCE_READY", "int32_false_true": [], "fp32_false_true": [0,
1.5], "bool_false_true": [], "data_type": "TYPE_INVALID"}]}, {"name": "C",
"control": [{"kind": "CONTROL_SEQUENCE_CORRID",
"int32_false_true": [], "fp32_false_true": [], "bool_false_true": [], "data_type": "TYPE_UINT64"}]}],
"state": [{"input_name": "SI", "output_name": "SO", "data_type": "TYPE_INT32", "dims": [1],
"initial_state": [{"data_type": "TYPE_INT32", "dims": ["1"], "name": "i", "zero_data": true}],
"use_same_buffer_for_input_output": false, "use_growable_memory": false}], "iterative_sequence": false},
"instance_group": [{"name": "seq", "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [],
"profile": [], "passive": false, "host_policy": ""}], "default_model_filename": "model.py",
"cc_model_filenames": {}, "metric_tags": {}, "parameters": {}, "model_warmup": []}
"""

DIRECT_CONFIG = r"""
backend: "python" max_batch_size: 4
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching { direct { max_queue_delay_microseconds: 11 minimum_slot_utilization: 0.3 }
max_sequence_idle_microseconds: 5 }
"""
DIRECT_JSON = r"""
{"name": "direct", "platform": "", "backend": "python", "runtime": "",
"version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 4,
"input": [{"name": "IN", "data_type": "TYPE_INT32", "format": "FORMAT_NONE", "dims": [1],
"is_shape_tensor": false, "allow_ragged_batch": false, "optional": false, "is_non_linear_format_io": false}],
"output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [1], "label_filename": "",
"is_shape_tensor": false, "is_non_linear_format_io": false}], "batch_input": [], "batch_output": [],
"optimization": {"priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": true},
"output_pinned_memory": {"enable": true}, "gather_kernel_buffer_threshold": 0, "eager_batching": false},
"sequence_batching": {"direct": {"max_queue_delay_microseconds": 11, "minimum_slot_utilization": 0.3},
"max_sequence_idle_microseconds": 5, "control_input": [], "state": [], "iterative_sequence": false},
"instance_group": [{"name": "direct", "kind": "KIND_CPU", "count": 1, "gpus": [],
"secondary_devices": [], "profile": [], "passive": false, "host_policy": ""}],
"default_model_filename": "model.py", "cc_model_filenames": {}, "metric_tags": {}, "parameters": {},
"model_warmup": []}
"""

ENS_CONFIG = r"""
platform: "ensemble" max_batch_size: 0
input [ { name: "EI" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "EO" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step { model_name: "plain" model_version: -1 input_map { key: "IN" value: "EI" }
output_map { key: "OUT" value: "EO" } } }
"""
ENS_JSON = r"""
{"name": "ens", "platform": "ensemble", "backend": "", "runtime": "",
"version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 0,
"input": [{"name": "EI", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [4],
"is_shape_tensor": false, "allow_ragged_batch": false, "optional": false, "is_non_linear_format_io": false}],
"output": [{"name": "EO", "data_type": "TYPE_FP32", "dims": [4], "label_filename": "",
"is_shape_tensor": false, "is_non_linear_format_io": false}], "batch_input": [], "batch_output": [],
"ensemble_scheduling": {"step": [{"model_name": "plain", "model_version": -1, "input_map": {"IN": "EI"},
"output_map": {"OUT": "EO"}, "model_namespace": ""}], "max_inflight_requests": 0}, "instance_group": [],
"default_model_filename": "",
"cc_model_filenames": {}, "metric_tags": {}, "parameters": {}, "model_warmup": []}
"""


def shown(text: str, name: str, tmp_path: Path) -> str:
    model_dir = tmp_path / name
    (model_dir / "1").mkdir(parents=True)
    (model_dir / "1" / "model.py").touch()
    (model_dir / "config.pbtxt").write_text(text, encoding="utf-8")
    config = cfg.load_model_config(model_dir, strict=False)
    cfg.normalize(config, cpu_count=8)
    return json.dumps(cfg.to_json(config))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("full", FULL_CONFIG, FULL_JSON),
        ("seq", SEQ_CONFIG, SEQ_JSON),
        ("direct", DIRECT_CONFIG, DIRECT_JSON),
        # The real server adds model_transaction_policy once it knows the members; that is not the config's doing.
        ("ens", ENS_CONFIG, ENS_JSON),
    ],
)
def test_equals_the_real_server(name: str, text: str, expected: str, tmp_path: Path) -> None:
    # As text: the order of the keys counts too.
    assert shown(text, name, tmp_path) == json.dumps(json.loads(expected))


def test_shown_config_loads_again() -> None:
    config = protos.ModelConfig(name="m", backend="python", max_batch_size=3)
    config.dynamic_batching.priority_queue_policy[2].default_timeout_microseconds = 2**60
    config.instance_group.add(count=1).secondary_devices.add(device_id=3)
    parsed = cfg.read_model_config(Path("m"), strict=False, override_json=json.dumps(cfg.to_json(config)))
    assert parsed.config.dynamic_batching == config.dynamic_batching
    assert parsed.config.instance_group[0].secondary_devices[0].device_id == 3


def test_metrics_buckets_and_floats() -> None:
    config = protos.ModelConfig(name="m")
    control = config.model_metrics.metric_control.add()
    control.metric_identifier.family = "nv_inference_first_response_histogram_ms"
    control.histogram_options.buckets.extend([1, 2.5, 1e20, 0.1, float("inf")])
    config.sequence_batching.direct.minimum_slot_utilization = 0.7
    result = cfg.to_json(config)
    assert result["model_metrics"]["metric_control"] == [
        {
            "metric_identifier": {"family": "nv_inference_first_response_histogram_ms"},
            "histogram_options": {"buckets": [1, 2.5, 1e20, 0.1, "Infinity"]},
        }
    ]
    assert result["sequence_batching"]["direct"]["minimum_slot_utilization"] == 0.7
