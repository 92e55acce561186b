"""Warm-up: what ``model_warmup`` says becomes requests that each instance executes before the version is ready.

Texts are Triton's. Source: spec/model_config.md section 11. Knows configs and files in the model directory.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_fast._native.sched import warmup as native_warmup
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.model import NativeModel
from triton_fast.config import read_warmup_file
from triton_fast.errors import InvalidArg, Unavailable
from triton_fast.observability import log
from triton_fast.observability.host import usable_memory
from triton_fast.types import TYPES, DataType

# Triton reserves this much for an element of variable size: the length of an empty one, where it is STRING.
UNSIZED = 4
UNKNOWN_MEMORY = 8 << 30
# Bytes of random numbers that are made at a time; a whole number of any type's.
_PIECE = 1 << 16
# Errors of one sample that are told.
MAX_TOLD = 16
# Bits that are kept of random ones, and bits that are set: finite numbers in [1, 2), and booleans.
_MASKS = {
    DataType.FP16: ("ff03", "003c"),
    DataType.BF16: ("7f00", "803f"),
    DataType.FP32: ("ffff7f00", "0000803f"),
    DataType.FP64: ("ffffffffffff0f00", "000000000000f03f"),
    DataType.BOOL: ("01", "00"),
}


@dataclass(frozen=True)
class Sample:
    """``rows`` equal requests of one row each, executed as one batch ``count`` times.

    ``inputs``: (name, type, shape, data) as clients send them; ``added``: what stands in for the scheduler's own.
    """

    name: str
    rows: int
    count: int
    inputs: Sequence[tuple[str, DataType, Sequence[int], bytes]]
    added: dict[str, tuple[Sequence[int], bytes]] = field(default_factory=dict)


def read_samples(config: Any, model_dir: Path, native: NativeModel) -> list[Sample]:
    """Return the samples of a validated config, in its order, without those of batch size 0.

    Raises
    ------
    ServerError
        A file can not be read or is too short, or there is not the memory for a sample.
    """
    extra = {name for name, _, _ in native_warmup.added_inputs(native)}
    given = {tensor.name for tensor in config.input}
    samples = []
    kept = 0  # bytes of all of them: they stay until the last instance has run the last
    for one in config.model_warmup:
        if one.batch_size == 0:
            log.verbose(1, f"Skipping batch 0 warmup sample '{one.name}'", model=config.name)
            continue
        inputs: list[Any] = []
        added: dict[str, tuple[Sequence[int], bytes]] = {}
        for name, source in sorted(one.inputs.items()):
            shape = [1] * (config.max_batch_size > 0) + list(source.dims)
            data = _data((one, name, source), config, model_dir, kept)
            kept += len(data)
            if name in given:
                inputs.append((name, DataType(source.data_type), shape, data))
            elif name in extra:
                added[name] = (shape, data)
            else:
                text = f"warmup sample '{one.name}' has input '{name}', which the model has not"
                log.warning(text, model=config.name)
        samples.append(Sample(one.name, one.batch_size, max(1, one.count), inputs, added))
    return samples


def read_files(config: Any, model_dir: Path) -> None:
    """Read what the samples of a config name of files, as a load does. Raises ServerError."""
    kept = 0
    for sample in config.model_warmup:
        for name, source in sorted(sample.inputs.items()):
            if sample.batch_size and source.input_data_file:
                kept += len(_data((sample, name, source), config, model_dir, kept))


def _data(row: tuple[Any, str, Any], config: Any, model_dir: Path, kept: int) -> bytes:
    """Return the data of one (sample, input, source); ``kept``: bytes that there are of others."""
    sample, name, source = row
    dtype = DataType(source.data_type)
    size = TYPES[dtype].size if dtype in TYPES else 0
    n_bytes = math.prod(source.dims) * (size or UNSIZED)
    rows = min(sample.batch_size, max(1, config.max_batch_size))
    most = max(0, (usable_memory() or UNKNOWN_MEMORY) // 2 - kept)
    if n_bytes * (rows + 1) > most:
        raise Unavailable(f"warmup sample '{sample.name}' needs {n_bytes} bytes for input '{name}' of each request")
    if source.WhichOneof("input_data_type") == "input_data_file":
        # Of strings the file says how long they are: all of it is the input.
        return read_warmup_file(
            source.input_data_file, config, model_dir, most // (rows + 1), None if dtype == DataType.STRING else n_bytes
        )
    if source.WhichOneof("input_data_type") == "random_data" and dtype != DataType.STRING:
        return _random(dtype, n_bytes)
    return bytes(n_bytes)


def _random(dtype: DataType, n_bytes: int) -> bytes:
    if dtype not in _MASKS:
        return os.urandom(n_bytes)
    # By pieces: numbers of Python as large as a tensor would be several times its memory.
    return b"".join(_piece(dtype, min(_PIECE, n_bytes - at)) for at in range(0, n_bytes, _PIECE))


def _piece(dtype: DataType, n_bytes: int) -> bytes:
    keep, put = (bytes.fromhex(text) * (n_bytes // (len(text) // 2)) for text in _MASKS[dtype])
    drawn = int.from_bytes(os.urandom(n_bytes), "little")
    return (drawn & int.from_bytes(keep, "little") | int.from_bytes(put, "little")).to_bytes(n_bytes, "little")


def run(
    config: Any, native: NativeModel, instance: NativeInstance, samples: Sequence[Sample], given_up: Callable[[], bool]
) -> None:  # fmt: skip
    """Have an instance that was not started execute all samples; ``given_up`` is asked before each execution.

    Raises
    ------
    Unavailable
        The load was given up.
    InvalidArg
        ``failed to run warmup sample ...``
    ServerError
        A sample is no valid request of the model.
    """
    limit = config.max_batch_size
    for sample in samples:
        began = time.monotonic()
        for _ in range(sample.count):
            if given_up():
                raise Unavailable(f"the load was given up before warmup sample '{sample.name}' had run")
            if sample.rows != 1 and sample.rows > limit:
                text = f"batch size {sample.rows} for '{instance.name}', max allowed is {limit}"
                errors = [text] * min(sample.rows, MAX_TOLD)
            else:
                errors = native_warmup.execute(native, instance, sample.inputs, sample.rows, sample.added)
            if errors:
                raise InvalidArg(f"failed to run warmup sample '{sample.name}': " + "".join(f"{e}; " for e in errors))
        took_ms = (time.monotonic() - began) * 1000
        text = f"warmup sample '{sample.name}' ran {sample.count} time(s) in {took_ms:.1f} ms"
        log.verbose(1, text, model=config.name, instance=instance.name)
