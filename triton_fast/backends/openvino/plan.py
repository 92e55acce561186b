"""What a model's config says about its OpenVINO model, as plain values, checked before anything is opened.

Parameter names and meanings are those of Triton's OpenVINO backend, the names of older releases with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_fast.backends.base import LoadContext
from triton_fast.backends.paths import PathParameter, Place, Takes
from triton_fast.backends.values import MAX_THREADS, plain
from triton_fast.errors import InvalidArg

# Names that older releases of the backend used.
OLD_NAMES = {
    "CPU_THREADS_NUM": "INFERENCE_NUM_THREADS",
    "CPU_THROUGHPUT_STREAMS": "NUM_STREAMS",
    "ENFORCE_BF16": "HINT_BF16",
    "SKIP_DYNAMIC_BATCHSIZE": "SKIP_OV_DYNAMIC_BATCHSIZE",
}
NUMBERS = ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "PERFORMANCE_HINT_NUM_REQUESTS")
HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT", "UNDEFINED")
# Properties of OpenVINO that are handed on as they are.
PASSED_ON = (
    "INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING",
    "SCHEDULING_CORE_TYPE", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION", "CPU_DENORMALS_OPTIMIZATION",
    "MODEL_PRIORITY", "ALLOW_AUTO_BATCHING", "AUTO_BATCH_TIMEOUT", "CACHE_DIR", "CACHE_MODE",
)  # fmt: skip
PATHS = (
    PathParameter(Place.PARAMETER, ("CPU_EXTENSION_PATH",), Takes.MODEL, "the library is loaded into the server"),
    PathParameter(Place.PARAMETER, ("CACHE_DIR",), Takes.NOTHING, "compiled models are written to and read from there"),
)


@dataclass(frozen=True)
class ModelPlan:
    """What the parameters say.

    Attributes
    ----------
    device
        OpenVINO's name of where all instances run: ``TARGET_DEVICE``, else the CPU. An instance group's GPU is one of
        NVIDIA's, which this backend can not use.
    given, on_cpu
        Properties of the compiled model: those the user gave, and what stands in for others on the CPU.
    """

    device: str
    given: Mapping[str, str] = field(default_factory=dict)
    on_cpu: Mapping[str, str] = field(default_factory=dict)
    static_batch: bool = False
    pad: bool = False
    reshape: bool = False
    extension: str = ""

    @property
    def properties(self) -> dict[str, str]:
        return {**(self.on_cpu if self.device == "CPU" else {}), **self.given}


def parameters(config: Any) -> dict[str, str]:
    found = {key: value.string_value.strip() for key, value in config.parameters.items()}
    for old, new in OLD_NAMES.items():
        if old in found:
            found.setdefault(new, found.pop(old))
    return found


def make_plan(context: LoadContext) -> ModelPlan:
    """Return the plan of a model. Raises InvalidArg for a value that can not be used."""
    given = parameters(context.config)
    properties = _properties(given)
    extension = given.get("CPU_EXTENSION_PATH", "")
    if extension and (context.model_dir / extension).is_file():
        extension = str(context.model_dir / extension)
    return ModelPlan(
        device=given.get("TARGET_DEVICE", "") or "CPU",
        given=properties,
        on_cpu=_defaults(context, properties),
        static_batch=context.config.max_batch_size > 0 and _yes(given, "SKIP_OV_DYNAMIC_BATCHSIZE"),
        pad=_yes(given, "ENABLE_BATCH_PADDING"),
        reshape=_yes(given, "RESHAPE_IO_LAYERS"),
        extension=extension,
    )


def _properties(given: Mapping[str, str]) -> dict[str, str]:
    found = {key: _number(given, key) for key in NUMBERS if key in given}
    if "NUM_STREAMS" in given:
        upper = given["NUM_STREAMS"].upper()
        found["NUM_STREAMS"] = upper if upper in ("AUTO", "NUMA") else _number(given, "NUM_STREAMS", " or AUTO/NUMA")
    if "PERFORMANCE_HINT" in given:
        hint = given["PERFORMANCE_HINT"].upper()
        if hint not in HINTS:
            raise InvalidArg(f"expected the parameter 'PERFORMANCE_HINT' to be one of {', '.join(HINTS)}, got {hint}")
        found["PERFORMANCE_HINT"] = hint
    if "HINT_BF16" in given and _choice(given, "HINT_BF16", ("YES", "NO")) == "YES":
        found["INFERENCE_PRECISION_HINT"] = "bf16"
    if "CPU_BIND_THREAD" in given:
        bound = _choice(given, "CPU_BIND_THREAD", ("YES", "NUMA", "NO"))
        found["ENABLE_CPU_PINNING"] = "NO" if bound == "NO" else "YES"
    found.update({key: given[key] for key in PASSED_ON if key in given})
    return found


def _defaults(context: LoadContext, given: Mapping[str, str]) -> dict[str, str]:
    # Instances are the concurrency that the config asks for: a stream for each, all of them within the cores. Threads
    # bound to cores would sit on those that other models' instances are on.
    instances = sum(max(1, group.count) for group in context.config.instance_group) or 1
    found = {
        "INFERENCE_NUM_THREADS": str(instances * max(1, context.threads_per_instance)), "ENABLE_CPU_PINNING": "NO",
    }  # fmt: skip
    if "PERFORMANCE_HINT" not in given:
        found["NUM_STREAMS"] = str(instances)
    return found


def _yes(given: Mapping[str, str], key: str) -> bool:
    return given.get(key, "").lower() == "yes"


def _number(given: Mapping[str, str], key: str, more: str = "") -> str:
    text = given[key]
    if not (text.isascii() and text.isdigit()):
        raise InvalidArg(f"expected the parameter '{key}' to be a non-negative number{more}, got {text}")
    if plain(text, MAX_THREADS) < 0:
        raise InvalidArg(f"expected the parameter '{key}' to be at most {MAX_THREADS}, got {text}")
    return text


def _choice(given: Mapping[str, str], key: str, known: Sequence[str]) -> str:
    upper = given[key].upper()
    if upper not in known:
        text = " or ".join(known) if len(known) == 2 else "/".join(known)
        raise InvalidArg(f"expected the parameter '{key}' to be either {text}, got {given[key]}")
    return upper
