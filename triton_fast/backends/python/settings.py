"""``--backend-config=python,key=value`` and the model parameters that the backend itself understands.

Texts are Triton's where it has the setting. Source: spec/python_backend.md section 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton_fast.backends.paths import PathParameter, Place, Takes
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability.host import usable_memory

MIB = 1 << 20
MIN_REGION = 64 * MIB
MAX_REGION = 64 << 30
# Seconds: more is no limit that anybody waits for.
LONGEST_S = 10 * 365 * 86400
IN_PROCESS, PROCESS = "in_process", "process"
PATHS = (
    PathParameter(
        Place.PARAMETER, ("EXECUTION_ENV_PATH",), Takes.VARIABLE,
        "the model's workers run the interpreter that is there",
    ),
    PathParameter(
        Place.PARAMETER, ("EXECUTION_MODE",), Takes.NOTHING, "the model's code would run in the server's own process"
    ),
)  # fmt: skip
_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """``shm_default_bytes``, ``shm_growth_bytes``, ``region_prefix`` and ``queue_size`` are checked and then without
    effect: the region is sparse, has no name, and its rings have a fixed size.

    ``region_bytes``: both heaps of one worker together. ``stub_timeout_s``: how long a worker may take to end.
    ``shm_wait_s``: how long a message between server and worker waits for shared memory that the other side has.
    ``execution_timeout_s``: 0, or how long one execution may take. ``native_client``: whether workers of the server's
    own interpreter use the compiled client. ``template``: whether these start as copies of a template.
    """

    shm_default_bytes: int = MIB
    shm_growth_bytes: int = MIB
    stub_timeout_s: int = 30
    region_prefix: str = "triton_python_backend_shm_region_"
    threads: int = 32
    queue_size: int = 1000
    region_bytes: int = MIN_REGION
    execution_timeout_s: float = 0.0
    native_client: bool = True
    shm_wait_s: float = 30.0
    template: bool = True


def read(given: Mapping[str, str], *, usable: int | None = None) -> Settings:
    """Return the settings of the backend; ``usable``: bytes of memory there are. Raises InvalidArg."""

    def count(key: str, default: int) -> int:
        text = given.get(key)
        return default if text is None else _whole(text, key)

    default_bytes = count("shm-default-byte-size", MIB)
    if default_bytes < MIB:
        raise InvalidArg("shm-default-byte-size can't be smaller than 4 MiBs")
    growth = count("shm-growth-byte-size", MIB)
    if growth <= 0:
        raise InvalidArg("shm-growth-byte-size can't be smaller than or equal to zero.")
    timeout = count("stub-timeout-seconds", 30)
    if timeout <= 0:
        raise InvalidArg("stub-timeout-seconds can't be smaller than or equal to zero.")
    prefix = given.get("shm-region-prefix-name", "triton_python_backend_shm_region_")
    if not prefix:
        raise InvalidArg("shm-region-prefix-name must at least contain one character.")
    threads = count("thread-pool-size", 32)
    if threads < 1:
        raise InvalidArg("thread-pool-size can't be less than 1.")
    memory = usable_memory() if usable is None else usable
    region = count("shm-max-byte-size", min(MAX_REGION, max(MIN_REGION, memory)))
    if region < MIN_REGION:
        raise InvalidArg(f"shm-max-byte-size can't be smaller than {MIN_REGION}")
    return Settings(
        default_bytes, growth, min(timeout, LONGEST_S), prefix, min(threads, 4096),
        count("shm_message_queue_size", 1000), region,
        _seconds(given, "execution-timeout-seconds", "0"), _choice(given, "native-client"),
        _seconds(given, "shm-wait-seconds", "30"), _choice(given, "worker-template"),
    )  # fmt: skip


def _whole(text: str, key: str) -> int:
    stripped = text.strip()
    digits = stripped.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or int(digits) > _LIMIT:
        raise InvalidArg(f"{key} must be a whole number, got '{text}'")
    return int(stripped)


def _choice(given: Mapping[str, str], key: str) -> bool:
    text = given.get(key, "yes")
    if text not in ("yes", "no"):
        raise InvalidArg(f"{key} must be 'yes' or 'no', got '{text}'")
    return text == "yes"


def _seconds(given: Mapping[str, str], key: str, default: str) -> float:
    text = given.get(key, default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_S:
        raise InvalidArg(f"{key} must be 0 or a number of seconds, got '{text}'")
    return value


@dataclass(frozen=True)
class Parameters:
    """What a model's ``parameters`` say to the backend. ``env_path`` as written, ``$$`` and all."""

    env_path: str = ""
    cpu_only_inputs: bool = True
    in_process: bool = False


def parameters(config: Any) -> Parameters:
    """Read the parameters of a model. Raises InvalidArg or Unsupported."""
    given = {key: value.string_value for key, value in config.parameters.items()}
    only_cpu = given.get("FORCE_CPU_ONLY_INPUT_TENSORS", "yes")
    if only_cpu not in ("yes", "no"):
        # The quote that nothing opens is Triton's.
        raise Unsupported(f"Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: {only_cpu}'")
    mode = given.get("EXECUTION_MODE", PROCESS)
    if mode not in (PROCESS, IN_PROCESS):
        raise InvalidArg(f"parameter 'EXECUTION_MODE' must be '{PROCESS}' or '{IN_PROCESS}', got '{mode}'")
    return Parameters(given.get("EXECUTION_ENV_PATH", ""), only_cpu == "yes", mode == IN_PROCESS)
