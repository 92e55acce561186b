"""THE table of flags: one row each. The parser, --help, docs/flags.md and the tests all derive from it.

A row whose ``later`` is not empty is accepted and checked, and its word is logged at start-up when the flag is given:
the feature comes later or has no meaning in this server. One with ``gpu`` says so where there is no GPU. Rows know
nothing of how options are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triton_fast.cli import values as v

GROUPS = (
    "",
    "Server",
    "Logging",
    "Model Repository",
    "HTTP",
    "GRPC",
    "Sagemaker",
    "Vertex",
    "Metrics",
    "Tracing",
    "Backend",
    "Repository Agent",
    "Response Cache",
    "Rate Limiter",
    "Memory/Device Management",
    "Shared Memory",
    "triton_fast (flags that Triton does not have)",
    "DEPRECATED",
)
_ANY, _SERVER, _LOG, _REPO, _HTTP, _GRPC, _SAGE, _VERTEX, _METRICS = GROUPS[:9]
_TRACE, _BACKEND, _AGENT, _CACHE, _RATE, _MEMORY, _SHM, OURS, DEPRECATED = GROUPS[9:]

_NO_THREADS = "one event loop serves all connections, so a thread count has no effect"
_NO_CACHE = "compiled caches are not loaded: local and redis are built in"


@dataclass(frozen=True)
class Flag:
    """One row. ``dest`` is the field of ``Options``; ``unit`` is shown beside the default."""

    name: str
    kind: v.Kind
    default: Any
    group: str
    help: str
    unit: str = ""
    repeatable: bool = False
    replaced_by: str = ""
    later: str = ""
    gpu: bool = False
    dest: str = ""

    @property
    def field(self) -> str:
        return self.dest or self.name.replace("-", "_")

    @property
    def status(self) -> str:
        return "later" if self.later else "active"


# fmt: off
FLAGS: tuple[Flag, ...] = (
    Flag("help", v.NONE, False, _ANY, "Print this text and exit."),

    Flag("id", v.STR, "triton", _SERVER, "Name the server gives in its metadata.", dest="server_id"),
    Flag("exit-timeout-secs", v.INT, 30, _SERVER, "How long SIGINT or SIGTERM waits for requests in flight before the "
         "server exits regardless, with code 1.", unit="s"),

    Flag("log-verbose", v.VERBOSE, 0, _LOG, "Verbose level: 0 is none, each higher level logs more."),
    Flag("log-info", v.BOOL, True, _LOG, "Log information."),
    Flag("log-warning", v.BOOL, True, _LOG, "Log warnings."),
    Flag("log-error", v.BOOL, True, _LOG, "Log errors."),
    Flag("log-format", v.choice("log-format", "default", "ISO8601", "json", fold=False), "default", _LOG,
         "Form of a log line: \"default\" (LMMDD hh:mm:ss.ssssss), \"ISO8601\" (YYYY-MM-DDThh:mm:ssZ L), or \"json\" "
         "(one JSON object a line; triton_fast only)."),
    Flag("log-file", v.STR, "", _LOG, "Append log lines to this file. Without it information goes to stdout, warnings "
         "and errors go to stderr."),

    Flag("model-store", v.STRS, (), _REPO, "The same as --model-repository.", repeatable=True, dest="model_repository"),
    Flag("model-repository", v.STRS, (), _REPO, "Directory that holds models, or such a place in a store: s3://, "
         "gs://, as:// (docs/cloud_repositories.md). Required; may be given several times. A model name that "
         "stands in two repositories is not served, but with --model-namespacing.", repeatable=True),
    Flag("exit-on-error", v.BOOL, True, _REPO, "Exit if a model fails to load at start."),
    Flag("disable-auto-complete-config", v.NONE, False, _REPO, "Never complete a model's configuration from the model "
         "itself: every model needs a whole config.pbtxt."),
    Flag("strict-readiness", v.BOOL, True, _REPO, "Report ready only when every model is ready; if false, as soon as "
         "the server answers."),
    Flag("model-control-mode", v.choice("model-control-mode", "none", "poll", "explicit"), "none", _REPO, "\"none\": "
         "all models are loaded at start and stay. \"poll\": changes in the repository are followed. \"explicit\": "
         "--load-model and the repository API say what is loaded."),
    Flag("repository-poll-secs", v.INT, 15, _REPO, "Period of mode \"poll\"; 0 never looks by itself.", unit="s"),
    Flag("load-model", v.STRS, (), _REPO, "Model to load at start in mode \"explicit\"; may be given several times. "
         "\"*\", alone, loads all.", repeatable=True),
    Flag("model-config-name", v.CONFIG_NAME, "", _REPO, "Use configs/<name>.pbtxt of a model, where it exists, instead "
         "of config.pbtxt."),
    Flag("model-load-thread-count", v.INT, 4, _REPO, "Models loaded at the same time."),
    Flag("model-load-retry-count", v.INT, 0, _REPO, "Attempts after a load that failed."),
    Flag("model-namespacing", v.BOOL, False, _REPO, "Allow one model name in several repositories: each is a "
         "namespace, and ensembles prefer the members of their own."),
    Flag("enable-peer-access", v.BOOL, True, _REPO, "Let GPUs read each other's memory.", gpu=True),

    Flag("allow-http", v.BOOL, True, _HTTP, "Serve HTTP. False by default where AIP_MODE=PREDICTION."),
    Flag("http-address", v.STR, "0.0.0.0", _HTTP, "Address to listen on for HTTP."),
    Flag("http-port", v.PORT, 8000, _HTTP, "Port to listen on for HTTP; 0 takes a free one."),
    Flag("reuse-http-port", v.BOOL, False, _HTTP, "Let several servers, all with this flag, share the HTTP port."),
    Flag("http-header-forward-pattern", v.REGEX, "", _HTTP, "Regular expression; request headers that match it, in any "
         "case, become request parameters."),
    Flag("http-thread-count", v.INT, 8, _HTTP, "Threads that serve HTTP.",
         later=_NO_THREADS),
    Flag("http-max-input-size", v.bounded(1, v.INT64[1], "Error: --http-max-input-size must be greater than 0.",
         v.INT64), 67108864, _HTTP, "Largest request body, also after decompression.", unit="bytes"),
    Flag("http-restricted-api", v.restricted("http-restricted-api", "api"), v.EMPTY, _HTTP,
         "<apis>:<key>=<value>. These APIs (comma list of " + ", ".join(v.RESTRICTED) + ") answer only requests with "
         "header <key> equal to <value>, which may be file:<path> or env:<variable>. May be given several times.",
         repeatable=True),

    Flag("allow-grpc", v.BOOL, True, _GRPC, "Serve gRPC. False by default where AIP_MODE=PREDICTION."),
    Flag("grpc-address", v.STR, "0.0.0.0", _GRPC, "Address to listen on for gRPC."),
    Flag("grpc-port", v.PORT, 8001, _GRPC, "Port to listen on for gRPC; 0 takes a free one."),
    Flag("reuse-grpc-port", v.BOOL, False, _GRPC, "Let several servers share the gRPC port."),
    Flag("grpc-header-forward-pattern", v.REGEX, "", _GRPC, "Regular expression; metadata keys that match it, in any "
         "case, become request parameters."),
    Flag("grpc-infer-thread-count", v.bounded(2, 128, "invalid argument for --grpc_infer_thread_count. Must be in the "
         "range 2 to 128."), 2, _GRPC, "Threads for inference over gRPC.",
         later="one event loop serves all connections, so a thread count has no effect"),
    Flag("grpc-infer-allocation-pool-size", v.INT, 8, _GRPC, "Request objects kept for reuse.",
         later="requests come from a pool that grows by itself, so a size has no effect"),
    Flag("grpc-max-response-pool-size", v.bounded(1, v.INT32[1], "Error: --grpc-max-response-pool-size must be greater "
         "than 0."), 1024, _GRPC, "Responses of one decoupled request that may wait for a slow reader; then its model "
         "waits (Triton: no limit)."),
    Flag("grpc-use-ssl", v.BOOL, False, _GRPC, "Encrypt gRPC with TLS; needs --grpc-server-cert and "
         "--grpc-server-key."),
    Flag("grpc-use-ssl-mutual", v.BOOL, False, _GRPC, "TLS with a client certificate; implies --grpc-use-ssl and "
         "needs --grpc-root-cert."),
    Flag("grpc-server-cert", v.STR, "", _GRPC, "PEM file: certificate of the server."),
    Flag("grpc-server-key", v.STR, "", _GRPC, "PEM file: key of the server."),
    Flag("grpc-root-cert", v.STR, "", _GRPC, "PEM file: root that signs client certificates."),
    Flag("grpc-infer-response-compression-level", v.choice("grpc_infer_response_compression_level", "none", "low",
         "medium", "high"), "none", _GRPC, "Compression of responses: none, low, medium or high."),
    Flag("grpc-keepalive-time", v.INT, 7200000, _GRPC, "Idle time before a keepalive ping.", unit="ms"),
    Flag("grpc-keepalive-timeout", v.INT, 20000, _GRPC, "Wait for the answer to a keepalive ping.", unit="ms"),
    Flag("grpc-keepalive-permit-without-calls", v.BOOL, False, _GRPC, "Ping also when no call is in flight."),
    Flag("grpc-http2-max-pings-without-data", v.INT, 2, _GRPC, "Pings sent without data between them; 0 is no limit."),
    Flag("grpc-http2-min-recv-ping-interval-without-data", v.INT, 300000, _GRPC, "Pings that arrive faster than this "
         "without data count as strikes.", unit="ms"),
    Flag("grpc-http2-max-ping-strikes", v.INT, 2, _GRPC, "Strikes before the connection is closed; 0 is no limit."),
    Flag("grpc-max-connection-age", v.INT, None, _GRPC, "Longest life of a connection.", unit="ms"),
    Flag("grpc-max-connection-age-grace", v.INT, None, _GRPC, "What calls get after that age.", unit="ms"),
    Flag("grpc-restricted-protocol", v.restricted("grpc-restricted-protocol", "protocol", "triton-grpc-protocol-"),
         v.EMPTY, _GRPC, "<protocols>:<key>=<value>. As --http-restricted-api, with metadata key "
         "triton-grpc-protocol-<key>.", repeatable=True),

    Flag("allow-sagemaker", v.BOOL, False, _SAGE, "Serve the SageMaker routes."),
    Flag("sagemaker-port", v.PORT, 8080, _SAGE, "Port to listen on for SageMaker; 0 takes a free one."),
    Flag("sagemaker-safe-port-range", v.PORT_RANGE, None, _SAGE, "<first>-<last>: ports that the other front ends may "
         "use."),
    Flag("sagemaker-thread-count", v.INT, 8, _SAGE, "Threads for SageMaker requests.", later=_NO_THREADS),

    Flag("allow-vertex-ai", v.BOOL, False, _VERTEX, "Serve Vertex AI. True by default where AIP_MODE=PREDICTION."),
    Flag("vertex-ai-port", v.PORT, 8080, _VERTEX, "Port to listen on for Vertex AI; AIP_HTTP_PORT changes the default, "
         "0 takes a free one."),
    Flag("vertex-ai-thread-count", v.INT, 8, _VERTEX, "Threads for Vertex AI requests.", later=_NO_THREADS),
    Flag("vertex-ai-default-model", v.STR, "", _VERTEX, "Model that the predict route uses; the only one that is "
         "loaded if not given."),

    Flag("allow-metrics", v.BOOL, True, _METRICS, "Serve Prometheus metrics."),
    Flag("allow-gpu-metrics", v.BOOL, True, _METRICS, "Include GPU metrics, where the NVIDIA driver and the "
         "package nvidia-ml-py are. Needs --allow-metrics."),
    Flag("allow-cpu-metrics", v.BOOL, True, _METRICS, "Include CPU and memory metrics. Needs --allow-metrics."),
    Flag("metrics-address", v.STR, "", _METRICS, "Address to listen on for metrics; the HTTP address if not given."),
    Flag("metrics-port", v.PORT, 8002, _METRICS, "Port to listen on for metrics; 0 takes a free one."),
    Flag("metrics-interval-ms", v.INTERVAL, 2000, _METRICS, "How often CPU, memory and GPU figures are taken.",
         unit="ms"),
    Flag("metrics-config", v.METRICS, (), _METRICS, "<setting>=<value>; counter_latencies, histogram_latencies, "
         "summary_latencies (true or false), summary_quantiles (<quantile>:<error>,...). May be given several times.",
         repeatable=True),

    Flag("trace-config", v.TRACE, (), _TRACE, "<mode>,<setting>=<value> for mode triton or opentelemetry, or "
         "<setting>=<value> for mode, level, rate and count. May be given several times.", repeatable=True),

    Flag("backend-directory", v.STR, "/opt/tritonserver/backends", _BACKEND, "Directory of Python-based backends: "
         "<directory>/<name>/model.py or backend.py serves the models of backend <name>. Compiled ones cannot be "
         "loaded yet."),
    Flag("backend-config", v.BACKEND, v.EMPTY, _BACKEND, "<backend>,<setting>=<value>, or <setting>=<value> for all "
         "backends. May be given several times.", repeatable=True),

    Flag("repoagent-directory", v.STR, "/opt/tritonserver/repoagents", _AGENT, "Directory of repository agents: "
         "<directory>/<name>/agent.py acts on the models that name it. \"checksum\" is built in."),

    Flag("cache-config", v.CACHE, v.EMPTY, _CACHE, "<cache>,<setting>=<value>; one cache only: local (size=<bytes>) or "
         "redis (host, port, ...; docs/response_cache.md). May be given several times.", repeatable=True),
    Flag("cache-directory", v.STR, "/opt/tritonserver/caches", _CACHE, "Directory of compiled caches.",
         later=_NO_CACHE),

    Flag("rate-limit", v.choice("rate-limit", "off", "execution_count"), "off", _RATE, "\"execution_count\" starts an "
         "execution only when its resources are free; \"off\" ignores the rate limiter settings of models."),
    Flag("rate-limit-resource", v.RATE_RESOURCE, (), _RATE, "<name>:<count>, or <name>:<count>:<device>: how much of a "
         "resource there is. May be given several times.", repeatable=True),

    Flag("pinned-memory-pool-byte-size", v.SIZE, 268435456, _MEMORY, "Pinned memory for copies between host and GPU, "
         "taken when a GPU is first used; 0 switches it off.", unit="bytes", gpu=True),
    Flag("cuda-memory-pool-byte-size", v.DEVICE_BYTES, v.EMPTY, _MEMORY, "<gpu>:<bytes>, 64 MiB each by default: "
         "freed memory of the GPU that is kept for reuse. May be given several times.", repeatable=True, gpu=True),
    Flag("cuda-virtual-address-size", v.DEVICE_BYTES, v.EMPTY, _MEMORY, "<gpu>:<bytes> for growable states, 1 GiB by "
         "default. May be given several times.", repeatable=True,
         later="states of sequences are kept in host memory, so it has no effect"),
    Flag("min-supported-compute-capability", v.FLOAT, 6.0, _MEMORY, "GPUs below this are not used.", gpu=True),
    Flag("buffer-manager-thread-count", v.INT, 0, _MEMORY, "Threads that copy tensors.",
         later="instance threads gather their own batches, so a thread count has no effect"),
    Flag("host-policy", v.HOST_POLICY, v.EMPTY, _MEMORY, "<policy>,<setting>=<value>; settings numa-node and "
         "cpu-cores, for instances of this policy. May be given several times.", repeatable=True),
    Flag("model-load-gpu-limit", v.DEVICE_FRACTION, v.EMPTY, _MEMORY, "<gpu>:<fraction>: no model is loaded on the GPU "
         "while more of its memory is in use. May be given several times.", repeatable=True, gpu=True),

    Flag("allow-client-shm", v.BOOL, False, _SHM, "Let clients register regions of system shared memory, which must "
         "lie in /dev/shm of the server and be its own user's or open to all; docs/shared_memory.md."),

    Flag("http-header-timeout-secs", v.SECONDS, 20, OURS, "A request head must have come within this time.", unit="s"),
    Flag("http-body-timeout-secs", v.SECONDS, 60, OURS, "A request body may stand still no longer than this.",
         unit="s"),
    Flag("http-idle-timeout-secs", v.SECONDS, 300, OURS, "A connection without a request is closed after this.",
         unit="s"),
    Flag("http-max-connections", v.COUNT, 4096, OURS, "HTTP connections open at the same time."),
    Flag("http-max-head-size", v.bounded(1024, 1 << 20), 32768, OURS, "Largest request line and headers together.",
         unit="bytes"),
    Flag("http-use-ssl", v.BOOL, False, OURS, "Encrypt HTTP with TLS; needs --http-server-cert and --http-server-key."),
    Flag("http-use-ssl-mutual", v.BOOL, False, OURS, "TLS with a client certificate; implies --http-use-ssl and needs "
         "--http-root-cert."),
    Flag("http-server-cert", v.STR, "", OURS, "PEM file: certificate of the server, for HTTP."),
    Flag("http-server-key", v.STR, "", OURS, "PEM file: key of the server, for HTTP."),
    Flag("http-root-cert", v.STR, "", OURS, "PEM file: root that signs client certificates, for HTTP."),
    Flag("sagemaker-address", v.STR, "0.0.0.0", OURS, "Address to listen on for SageMaker."),
    Flag("vertex-ai-address", v.STR, "0.0.0.0", OURS, "Address to listen on for Vertex AI."),
    Flag("grpc-max-message-size", v.bounded(1, v.INT32[1]), v.INT32[1], OURS, "Largest message, to and from the "
         "server.", unit="bytes"),
    Flag("grpc-max-inflated-size", v.bounded(1, v.INT32[1]), 268435456, OURS, "Largest compressed message after "
         "decompression.", unit="bytes"),
    Flag("grpc-max-metadata-size", v.bounded(1024, 1 << 20), 16384, OURS, "Largest metadata of one call.",
         unit="bytes"),
    Flag("grpc-max-concurrent-streams", v.bounded(1, 1_000_000), 1000, OURS, "Calls in flight on one connection."),
    Flag("grpc-max-connections", v.COUNT, 4096, OURS, "gRPC connections open at the same time."),
    Flag("grpc-stall-timeout-secs", v.SECONDS, 300, OURS, "A call is reset when its client neither takes what is there "
         "for it nor sends the rest of what it began for this long.", unit="s"),
    Flag("request-memory-limit", v.bounded(0, v.INT64[1]), 0, OURS, "Memory that requests and responses in hand may "
         "take together; more bytes are refused until some of it is free. 0 is three quarters of what the process "
         "may use.", unit="bytes"),
    Flag("overload-status", v.choice("overload-status", "503", "429"), "503", OURS, "What a request gets for which a "
         "model's queue has no place: 503 and UNAVAILABLE as Triton, or 429 with Retry-After and RESOURCE_EXHAUSTED."),
    Flag("access-log", v.FRACTION, 0.0, OURS, "Share of requests, 0 to 1, that get a line in the log when they are "
         "answered; 0 is none. Unless it is 0, what fails by the server's fault is told of whatever the share."),
    Flag("server-timing", v.choice("server-timing", "off", "on-request"), "on-request", OURS, "Whether a client that "
         "sends \"triton-fast-timing: 1\" with an inference request is told where its time went."),
    Flag("repository-cache-size", v.bounded(0, v.INT64[1], limits=v.INT64), 10 << 30, OURS, "What unused files of "
         "models from the cloud may make the cache on disk grow to; what is in use stays in any case. 0 is no limit.",
         unit="bytes"),
    Flag("allow-code-upload", v.BOOL, False, OURS, "Let load requests bring model files (file:<path> parameters). Who "
        "may load models can then run code."),
    Flag("api-keys", v.STR, "", OURS, "File of API keys, made with \"python -m triton_fast keys\" and read anew when "
         "it changes. Requests on all ports then need a key of the right scope."),
    Flag("api-keys-open", v.OPEN, (), OURS, "Comma list of " + ", ".join(v.RESTRICTED) + " and metrics: what needs no "
         "key, for instance health for probes that can send none."),

    Flag("strict-model-config", v.BOOL, None, DEPRECATED, "True: as --disable-auto-complete-config.",
         replaced_by="--disable-auto-complete-config"),
    Flag("response-cache-byte-size", v.SIZE, None, DEPRECATED, "As --cache-config=local,size=<bytes>.", unit="bytes",
         replaced_by="--cache-config"),
    Flag("trace-file", v.STR, None, DEPRECATED, "File for traces.",
         replaced_by="--trace-config triton,file=<filepath>"),
    Flag("trace-level", v.TRACE_LEVEL, (), DEPRECATED, "OFF, TIMESTAMPS or TENSORS; may be given several times.",
         repeatable=True, replaced_by="--trace-config level=<OFF|TIMESTAMPS|TENSORS>"),
    Flag("trace-rate", v.INT, None, DEPRECATED, "Every how many requests one is traced.",
         replaced_by="--trace-config rate=<rate value>"),
    Flag("trace-count", v.INT, None, DEPRECATED, "How many traces are taken; -1 is no limit.",
         replaced_by="--trace-config count=<count value>"),
    Flag("trace-log-frequency", v.INT, None, DEPRECATED, "Traces in one file; 0 is all.",
         replaced_by="--trace-config triton,log-frequency=<log frequency value>"),
)
# fmt: on
BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}
