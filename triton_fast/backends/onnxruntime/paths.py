"""The places of a config by which ONNX Runtime is led to files, and to addresses that it would call or write to.

Its session entries and providers' options are open sets: names that tell are listed by patterns, and whatever else a
load request gives there may not look like a path. Knows no session.
"""

from __future__ import annotations

from triton_fast.backends.paths import PathParameter, Place, Takes

_WORDS = (
    "path", "_file", "folder", "_dir", "_root", "partitioning_settings", "profiling", "debug_", "context_enable",
)  # fmt: skip
_FILES = "ONNX Runtime reads or writes files by it"

PATHS = (
    PathParameter(Place.OPERATIONS, ("op_library_filename",), Takes.MODEL, "the library is loaded into the server"),
    PathParameter(Place.PARAMETER, tuple(f"*.*{word}*" for word in _WORDS), Takes.NOTHING, _FILES),
    PathParameter(Place.PARAMETER, ("session.*", "ep.*", "optimization.*", "mlas.*"), Takes.WORDS, _FILES),
    PathParameter(
        Place.ACCELERATOR,
        (
            *(f"*{word}*" for word in _WORDS),
            "*plugin*", "*dump_*", "*cache_enable", "*_lib_*", "*calibration_table_name", "*_prefix", "load_config",
        ),
        Takes.NOTHING, _FILES,
    ),
    PathParameter(
        Place.ACCELERATOR, ("gpu_external_*", "*compute_stream", "*bytestream*", "context"), Takes.NOTHING,
        "ONNX Runtime takes it for an address in memory",
    ),
    PathParameter(Place.ACCELERATOR, ("*",), Takes.WORDS, _FILES),
)  # fmt: skip
