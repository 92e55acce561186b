"""The model repository that the conformance tests are served from: the identity backend in every form they need, and
one decoupled model.

Knows config.pbtxt and directory layout; knows nothing of servers or clients.
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers.server import Model, repository

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
)  # fmt: skip

LABELS = ("zero", "one", "two")
OPTIONAL = """
backend: "identity"
max_batch_size: 0
input [{ name: "INPUT0" data_type: TYPE_INT32 dims: [2] },
       { name: "INPUT1" data_type: TYPE_INT32 dims: [2] optional: true }]
output [{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [2] },
        { name: "OUTPUT1" data_type: TYPE_INT32 dims: [2] }]
"""
LABELLED = """
backend: "identity"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]
"""
REPEAT = """
backend: "repeat"
max_batch_size: 0
input [{ name: "IN" data_type: TYPE_INT32 dims: [-1] },
       { name: "DELAY" data_type: TYPE_UINT32 dims: [-1] },
       { name: "WAIT" data_type: TYPE_UINT32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] },
        { name: "IDX" data_type: TYPE_UINT32 dims: [1] }]
model_transaction_policy { decoupled: true }
"""


def of_type(datatype: str) -> str:
    """Name of the batching identity model of a datatype, dims [-1]."""
    return f"id_{datatype.lower()}"


def write(root: Path) -> Path:
    """Write the repository and return its directory."""
    repository(
        root,
        *(Model(of_type(datatype), datatype) for datatype in DATATYPES),
        Model("plain", "FP32", (2, 2), max_batch=0),
        Model("two", "INT32", (4,), max_batch=4, tensors=2),
        Model("versions", "INT32", (1,), extra="version_policy { all {} }"),
        Model("wide", "FP32", (-1, -1), max_batch=0),
        Model("text", "BYTES", (1,), max_batch=0),
        Model("texts", "BYTES", (2,), max_batch=0),
        Model("half_open", "FP32", (-1, 3), max_batch=0),
        Model("control", "INT32", (1,)),
        Model("slow", "INT32", (1,), delay_ms=300),
    )
    for version in ("2", "3"):
        (root / "versions" / version).mkdir()
    for name, config in (("optional", OPTIONAL), ("labelled", LABELLED), ("repeat", REPEAT)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    (root / "labelled" / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return root
