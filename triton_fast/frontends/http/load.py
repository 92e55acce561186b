"""The endpoint-load-metrics header: what a TensorRT-LLM model says of its KV cache, in the two forms of ORCA.

Knows the metric family by name; nothing of models or of where the header goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

FAMILY = "nv_trt_llm_kv_cache_block_metrics"
LABEL = "kv_cache_block_type"
# Numbers of the native connection (LOAD_TEXT, LOAD_JSON).
TEXT, JSON = 1, 2


def endpoint_load(series: Iterable[tuple[Mapping[str, str], float]], form: int) -> bytes | None:
    """Return the header's value from the family's series (labels, value); None when one of the three is missing."""
    blocks = {labels[LABEL]: value for labels, value in series if LABEL in labels}
    tokens_per, used, most = (blocks.get(kind, -1.0) for kind in ("tokens_per", "used", "max"))
    if not all(0 <= value < math.inf for value in (tokens_per, used, most)):
        return None
    utilization = used / most if most > 0 else 0.0
    capacity = int(most * tokens_per)
    if form == JSON:
        named = {"kv_cache_utilization": utilization, "max_token_capacity": capacity}
        return b"JSON " + json.dumps({"named_metrics": named}, separators=(",", ":")).encode()
    return (
        f"TEXT named_metrics.kv_cache_utilization={utilization:f}, named_metrics.max_token_capacity={capacity}"
    ).encode()
