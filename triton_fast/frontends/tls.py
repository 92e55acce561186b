"""The TLS context of a front end, from PEM files; what is wrong with one names the file and the flag.

Knows nothing of protocols but the names that ALPN offers.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from triton_fast.errors import InvalidArg

# All that HTTP/2 allows with TLS 1.2; the ciphers of TLS 1.3 are not chosen here.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_CERTIFICATE = "CERTIFICATE"
_KEY = "PRIVATE KEY"


def server_context(
    cert: str, key: str, root: str = "", mutual: bool = False, alpn: Sequence[str] = (), *, protocol: str = "grpc"
) -> ssl.SSLContext:
    """Return a context for ``loop.create_server``: TLS 1.2 or newer.

    Parameters
    ----------
    cert, key
        PEM files: the server's certificate, with those between it and its root, and its key without a password.
    root, mutual
        With ``mutual``, clients must show a certificate that a root in the PEM file ``root`` signed.
    alpn
        Protocols on offer, the preferred first.
    protocol
        What the names of the flags begin with: ``grpc`` or ``http``.

    Raises
    ------
    InvalidArg
        A file is missing, unreadable or of the wrong kind, or the key belongs to another certificate.
    """
    flag = f"--{protocol}-server-cert"
    key_flag = f"--{protocol}-server-key"
    root_flag = f"--{protocol}-root-cert"
    _read(cert, _CERTIFICATE, flag)
    _read(key, _KEY, key_flag)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    if alpn:
        context.set_alpn_protocols(list(alpn))

    def refuse() -> str:
        # Without this, OpenSSL would ask on the terminal.
        raise InvalidArg(f"{key_flag}: '{key}' is encrypted; give a key without a password")

    try:
        context.load_cert_chain(cert, key, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidArg(f"{key_flag}: the key in '{key}' is not that of the certificate in '{cert}'") from None
        raise InvalidArg(f"{flag} '{cert}' and {key_flag} '{key}' cannot be used: {_reason(error)}") from None
    if mutual:
        if not root:
            raise InvalidArg(f"{root_flag} is needed to verify the certificates of clients")
        _read(root, _CERTIFICATE, root_flag)
        try:
            context.load_verify_locations(root)
        except ssl.SSLError as error:
            raise InvalidArg(f"{root_flag}: '{root}' cannot be used: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(path: str, kind: str, flag: str) -> None:
    """Find out what OpenSSL would not tell: whether the file can be read and what is in it."""
    if not path:
        raise InvalidArg(f"{flag} is needed for TLS")
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidArg(f"{flag}: cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    if b"-----BEGIN " not in content or kind.encode() not in content:
        raise InvalidArg(f"{flag}: there is no PEM {kind.lower()} in '{path}'")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
