"""Flags with a form of their own: pairs, settings, choices, limits and their texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_fast import cli
from triton_fast.cli.table import BY_NAME, FLAGS

REPO = "--model-repository=/models"


def parse(*argv: str, **env: str) -> cli.Options:
    return cli.parse([REPO, *argv], env)


def bad(flag: str, value: str) -> str:
    with pytest.raises(cli.CliError) as caught:
        parse(f"--{flag}={value}")
    head = f'Bad option: "--{flag}".\n'
    assert str(caught.value).startswith(head)
    return str(caught.value)[len(head) :].rstrip("\n")


def refuse(*argv: str, **env: str) -> str:
    with pytest.raises(cli.CliError) as caught:
        parse(*argv, **env)
    return str(caught.value)


@pytest.mark.parametrize("value", ["foo", "=", "a=", "=b", "a,b=c"])
def test_metrics_config_form(value: str) -> None:
    assert bad("metrics-config", value) == f"--metrics-config option format is <setting>=<value>. Got {value}"


def test_metrics_config_values() -> None:
    o = parse("--metrics-config=counter_latencies=false", "--metrics-config=summary_quantiles=0.5:0.1,0.99:0.01")
    assert not o.metrics_config.counter_latencies
    assert o.metrics_config.summary_quantiles == ((0.5, 0.1), (0.99, 0.01))
    assert "Use true or false" in bad("metrics-config", "summary_latencies=maybe")
    for value in ("abc", "0.5", "2:0.1", "nan:0.1", "0.5:0.1,"):
        assert "<quantile>:<error>" in bad("metrics-config", f"summary_quantiles={value}")
    assert "unknown setting 'foo' is ignored" in parse("--metrics-config=foo=bar").notes[0]


def test_backend_config() -> None:
    o = parse(
        "--backend-config=onnxruntime,default-max-batch-size=8",
        "--backend-config=onnxruntime,x=a=b,c",
        "--backend-config=min-compute-capability=7",
    )
    assert o.backend_config == {
        "onnxruntime": {"default-max-batch-size": "8", "x": "a=b,c"},
        "": {"min-compute-capability": "7"},
    }
    with pytest.raises(TypeError):
        o.backend_config["x"] = {}  # type: ignore[index]
    with pytest.raises(TypeError):
        o.backend_config["onnxruntime"]["x"] = ""  # type: ignore[index]
    for value in ("foo", "a,b", "a,=b", "a,b=", "=b"):
        expected = f"--backend-config option format is '<backend name>,<setting>=<value>'. Got {value}"
        assert bad("backend-config", value) == expected
    assert bad("backend-config", ",a=b") == (
        "No backend specified. --backend-config option format is <backend name>,<setting>=<value> or "
        "<setting>=<value>. Got ,a=b"
    )


def test_cache_config() -> None:
    assert parse("--cache-config=local,size=5").cache_config == {"local": {"size": "5"}}
    for value in ("foo", ",a=b", "size=1"):
        assert bad("cache-config", value) == (
            f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {value}"
        )
    assert bad("cache-config", "a,b") == ("--cache-config option format is '<cache name>,<setting>=<value>'. Got a,b")


def test_rate_limit() -> None:
    o = parse("--rate-limit=Execution_Count", "--rate-limit-resource=R1:4:0", "--rate-limit-resource=R2:3")
    assert o.rate_limit == "execution_count"
    assert o.rate_limit_resource == (("R1", 4, 0), ("R2", 3, -1))
    assert bad("rate-limit", "x") == "invalid argument for --rate-limit"
    for value in ("a", "a:1:2:3"):
        assert bad("rate-limit-resource", value) == (
            f"--rate-limit-resource option format is '<resource_name>:<count>:<device>' or "
            f"'<resource_name>:<count>'. Got {value}"
        )
    assert bad("rate-limit-resource", "a:b") == "Invalid option value. Got b"


def test_host_policy() -> None:
    o = parse("--host-policy=gpu_0,numa-node=0", "--host-policy=gpu_0,cpu-cores=0-3,5")
    assert o.host_policy == {"gpu_0": {"numa-node": "0", "cpu-cores": "0-3,5"}}
    for value in ("a", "a,b", ",b=c", "a,b="):
        assert bad("host-policy", value) == (
            f"--host-policy option format is '<policy name>,<setting>=<value>'. Got {value}"
        )
    assert refuse("--host-policy=a,b=c") == (
        "Failed to build Triton option:\nerror: setting host policy: Unsupported - Unsupported host policy setting "
        "'b' is specified, supported settings are 'numa-node', 'cpu-cores'"
    )


@pytest.mark.parametrize(
    ("flag", "feature", "prefix"),
    [("http-restricted-api", "api", ""), ("grpc-restricted-protocol", "protocol", "triton-grpc-protocol-")],
)
def test_restricted(flag: str, feature: str, prefix: str) -> None:
    o = parse(f"--{flag}=health,metadata:k=v=w", f"--{flag}=inference:a=b")
    group = getattr(o, flag.replace("-", "_"))
    assert group == {
        "health": (f"{prefix}k", "v=w"),
        "metadata": (f"{prefix}k", "v=w"),
        "inference": (f"{prefix}a", "b"),
    }
    for value in ("a", "a:b", ":b=c", "a:=c", "a:b="):
        assert bad(flag, value) == f"--{flag} option format is '<config name>:<setting>=<value>'. Got {value}"
    assert bad(flag, "a:b=c") == f"unknown restricted {feature} 'a' "
    twice = f"restricted {feature} 'health' can not be specified in multiple config groups"
    assert bad(flag, "health,health:b=c") == twice
    assert twice in refuse(f"--{flag}=health:a=b", f"--{flag}=health:a=b")


def test_header_values_of_restricted_groups_stay_out_of_repr() -> None:
    o = parse("--http-restricted-api=health:k=SECRET", "--cache-config=redis,password=SECRET")
    assert "SECRET" not in repr(o)


def test_pairs_per_gpu() -> None:
    o = parse("--cuda-memory-pool-byte-size=0:64", "--cuda-memory-pool-byte-size=1:18446744073709551615")
    assert o.cuda_memory_pool_byte_size == {0: 64, 1: 2**64 - 1}
    assert bad("cuda-memory-pool-byte-size", "0").endswith("requires format <first>:<second>. Found: 0")
    assert bad("cuda-virtual-address-size", "0:-1") == "Provided option value is out of bound. Got -1"
    assert parse("--model-load-gpu-limit=0:0.5").model_load_gpu_limit == {0: 0.5}
    assert refuse("--model-load-gpu-limit=0:2").endswith(
        "error: setting model load GPU limit: Invalid argument - expects limit fraction to be in range [0.0, 1.0], "
        "got 2.000000"
    )


def test_choices_and_limits() -> None:
    assert parse("--log-format=ISO8601").log_format == "ISO8601"
    assert parse("--log-format=json").log_format == "json"
    assert bad("log-format", "iso8601") == "invalid argument for --log-format"
    assert parse("--grpc-infer-response-compression-level=HIGH").grpc_infer_response_compression_level == "high"
    assert bad("grpc-infer-response-compression-level", "x") == (
        "invalid argument for --grpc_infer_response_compression_level"
    )
    for value in ("1", "129"):
        assert bad("grpc-infer-thread-count", value) == (
            "invalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128."
        )
    assert bad("grpc-max-response-pool-size", "0") == "Error: --grpc-max-response-pool-size must be greater than 0."
    assert bad("http-max-input-size", "0") == "Error: --http-max-input-size must be greater than 0."
    assert parse("--http-max-input-size=9223372036854775807").http_max_input_size == 2**63 - 1
    assert bad("model-config-name", "") == "Error: empty argument for --model-config-name"
    assert bad("http-port", "70000") == "Provided option value is out of bound. Got 70000"
    assert bad("http-port", "-1") == "Provided option value is out of bound. Got -1"
    assert bad("access-log", "1.5").startswith("must be in the range 0 to 1.")
    assert bad("min-supported-compute-capability", "nan") == "Invalid option value. Got nan"


def test_verbose_takes_a_level_or_a_boolean() -> None:
    for text, level in (("true", 1), ("FALSE", 0), ("3", 3)):
        assert parse(f"--log-verbose={text}").log_verbose == level
    assert bad("log-verbose", "on") == "Invalid option value. Got on"


def test_header_patterns_must_compile() -> None:
    assert parse("--http-header-forward-pattern=(my|your)-.*").http_header_forward_pattern == "(my|your)-.*"
    assert bad("http-header-forward-pattern", "(").startswith("invalid regular expression '('")


def test_trace_settings() -> None:
    o = parse(
        "--trace-config=triton,file=/t.json", "--trace-config=triton,log-frequency=5", "--trace-config=rate=7",
        "--trace-config=count=9", "--trace-config=level=TIMESTAMPS", "--trace-config=level=tensors", "--trace-count=1",
    )  # fmt: skip
    assert o.trace == cli.TraceOptions("triton", ("TIMESTAMPS", "TENSORS"), 7, 9, "/t.json", 5)
    o = parse("--trace-level=MAX", "--trace-level=OFF", "--trace-file=f")
    assert (o.trace.level, o.trace.file) == ((), "f")
    o = parse(
        "--trace-config=mode=opentelemetry", "--trace-config=opentelemetry,url=h:1", "--trace-config",
        "opentelemetry,resource=a=b", "--trace-config=opentelemetry,bsp_schedule_delay=6", OTEL_BSP_MAX_QUEUE_SIZE="9",
    )  # fmt: skip
    assert o.trace.mode == "opentelemetry"
    assert set(o.trace.otel) == {
        ("url", "h:1"), ("resource", "a=b"), ("bsp_schedule_delay", "6"), ("bsp_max_queue_size", "9"),
        ("bsp_max_export_batch_size", "512"),
    }  # fmt: skip


def test_trace_texts() -> None:
    form = "--trace-config option format is '<trace mode>,<setting>=<value>'. Got foo"
    assert bad("trace-config", "foo") == form
    assert bad("trace-config", ",a=b").startswith(
        "No trace mode specified. --trace-config option format is <trace mode>"
    )
    assert bad("trace-config", "a,b") == (
        'invalid value for trace mode option: a. Available options are "triton" and "opentelemetry"'
    )
    assert bad("trace-level", "x") == "invalid value for trace level option: x"
    assert refuse("--trace-config=rate=x") == 'Bad option: "--trace-config rate".\nInvalid option value. Got x\n\n'
    assert refuse("--trace-config=triton,log-frequency=x").startswith(
        'Bad option: "--trace-config triton,log-frequency"'
    )
    assert refuse(OTEL_BSP_SCHEDULE_DELAY="-1") == (
        'Bad option: "OTEL_BSP_SCHEDULE_DELAY".\nProvided option value is out of bound. Got -1\n\n'
    )


def test_own_flags_have_sane_limits() -> None:
    o = parse(
        "--http-header-timeout-secs=1", "--http-max-connections=1", "--http-max-head-size=1024", "--access-log=0.25"
    )
    assert (o.http_header_timeout_secs, o.http_max_connections, o.http_max_head_size, o.access_log) == (
        1,
        1,
        1024,
        0.25,
    )
    for flag in (
        "http-header-timeout-secs",
        "http-body-timeout-secs",
        "http-idle-timeout-secs",
        "http-max-connections",
    ):
        assert bad(flag, "0") == "Provided option value is out of bound. Got 0"


@pytest.mark.parametrize(
    ("flag", "low", "high"),
    [
        ("grpc-max-message-size", 1, 2**31 - 1),
        ("grpc-max-inflated-size", 1, 2**31 - 1),
        ("grpc-max-metadata-size", 1024, 1 << 20),
        ("grpc-max-concurrent-streams", 1, 1_000_000),
        ("grpc-max-connections", 1, 2**31 - 1),
    ],
)
def test_limits_of_grpc(flag: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(parse(f"--{flag}={value}"), flag.replace("-", "_")) == value
    for value in (low - 1, high + 1):
        assert bad(flag, str(value)) == f"Provided option value is out of bound. Got {value}"


@given(st.sampled_from([flag.name for flag in FLAGS if flag.kind.word]), st.text(max_size=40))
def test_any_text_is_a_value_or_a_clear_error(name: str, text: str) -> None:
    try:
        parse(f"--{name}={text}")
    except cli.CliError as error:
        assert str(error)
    assert BY_NAME[name].help
