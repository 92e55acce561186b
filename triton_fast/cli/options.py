"""The parsed command line as one frozen record, typed; defaults live in the table of flags, not here.

Knows nothing of text, parsing or help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triton_fast.observability.metrics_config import MetricsConfig
from triton_fast.observability.tracing.options import TraceOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every flag of the server. Maps are read-only; header values of restricted APIs stay out of ``repr``."""

    server_id: str
    exit_timeout_secs: int

    log_verbose: int
    log_info: bool
    log_warning: bool
    log_error: bool
    log_format: str
    log_file: str
    log_escape: bool  # TRITON_SERVER_ESCAPE_LOG_MESSAGES is not 0

    model_repository: tuple[str, ...]
    exit_on_error: bool
    strict_model_config: bool
    strict_readiness: bool
    model_control_mode: str  # none | poll | explicit
    repository_poll_secs: int  # 0 unless the mode is poll
    load_model: tuple[str, ...]
    model_config_name: str
    model_load_thread_count: int
    model_load_retry_count: int
    model_namespacing: bool
    enable_peer_access: bool

    allow_http: bool
    http_address: str
    http_port: int
    reuse_http_port: bool
    http_header_forward_pattern: str  # matches without regard to case
    http_thread_count: int
    http_max_input_size: int
    http_restricted_api: Mapping[str, tuple[str, str]] = field(repr=False)  # api -> (header, value)

    allow_grpc: bool
    grpc_address: str
    grpc_port: int
    reuse_grpc_port: bool
    grpc_header_forward_pattern: str
    grpc_infer_thread_count: int
    grpc_infer_allocation_pool_size: int
    grpc_max_response_pool_size: int
    grpc_use_ssl: bool
    grpc_use_ssl_mutual: bool
    grpc_server_cert: str
    grpc_server_key: str
    grpc_root_cert: str
    grpc_infer_response_compression_level: str
    grpc_keepalive_time: int
    grpc_keepalive_timeout: int
    grpc_keepalive_permit_without_calls: bool
    grpc_http2_max_pings_without_data: int
    grpc_http2_min_recv_ping_interval_without_data: int
    grpc_http2_max_ping_strikes: int
    grpc_max_connection_age: int | None
    grpc_max_connection_age_grace: int | None
    grpc_restricted_protocol: Mapping[str, tuple[str, str]] = field(repr=False)

    allow_sagemaker: bool
    sagemaker_port: int
    sagemaker_safe_port_range: tuple[int, int] | None
    sagemaker_thread_count: int
    sagemaker_ping_mode: str  # these three from SAGEMAKER_TRITON_*
    sagemaker_default_model: str
    sagemaker_inference_type: str
    allow_vertex_ai: bool
    vertex_ai_port: int
    vertex_ai_thread_count: int
    vertex_ai_default_model: str
    vertex_ai_predict_route: str  # AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE
    vertex_ai_health_route: str

    allow_metrics: bool
    allow_gpu_metrics: bool
    allow_cpu_metrics: bool
    metrics_address: str
    metrics_port: int
    metrics_interval_ms: int
    metrics_config: MetricsConfig

    trace: TraceOptions

    backend_directory: str
    backend_config: Mapping[str, Mapping[str, str]]  # backend -> settings; "" is every backend
    repoagent_directory: str
    cache_config: Mapping[str, Mapping[str, str]] = field(repr=False)  # may hold a password
    cache_directory: str
    rate_limit: str
    rate_limit_resource: tuple[tuple[str, int, int], ...]  # name, count, device (-1: all)

    pinned_memory_pool_byte_size: int
    cuda_memory_pool_byte_size: Mapping[int, int]
    cuda_virtual_address_size: Mapping[int, int]
    min_supported_compute_capability: float
    buffer_manager_thread_count: int
    host_policy: Mapping[str, Mapping[str, str]]
    model_load_gpu_limit: Mapping[int, float]
    allow_client_shm: bool

    http_header_timeout_secs: int
    http_body_timeout_secs: int
    http_idle_timeout_secs: int
    http_max_connections: int
    http_max_head_size: int
    http_use_ssl: bool
    http_use_ssl_mutual: bool
    http_server_cert: str
    http_server_key: str
    http_root_cert: str
    sagemaker_address: str
    vertex_ai_address: str
    grpc_max_message_size: int
    grpc_max_inflated_size: int
    grpc_max_metadata_size: int
    grpc_max_concurrent_streams: int
    grpc_max_connections: int
    grpc_stall_timeout_secs: int
    request_memory_limit: int  # 0: three quarters of what the process may use
    overload_status: str
    access_log: float
    repository_cache_size: int  # 0: no limit
    server_timing: str
    allow_code_upload: bool
    api_keys: str  # a file; empty: no key is asked for
    api_keys_open: tuple[str, ...]  # categories that need none

    cpu_only: bool  # TRITON_SERVER_CPU_ONLY is set
    warnings: tuple[str, ...]  # deprecated flags, in Triton's words; stderr before anything else
    notes: tuple[str, ...]  # flags given whose feature comes later; logged at start-up
    gpu_notes: tuple[str, ...]  # flags given that are for GPUs; logged at start-up where there is none


__all__ = ["Options", "TraceOptions"]
