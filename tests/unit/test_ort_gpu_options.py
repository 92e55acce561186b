"""Options of ONNX Runtime's GPU providers as plain values: names, forms, order of precedence, texts of refusals."""

from __future__ import annotations

import pytest

from triton_fast.backends.onnxruntime import gpu_options as options
from triton_fast.errors import InvalidArg


@pytest.mark.parametrize("key", options.BOOLEANS)
def test_booleans(key: str) -> None:
    for text, value in (("1", "1"), ("true", "1"), ("ON", "1"), ("0", "0"), ("False", "0")):
        assert options.cuda_options({key: text}, {}, {}) == {key: value}
        assert options.cuda_options({}, {key: text}, {}) == {key: value}
        assert options.cuda_options({}, {}, {key: text}) == {key: value}
    with pytest.raises(InvalidArg, match=f"'{key}' must be true or false, got 'maybe'"):
        options.cuda_options({key: "maybe"}, {}, {})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("cudnn_conv_algo_search", "0", "EXHAUSTIVE"), ("cudnn_conv_algo_search", "1", "HEURISTIC"),
        ("cudnn_conv_algo_search", "2", "DEFAULT"), ("cudnn_conv_algo_search", "HEURISTIC", "HEURISTIC"),
        ("arena_extend_strategy", "0", "kNextPowerOfTwo"), ("arena_extend_strategy", "1", "kSameAsRequested"),
        ("arena_extend_strategy", "kSameAsRequested", "kSameAsRequested"),
        ("gpu_mem_limit", "4294967296", "4294967296"), ("gpu_mem_limit", " 18446744073709551615 ", str(2**64 - 1)),
        ("tunable_op_max_tuning_duration_ms", "50", "50"), ("sdpa_kernel", "2", "2"),
    ],
)  # fmt: skip
def test_words_and_numbers(key: str, text: str, value: str) -> None:
    assert options.cuda_options({key: text}, {}, {}) == {key: value}
    assert options.cuda_options({}, {key: text}, {}) == {key: value}


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("cudnn_conv_algo_search", "3", "unsupported cudnn_conv_algo_search value '3' is requested"),
        ("cudnn_conv_algo_search", "-1", "unsupported cudnn_conv_algo_search value '-1' is requested"),
        ("arena_extend_strategy", "99999999999", "unsupported arena_extend_strategy value '99999999999' is requested"),
        ("arena_extend_strategy", "knextpoweroftwo", "unsupported arena_extend_strategy value"),
        ("gpu_mem_limit", "-1", "'gpu_mem_limit' must be a whole number from 0 to 18446744073709551615, got '-1'"),
        ("gpu_mem_limit", "18446744073709551616", "'gpu_mem_limit' must be a whole number"),
        ("gpu_mem_limit", "1GB", "'gpu_mem_limit' must be a whole number"),
        *(
            (key, "1", f"parameter '{key}' of CUDA Execution Accelerator is an address, which no config can give")
            for key in options.ADDRESSES
        ),
    ],
)
def test_values_that_can_not_be_used(key: str, text: str, message: str) -> None:
    with pytest.raises(InvalidArg) as caught:
        options.cuda_options({key: text}, {}, {})
    assert message in str(caught.value)


def test_who_has_the_last_word() -> None:
    both = {"gpu_mem_limit": "1", "use_tf32": "1", "prefer_nhwc": "1"}
    made = options.cuda_options({"gpu_mem_limit": "2", "use_tf32": "0"}, {"gpu_mem_limit": "3"}, both)
    assert made == {"gpu_mem_limit": "3", "use_tf32": "0", "prefer_nhwc": "1"}


def test_what_is_left_out_and_what_goes_on_as_it_is() -> None:
    assert options.cuda_options({"device_id": "7", "gpu_mem_limit": "", "of_a_later_version": " x "}, {}, {}) == {
        "of_a_later_version": "x"
    }
    # Other parameters of a model or a server are none of the provider's.
    assert options.cuda_options({}, {"my_own": "1"}, {"default-max-batch-size": "4"}) == {}


def test_tensorrt() -> None:
    given = {
        "precision_mode": "BF16", "max_workspace_size_bytes": "9", "int8_calibration_table_name": "t",
        "int8_use_native_calibration_table": "1", "trt_engine_cache_enable": "true", "trt_engine_cache_path": "",
    }  # fmt: skip
    assert options.tensorrt_options(given) == {
        "trt_bf16_enable": "1", "trt_max_workspace_size": "9", "trt_int8_calibration_table_name": "t",
        "trt_int8_use_native_calibration_table": "1", "trt_engine_cache_enable": "true",
    }  # fmt: skip
    assert options.tensorrt_options({"precision_mode": "FP32"}) == {}
    assert options.tensorrt_options({"precision_mode": "FP16"}) == {"trt_fp16_enable": "1"}
    assert options.tensorrt_options({"precision_mode": "INT8"}) == {"trt_int8_enable": "1"}


def test_arenas() -> None:
    listed = options.arenas("gpu:0; gpu:1;cpu:0;")
    assert listed == ("gpu:0", "gpu:1", "cpu:0")
    assert options.shrinkage(listed, gpu=True, device=1) == "gpu:1;cpu:0"
    assert options.shrinkage(listed, gpu=True, device=2) == "cpu:0"
    assert options.shrinkage(listed, gpu=False, device=0) == "cpu:0"
    assert options.shrinkage(options.arenas("gpu:1"), gpu=False, device=0) == ""
    for text in ("", ";", "gpu", "gpu:x", "npu:0", "gpu:0,cpu:0", "gpu:-1"):
        with pytest.raises(
            InvalidArg, match=r"'memory\.enable_memory_arena_shrinkage' must be a list as 'gpu:0;cpu:0'"
        ):
            options.arenas(text)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            'onnx runtime error 1: a.cc:63 static X::Y() : 1 : FAIL : b.h:182 Parse Unknown provider option: "f".',
            "unknown parameter 'f' is provided for CUDA Execution Accelerator",
        ),
        (
            'onnx runtime error 1: a.cc:63 : FAIL : b.h:187 Parse Failed to parse provider option "device_id": CUDA '
            "failure 35: CUDA driver version is insufficient ; GPU=-1 ; hostname=x ; file=a.cc",
            "parameter 'device_id' of CUDA Execution Accelerator can not be used: CUDA failure 35: CUDA driver "
            "version is insufficient",
        ),
        (
            "onnx runtime error 1: p.cc:2043 FAIL : Failed to load library /a/p.so with error: libx.so.1: cannot open "
            "shared object file: No such file or directory\n",
            "the CUDA provider can not be loaded: libx.so.1: cannot open shared object file: No such file or directory",
        ),
        ("onnx runtime error 2: something else", "onnx runtime error 2: something else"),
    ],
)
def test_causes(text: str, short: str) -> None:
    assert options.cause(text, "CUDA") == short
