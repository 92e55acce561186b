"""The command line: parsing rules, error texts, defaults, cross checks, and what derives from the table."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from triton_fast import cli
from triton_fast.cli.table import BY_NAME, DEPRECATED, FLAGS, GROUPS

REPO = "--model-repository=/models"


def parse(*argv: str, **env: str) -> cli.Options:
    return cli.parse([REPO, *argv], env)


def refuse(*argv: str, **env: str) -> str:
    with pytest.raises(cli.CliError) as caught:
        parse(*argv, **env)
    return str(caught.value)


def bad(flag: str, value: str) -> str:
    """The text below ``Bad option`` without the newlines that Triton ends it with."""
    text = refuse(f"--{flag}={value}")
    head = f'Bad option: "--{flag}".\n'
    assert text.startswith(head)
    assert text.endswith("\n")
    return text[len(head) :].rstrip("\n")


# --- shape -----------------------------------------------------------------------------------------------------


def test_every_field_comes_from_the_table_or_is_derived() -> None:
    derived = {"log_escape", "cpu_only", "warnings", "notes", "gpu_notes", "trace"}
    derived |= {f"sagemaker_{part}" for part in ("ping_mode", "default_model", "inference_type")}
    derived |= {"vertex_ai_predict_route", "vertex_ai_health_route"}
    folded = {"help", "disable_auto_complete_config", "response_cache_byte_size"}
    from_table = {flag.field for flag in FLAGS} - folded
    from_table = {name for name in from_table if not name.startswith("trace_")}
    assert set(cli.Options.__dataclass_fields__) - derived == from_table


def test_defaults_are_those_of_the_specification() -> None:
    o = cli.parse([REPO], {})
    assert (o.http_port, o.grpc_port, o.metrics_port, o.sagemaker_port, o.vertex_ai_port) == (
        8000,
        8001,
        8002,
        8080,
        8080,
    )
    assert (o.allow_http, o.allow_grpc, o.allow_metrics, o.allow_sagemaker, o.allow_vertex_ai) == (
        True, True, True, False, False,
    )  # fmt: skip
    assert (o.exit_timeout_secs, o.model_load_thread_count, o.model_load_retry_count) == (30, 4, 0)
    assert (o.exit_on_error, o.strict_readiness, o.strict_model_config, o.allow_client_shm) == (
        True,
        True,
        False,
        False,
    )
    assert (o.http_max_input_size, o.pinned_memory_pool_byte_size) == (67108864, 268435456)
    assert (o.grpc_infer_thread_count, o.grpc_infer_allocation_pool_size) == (2, 8)
    assert o.grpc_max_response_pool_size == 1024  # on purpose not 2**31 - 1: a slow reader must not hold all memory
    assert (o.grpc_keepalive_time, o.grpc_keepalive_timeout) == (7200000, 20000)
    assert o.grpc_http2_min_recv_ping_interval_without_data == 300000
    assert o.grpc_max_connection_age is None
    assert (o.model_control_mode, o.repository_poll_secs, o.rate_limit) == ("none", 0, "off")
    assert (o.metrics_address, o.metrics_interval_ms, o.min_supported_compute_capability) == ("0.0.0.0", 2000, 6.0)
    assert (o.log_info, o.log_warning, o.log_error, o.log_verbose, o.log_format) == (True, True, True, 0, "default")
    assert (o.server_id, o.log_escape, o.cpu_only, o.warnings, o.notes) == ("triton", True, False, (), ())
    assert o.trace == cli.TraceOptions()
    assert (o.http_use_ssl, o.grpc_use_ssl, o.http_server_cert, o.grpc_root_cert) == (False, False, "", "")
    assert (o.grpc_max_message_size, o.grpc_max_inflated_size, o.grpc_max_metadata_size) == (2**31 - 1, 1 << 28, 16384)
    assert (o.grpc_max_concurrent_streams, o.grpc_max_connections) == (1000, 4096)


def test_defaults_helper_replaces_fields_and_knows_their_names() -> None:
    assert cli.defaults(http_port=0).http_port == 0
    with pytest.raises(TypeError, match="no such option: htp_port"):
        cli.defaults(htp_port=1)


# What TLS needs to be allowed.
PEM_FLAGS = ("server-cert", "server-key", "root-cert")
PEM_FILES = [f"--{protocol}-{file}=x" for protocol in ("http", "grpc") for file in PEM_FLAGS]


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.kind.word == "boolean"], ids=lambda flag: flag.name)
def test_every_boolean_flag_takes_triton_words(flag) -> None:  # type: ignore[no-untyped-def]
    for word, value in (("true", True), ("ON", True), ("1", True), ("False", False), ("off", False), ("0", False)):
        assert getattr(parse(f"--{flag.name}={word}", *PEM_FILES), flag.field) is value
    assert bad(flag.name, "maybe") == "invalid value for bool option: maybe"


def _typed_ints() -> list[str]:
    return [flag.name for flag in FLAGS if flag.kind.word in ("integer", "float")]


@pytest.mark.parametrize("name", _typed_ints())
def test_every_number_flag_refuses_words_and_overflow(name: str) -> None:
    assert bad(name, "abc") == "Invalid option value. Got abc"
    assert bad(name, "") == "Invalid option value. Got "
    over = "1e999" if name in ("min-supported-compute-capability", "access-log") else "9" * 5000
    assert bad(name, over) == f"Provided option value is out of bound. Got {over}"


# --- getopt ----------------------------------------------------------------------------------------------------


def test_forms_of_a_value() -> None:
    assert parse("--http-port=9000").http_port == 9000
    assert parse("--http-port", "9000").http_port == 9000
    assert parse("--http-po", "9000").http_port == 9000
    assert parse("--id", "--http-port").server_id == "--http-port"
    assert parse("--id=a=b").server_id == "a=b"
    assert parse("--http-port=1", "--http-port=2").http_port == 2
    assert parse("--").http_port == 8000


@pytest.mark.parametrize(
    ("text", "value"), [("12abc", 12), (" 5x", 5), ("+7", 7), ("007", 7), ("0" * 5000 + "9", 9), ("\t 3", 3)]
)
def test_integers_follow_stoi(text: str, value: int) -> None:
    assert parse(f"--http-port={text}").http_port == value


def getopt_error(*argv: str) -> tuple[str, str]:
    with pytest.raises(cli.CliError) as caught:
        parse(*argv)
    assert caught.value.text() == caught.value.before + cli.usage() + f"{caught.value}\n"
    return caught.value.before, str(caught.value)


def test_getopt_texts() -> None:
    assert getopt_error("--nope")[0] == "tritonserver: unrecognized option '--nope'\n"
    assert getopt_error("--htp-port=1") == (
        "tritonserver: unrecognized option '--htp-port=1'\n",
        "Unrecognized option '--htp-port=1'. Did you mean \"--http-port\"?",
    )
    assert getopt_error("--log-info") == ("tritonserver: option '--log-info' requires an argument\n", "")
    assert getopt_error("--disable-auto-complete-config=1")[0] == (
        "tritonserver: option '--disable-auto-complete-config' doesn't allow an argument\n"
    )
    assert getopt_error("--grpc-keepalive-ti=1")[0] == (
        "tritonserver: option '--grpc-keepalive-ti=1' is ambiguous; possibilities: "
        "'--grpc-keepalive-time' '--grpc-keepalive-timeout'\n"
    )
    assert getopt_error("-x")[0] == "tritonserver: invalid option -- 'x'\n"


def test_an_exact_name_is_never_ambiguous() -> None:
    assert parse("--grpc-keepalive-time=5").grpc_keepalive_time == 5


@pytest.mark.parametrize(
    ("short", "field"), [("--http-max=5", "http_max_input_size"), ("--http-he=x", "http_header_forward_pattern")]
)
def test_our_flags_make_nothing_ambiguous_that_triton_takes(short: str, field: str) -> None:
    assert str(getattr(parse(short), field)) == short.partition("=")[2]


def test_left_over_words() -> None:
    assert refuse("extra") == "Unexpected argument: extra"
    assert refuse("a", "--http-port=1") == "Unexpected argument: a"
    assert refuse("--", "--http-port=1") == "Unexpected argument: --http-port=1"


def test_help_and_errors_exit_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, tail in ((["--help"], "\n\n"), ([REPO, "--log-info=x"], "invalid value for bool option: x\n\n")):
        err = io.StringIO()
        with pytest.raises(SystemExit) as caught:
            cli.parse_or_exit(argv, {}, err)
        assert caught.value.code == 1
        assert err.getvalue().startswith("Usage: tritonserver [options]\n  --help\n")
        assert err.getvalue().endswith(tail)
    assert capsys.readouterr() == ("", "")


def test_usage_has_every_flag_under_tritons_groups() -> None:
    lines = cli.usage().splitlines()
    heads = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(("\t", " "))]
    assert heads == [group for group in GROUPS if group]
    assert heads[:4] == ["Server", "Logging", "Model Repository", "HTTP"]
    assert [line.split()[0][2:] for line in lines if line.startswith("  --")] == [
        flag.name for group in GROUPS for flag in FLAGS if flag.group == group
    ]
    assert "  --http-restricted-api <<string>:<string>=<string>>" in lines
    assert max(len(line) for line in lines) <= 90


def test_flags_page_is_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "flags.md"
    assert page.read_text() == cli.markdown(), "run: python -m triton_fast.cli > docs/flags.md"


def test_rows_are_consistent() -> None:
    assert len(BY_NAME) == len(FLAGS)
    for flag in FLAGS:
        assert (flag.group == DEPRECATED) == bool(flag.replaced_by), flag.name
        assert flag.group in GROUPS
        assert flag.help.endswith("."), flag.name


# --- notes and warnings ----------------------------------------------------------------------------------------


def test_later_flags_say_so_once_when_given() -> None:
    assert parse("--http-thread-count=1", "--http-thread-count=2").notes == (
        "--http-thread-count is accepted, but one event loop serves all connections, so a thread count has no effect",
    )
    assert parse("--allow-gpu-metrics=false").notes == ()
    assert parse("--model-control-mode=poll", "--model-load-retry-count=2", "--model-namespacing=1").notes == ()
    assert parse("--metrics-config=summary_latencies=true", "--metrics-config=histogram_latencies=true").notes == ()
    assert "unknown setting 'x' is ignored" in parse("--metrics-config=x=1").notes[0]


def test_flags_for_gpus_have_a_word_for_machines_without_one() -> None:
    o = parse("--pinned-memory-pool-byte-size=0", "--cuda-memory-pool-byte-size=0:1", "--enable-peer-access=false",
              "--cuda-memory-pool-byte-size=1:1", "--cuda-virtual-address-size=0:1")  # fmt: skip
    assert o.gpu_notes == (
        "--pinned-memory-pool-byte-size is accepted, but there is no GPU that it could be for",
        "--cuda-memory-pool-byte-size is accepted, but there is no GPU that it could be for",
    )
    assert o.notes == (
        "--cuda-virtual-address-size is accepted, but states of sequences are kept in host memory, so it has no effect",
    )
    assert parse().gpu_notes == ()


def test_deprecated_flags_still_work_and_warn() -> None:
    o = parse("--strict-model-config=true")
    assert o.strict_model_config
    assert o.warnings == (
        "Warning: '--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead.",
    )
    o = parse("--strict-model-config=false", "--disable-auto-complete-config")
    assert o.strict_model_config
    assert "from False to True" in o.warnings[-1]
    o = parse("--response-cache-byte-size=64")
    assert o.cache_config == {"local": {"size": "64"}}
    assert "'--cache-config=local,size=64'" in o.warnings[0]
    err = io.StringIO()
    cli.parse_or_exit([REPO, "--trace-rate=5"], {}, err)
    assert err.getvalue() == (
        "Warning: '--trace-rate' has been deprecated and will be removed in future releases. "
        "Please use '--trace-config rate=<rate value> instead.\n"
    )


def test_deprecations_are_told_when_something_later_is_wrong() -> None:
    rate = (
        "Warning: '--trace-rate' has been deprecated and will be removed in future releases. "
        "Please use '--trace-config rate=<rate value> instead.\n"
    )
    level = "Warning: '--trace-level' has been deprecated and will be removed"
    for wrong, more in (
        (["--trace-rate=5", "--trace-level=FOO"], level),
        (["--trace-rate=5", "--http-port=x", "--trace-level=OFF"], ""),
        (["--trace-rate=5", "--nothing"], "tritonserver: unrecognized option"),
        (["--trace-rate=5", "--load-model=m"], "Usage: "),
        (["--trace-rate=5", "--host-policy=a,b=c"], "Failed to build"),
    ):
        err = io.StringIO()
        with pytest.raises(SystemExit):
            cli.parse_or_exit([REPO, *wrong], {}, err)
        assert err.getvalue().startswith(rate + more)
        assert err.getvalue().count("Warning: ") == 1 + more.startswith("Warning")


# --- cross checks ----------------------------------------------------------------------------------------------


def test_port_clash() -> None:
    both = "The server cannot listen to HTTP requests and {} requests at the same address and port 0.0.0.0:{}\n"
    assert refuse("--http-port=8001") == both.format("GRPC", 8001)
    assert refuse("--http-port=8002") == both.format("metrics", 8002)
    assert refuse("--http-port=8080", "--allow-sagemaker=1") == both.format("SageMaker", 8080)
    assert parse("--http-port=8001", "--allow-grpc=false").http_port == 8001
    assert parse("--http-port=8001", "--http-address=127.0.0.1").http_port == 8001
    assert parse("--http-port=0", "--grpc-port=0", "--metrics-port=0").metrics_port == 0
    assert refuse("--http-port=8080", "--allow-vertex-ai=1") == both.format("Vertex AI", 8080)


PORTS = {"HTTP": "http", "GRPC": "grpc", "metrics": "metrics", "SageMaker": "sagemaker", "Vertex AI": "vertex-ai"}
ALL_PORTS = (
    "--allow-sagemaker=1",
    "--allow-vertex-ai=1",
    *(f"--{p}-port={n + 1}" for n, p in enumerate(PORTS.values())),
)


@pytest.mark.parametrize(("name", "other"), list(itertools.combinations(PORTS, 2)))
def test_every_pair_of_ports(name: str, other: str) -> None:
    clash = (f"--{PORTS[name]}-port=77", f"--{PORTS[other]}-port=77")
    assert refuse(*ALL_PORTS, *clash) == (
        f"The server cannot listen to {name} requests and {other} requests at the same address and port 0.0.0.0:77\n"
    )
    assert parse(*ALL_PORTS, *clash, f"--{PORTS[name]}-address=127.0.0.1", "--metrics-address=127.0.0.2")


@pytest.mark.parametrize("name", [name for name in PORTS if name != "SageMaker"])
def test_every_port_in_the_range_of_sagemaker(name: str) -> None:
    among = (*ALL_PORTS, "--sagemaker-safe-port-range=1-9")
    assert parse(*among).sagemaker_safe_port_range == (1, 9)
    for port in (10, 65535):
        assert refuse(*among, f"--{PORTS[name]}-port={port}") == (
            f"The server cannot listen to {name} requests at port {port}, allowed port range is [1, 9]\n"
        )
    # Its own port need not lie in the range, and without SageMaker there is none.
    assert parse(*among, "--sagemaker-port=10").sagemaker_port == 10
    assert parse(*among, f"--{PORTS[name]}-port=10", "--allow-sagemaker=0")


def test_environment_of_the_clouds() -> None:
    o = cli.parse([REPO], {})
    assert (o.sagemaker_ping_mode, o.sagemaker_inference_type) == ("ready", "infer")
    assert (o.vertex_ai_predict_route, o.vertex_ai_health_route) == ("", "")
    given = {"SAGEMAKER_TRITON_PING_MODE": "live", "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "m"}
    given |= {"SAGEMAKER_TRITON_INFERENCE_TYPE": "generate", "AIP_PREDICT_ROUTE": "/p", "AIP_HEALTH_ROUTE": "/h"}
    o = cli.parse([REPO], given)
    assert (o.sagemaker_ping_mode, o.sagemaker_default_model, o.sagemaker_inference_type) == ("live", "m", "generate")
    assert (o.vertex_ai_predict_route, o.vertex_ai_health_route) == ("/p", "/h")
    assert not o.notes


def test_threads_of_the_clouds_have_no_effect() -> None:
    text = "is accepted, but one event loop serves all connections, so a thread count has no effect"
    notes = parse("--sagemaker-thread-count=2", "--vertex-ai-thread-count=2", "--allow-vertex-ai=1").notes
    assert notes == (f"--sagemaker-thread-count {text}", f"--vertex-ai-thread-count {text}")


def test_sagemaker_range() -> None:
    assert refuse("--allow-sagemaker=true", "--sagemaker-safe-port-range=8001-9000") == (
        "The server cannot listen to HTTP requests at port 8000, allowed port range is [8001, 9000]\n"
    )
    assert parse("--allow-sagemaker=true", "--sagemaker-safe-port-range=8000-8002").sagemaker_port == 8080
    assert bad("sagemaker-safe-port-range", "5").endswith("requires format <first>-<second>. Found: 5")


def test_only_what_has_no_meaning_for_grpc_says_so() -> None:
    rows = [flag for flag in FLAGS if "grpc" in flag.name and flag.later]
    assert [flag.name for flag in rows] == ["grpc-infer-thread-count", "grpc-infer-allocation-pool-size"]
    assert all(flag.later.endswith("has no effect") for flag in rows)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tls_needs_its_files(protocol: str) -> None:
    head = "error: creating server: Invalid argument - "
    ssl, mutual = f"--{protocol}-use-ssl", f"--{protocol}-use-ssl-mutual"
    cert, key, root = (f"--{protocol}-{file}=x" for file in PEM_FLAGS)
    missing = f"{head}{ssl} needs --{protocol}-server-cert and --{protocol}-server-key"
    for flags in ([], [cert], [key], [root]):
        assert refuse(f"{ssl}=true", *flags) == missing
        assert refuse(f"{mutual}=true", *flags) == missing
    assert refuse(f"{mutual}=1", cert, key) == f"{head}{mutual} needs --{protocol}-root-cert"
    o = parse(f"{mutual}=1", cert, key, root)
    field = f"{protocol}_use_ssl"
    assert (getattr(o, field), getattr(o, f"{field}_mutual")) == (True, True)
    o = parse(f"{ssl}=1", cert, key)
    assert (getattr(o, field), getattr(o, f"{field}_mutual")) == (True, False)
    assert getattr(parse(f"--allow-{protocol}=false", f"{ssl}=true"), field)
    assert not getattr(parse(cert, key, root), field)


def test_models_to_load() -> None:
    assert refuse("--load-model=x") == (
        "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."
    )
    explicit = "--model-control-mode=EXPLICIT"
    assert parse(explicit, "--load-model=b", "--load-model=a", "--load-model=b").load_model == ("a", "b")
    assert parse(explicit, "--load-model=*").load_model == ("*",)
    assert refuse(explicit, "--load-model=*", "--load-model=a") == (
        "error: creating server: Invalid argument - "
        "Wildcard model name '*' must be the ONLY startup model if specified at all."
    )


def test_repository_is_required() -> None:
    with pytest.raises(cli.CliError) as caught:
        cli.parse([], {})
    assert caught.value.text() == "error: creating server: Invalid argument - --model-repository must be specified\n"
    assert cli.parse(["--model-store=b", "--model-repository", "a"], {}).model_repository == ("a", "b")
    assert cli.parse([], {"AIP_STORAGE_URI": "gs://x"}).model_repository == ("gs://x",)


def test_mode_and_poll_period() -> None:
    assert parse("--model-control-mode=poll").repository_poll_secs == 15
    assert parse("--repository-poll-secs=3").repository_poll_secs == 0
    assert bad("model-control-mode", "x") == "invalid argument for --model-control-mode"


def test_cache_flags_exclude_each_other() -> None:
    assert refuse("--response-cache-byte-size=1", "--cache-config=local,size=1").startswith(
        "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided."
    )
    assert refuse("--cache-config=a,b=1", "--cache-config=c,b=1").endswith(
        "found multiple cache configurations, but only a single cache is currently supported"
    )


def test_metrics_address_follows_http() -> None:
    assert parse("--http-address=127.0.0.1").metrics_address == "127.0.0.1"
    assert parse("--http-address=127.0.0.1", "--metrics-address=::1").metrics_address == "::1"
    o = parse("--allow-metrics=false")
    assert (o.allow_gpu_metrics, o.allow_cpu_metrics) == (False, False)


def test_environment() -> None:
    o = parse(AIP_MODE="PREDICTION", AIP_HTTP_PORT="9")
    assert (o.allow_vertex_ai, o.allow_http, o.allow_grpc, o.vertex_ai_port) == (True, False, False, 9)
    assert parse("--allow-http=true", AIP_MODE="PREDICTION").allow_http
    assert not parse(TRITON_SERVER_ESCAPE_LOG_MESSAGES="0").log_escape
    assert parse(TRITON_SERVER_ESCAPE_LOG_MESSAGES="false").log_escape
    assert parse(TRITON_SERVER_CPU_ONLY="").cpu_only
    assert refuse(AIP_HTTP_PORT="x") == 'Bad option: "AIP_HTTP_PORT".\nInvalid option value. Got x\n\n'


def test_negative_counts_are_lifted_as_triton_does() -> None:
    o = parse("--exit-timeout-secs=-5", "--model-load-thread-count=0", "--buffer-manager-thread-count=-1")
    assert (o.exit_timeout_secs, o.model_load_thread_count, o.buffer_manager_thread_count) == (0, 1, 0)
