"""The ONNX Runtime library of this process: opened once, never closed. Source: ext/triton_fast/_native/ort/capi.pyx."""

def open_library(path: str) -> str:
    """Load the shared library at ``path``, bind its functions and return its version; again is harmless.

    Sets ``ORT_DISABLE_TELEMETRY=1`` in the environment unless it is set.

    Raises
    ------
    Internal
        The file can not be loaded, its function table is not the expected one, or another file is already loaded.
    Unsupported
        The library exports no C API, or is too old.
    """

def init_env(pool: bool = False, intra: int = 0, inter: int = 0, spin: bool = False, severity: int = 2) -> bool:
    """Make the environment if there is none; return whether it has a thread pool that sessions share.

    Parameters
    ----------
    pool, intra, inter, spin
        Whether to make that pool, its thread counts (0: ORT's choice), and whether idle threads spin. Only the first
        call decides.
    severity
        Lowest severity of log lines outside sessions: 0 verbose ... 4 fatal.
    """

def providers() -> list[str]:
    """Return the execution providers of this build, as ORT names them."""

def slots() -> dict[str, int]:
    """Return the table position of each function used."""

def drain_log() -> list[tuple[int, str, str, str]]:
    """Take the log lines since the last call, oldest first: (severity, log id, location, text)."""

def log_dropped() -> int:
    """Return how many log lines were dropped because nobody took them."""

def watch_log(fd: int) -> None:
    """Write to this eventfd whenever the first line of an empty log arrives; -1 stops that."""
