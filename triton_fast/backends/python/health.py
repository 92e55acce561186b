"""How a worker's end is told: to clients in one line, the same that the log has."""

from __future__ import annotations

import signal


def unhealthy(instance: str, cause: str = "") -> str:
    """Return Triton's text for a dead stub, and ours behind it."""
    text = f"Stub process '{instance}' is not healthy."
    return f"{text} The worker process {cause}" if cause else text


def end_of(returncode: int) -> str:
    """Return how a process ended, from subprocess's return code."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"was killed by signal {name}"


STOPPED = "was stopped by a signal, counts as hung and was killed by signal SIGKILL"


def too_long(limit_s: float) -> str:
    return f"executed for more than {limit_s:g} s (execution-timeout-seconds) and was killed by signal SIGKILL"


def broke_protocol(what: str) -> str:
    return f"sent {what} and was killed by signal SIGKILL"
