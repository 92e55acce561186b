"""Requests that name regions of shared memory, by hand, and numbers near every limit for what they say.

Knows the wire; knows no server, and neither files nor memory.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from triton_fast import protos

TOP = (1 << 64) - 1

several = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numbers_near(page: int, size: int) -> st.SearchStrategy[int]:
    """Unsigned numbers of 64 bits near those at which something of a region of ``size`` bytes changes."""
    near = st.sampled_from([0, 4, page, size, 1 << 31, 1 << 32, 1 << 63, TOP])
    return st.builds(lambda base, off: min(max(base + off, 0), TOP), near, st.integers(-5, 5))


def place(byte_size: int, offset: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}


def message(at: dict[str, Any], output: bool) -> Any:
    """A gRPC request to "native" whose input, or output, is at that place."""
    made = protos.ModelInferRequest(model_name="native")
    tensor = made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
    wanted = made.outputs.add(name="OUTPUT0")
    parameters = wanted.parameters if output else tensor.parameters
    for key, value in at.items():
        if isinstance(value, str):
            parameters[key].string_param = value
        else:
            # int64 on the wire: what is larger comes as the negative number of the same bits.
            parameters[key].int64_param = value - (1 << 64) if value >= 1 << 63 else value
    if output:
        made.raw_input_contents.append(bytes(4))
    return made
