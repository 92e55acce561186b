"""What a server lets clients do besides inference, as one line for the log: what is open is seen at start."""

from __future__ import annotations

from triton_fast.cli.options import Options


def doors(options: Options) -> str:
    """Return the state of every door that a flag opens. Never has a secret in it."""
    control = "on" if options.model_control_mode == "explicit" else "off"
    state = [
        ("model control over the network", control),
        ("code upload", _on(options.allow_code_upload)),
        ("client shared memory", _on(options.allow_client_shm)),
        ("log and trace files over the network", "off"),
        ("restricted over HTTP", ",".join(sorted(options.http_restricted_api)) or "nothing"),
        ("restricted over gRPC", ",".join(sorted(options.grpc_restricted_protocol)) or "nothing"),
        ("API keys", _keys(options)),
        ("TLS", _tls(options)),
    ]
    return "doors: " + "; ".join(f"{what}: {how}" for what, how in state)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _keys(options: Options) -> str:
    if not options.api_keys:
        return "off"
    return "on" + (f" but for {','.join(options.api_keys_open)}" if options.api_keys_open else "")


def _tls(options: Options) -> str:
    ports = {
        "HTTP": options.http_use_ssl or options.http_use_ssl_mutual,
        "gRPC": options.grpc_use_ssl or options.grpc_use_ssl_mutual,
    }
    return ",".join(port for port, on in ports.items() if on) or "off"
