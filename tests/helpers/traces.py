"""What a reader of Triton's trace files makes of them: records joined by id, spans between their stamps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Stamps that begin and end a time which a summary tells.
PAIRS = {
    "HTTP_RECV": ("HTTP_RECV_START", "HTTP_RECV_END"), "HTTP_SEND": ("HTTP_SEND_START", "HTTP_SEND_END"),
    "GRPC_WAITREAD": ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END"), "GRPC_SEND": ("GRPC_SEND_START", "GRPC_SEND_END"),
    "REQUEST": ("REQUEST_START", "REQUEST_END"), "QUEUE": ("QUEUE_START", "COMPUTE_START"),
    "COMPUTE": ("COMPUTE_START", "COMPUTE_END"), "COMPUTE_INPUT": ("COMPUTE_START", "COMPUTE_INPUT_END"),
    "COMPUTE_INFER": ("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START"),
    "COMPUTE_OUTPUT": ("COMPUTE_OUTPUT_START", "COMPUTE_END"),
}  # fmt: skip


@dataclass
class Traced:
    """One traced request or step of one."""

    id: int
    model: str
    request_id: str = ""
    parent: int = 0
    stamps: list[tuple[str, int]] = field(default_factory=list)
    tensors: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The stamps' names, sorted: in which order the threads that make them write is nobody's promise."""
        return sorted(name for name, _ in self.stamps)

    def spans(self) -> dict[str, list[int]]:
        """Return the durations; each begin has its end, and none ends before it has begun."""
        at: dict[str, list[int]] = {}
        for name, ns in self.stamps:
            at.setdefault(name, []).append(ns)
        found: dict[str, list[int]] = {}
        for span, (first, last) in PAIRS.items():
            if first not in at or last not in at:
                assert first not in at or span == "QUEUE", f"{self}: {first} without {last}"
                continue
            assert len(at[first]) == len(at[last]), f"{self}: {span}"
            found[span] = [end - begin for begin, end in zip(at[first], at[last], strict=True)]
            assert min(found[span]) >= 0, f"{self}: {span} ends before it begins"
        return found


def parse(text: str | bytes) -> list[Traced]:
    """Return the traces of one file, in the order of their ids."""
    return joined(json.loads(text))


def joined(records: Iterable[Mapping[str, Any]]) -> list[Traced]:
    found: dict[int, Traced] = {}
    late: list[Mapping[str, Any]] = []
    for record in records:
        if "model_name" in record:
            assert record["id"] not in found, record
            found[record["id"]] = Traced(
                record["id"], record["model_name"], record.get("request_id", ""), record.get("parent_id", 0)
            )
            assert record["model_version"] == 1
        else:
            late.append(record)
    for record in late:
        one = found[record["id"]]
        for stamp in record.get("timestamps", ()):
            one.stamps.append((stamp["name"], stamp["ns"]))
        if "activity" in record:
            tensor = record["tensor"]
            one.tensors.append(
                (record["activity"], *(tensor[key] for key in ("name", "data", "shape", "dtype")))  # type: ignore[arg-type]
            )
    return sorted(found.values(), key=lambda one: one.id)


def read(path: Path) -> list[Traced]:
    """Return the traces of ``path``, or of ``path.0`` and those that follow."""
    paths = [path] if path.exists() else []
    number = 0
    while (one := path.with_name(f"{path.name}.{number}")).exists():
        paths.append(one)
        number += 1
    return sorted((trace for one in paths for trace in parse(one.read_bytes())), key=lambda one: one.id)


def tree(traces: Iterable[Traced]) -> Any:
    """Return (model, request id, stamps' names, tensors, children) of each request, ids left out."""
    every = list(traces)

    def below(parent: int) -> list[Any]:
        return [
            (one.model, one.request_id, one.names, one.tensors, below(one.id)) for one in every if one.parent == parent
        ]

    return below(0)
