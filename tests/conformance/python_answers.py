"""What Python models answer: the record of the reference's answers, and the known differences with their reasons.

``python -m tests.conformance.python_answers`` makes the record anew; it needs TRITON_REFERENCE (see reference.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.conformance import python_loads, reference
from tests.conformance.python_cases import CASES, Case, cleaned, one, over_grpc, over_http
from tests.helpers import python_models, raw
from tests.helpers.grpc_channel import Channel

RECORD = Path(__file__).with_name("python_expected.json")
FLAGS = ("--model-control-mode=explicit", "--exit-on-error=false")
# What of a configuration a model's auto-complete decides.
COMPLETED = ("max_batch_size", "input", "output", "dynamic_batching", "model_transaction_policy", "version_policy")
NEEDS = {
    "bls": ("add_sub_int32", "strings", "forward", "counter", "errors", "square", "coroutine", "decoupled", "echo",
            "identity"),
    "bls_async": ("square", "coroutine", "add_sub_int32", "endless"),
    "nest_top": ("nest_middle", "nest_bottom", "coroutine"), "cycle_a": ("cycle_b",), "control": ("counter",),
}  # fmt: skip

NEWER = "2.73 answers so"
NEVER = "never answers"
ENDS = "its process ends"
DIES = "its worker dies"
HANGS = "2.51 waits for ever"
CRASHES = "2.51 does not survive it"
BINDING = "the words of another binding"
SHARED = "no copy is made"
STRICT = "2.51 takes the bad input for something else"
CAUSE = "the cause is added"
KEPT = "the code is kept"
TWO = "over gRPC 2.51 gives the first of two the shapes of both, and the second none"


class Known(NamedTuple):
    """Summaries of both answers; the reference's is one of NEVER, ENDS, DIES where it must not be asked.

    An empty ``text`` holds this server to no more than an answer.
    """

    reference: str
    text: str
    why: str

    @property
    def fatal(self) -> bool:
        return self.reference in (NEVER, ENDS, DIES)


FAILED = "Failed to process the request(s) for model"
UNANSWERED = (
    f"500 {FAILED} 'errors_0_0', message: The request was neither answered in the execute return nor by its response "
    "sender."
)
NO_LOAD = (
    "TritonModelException: Failed to load model: Failed to process the request for model 'control_0_0', message: "
)
UNLOADED = f'200 ["\\"{NO_LOAD}' + "failed to load '{}', failed to poll from model repository{}" + '\\""]'
NOT_THERE = "model not found in any model repository"
UNEXPECTED = "unexpected inference output '{}' for model '{}'"
NO_PARAMETERS = '200 ["TypeError"]'
MISSING = (
    "400 [request id: <id_unknown>] expected number of inputs between 1 and 3 but got 1 inputs for model 'optional'. "
    "Got input(s) ['B'], but missing required input(s) ['A']. Please provide all required input(s)."
)

KNOWN: dict[str, Known] = {
    "decoupled wrong_name": Known("0", "0 " + UNEXPECTED.format("NOBODY", "decoupled"), NEWER),
    "errors wrong_name": Known("200", "500 " + UNEXPECTED.format("NOBODY", "errors"), NEWER),
    "errors extra_output": Known('200 ["x"]', "500 " + UNEXPECTED.format("EXTRA", "errors"), NEWER),
    "optional without the required": Known('200 ["B [1, 2]", "without [\'A\', \'C\']"]', MISSING, NEWER),
    "errors output_twice": Known('200 ["b"]', '200 ["b"]', TWO),
    "sender no_final": Known(NEVER, "", HANGS),
    "sender nothing": Known(NEVER, "", HANGS),
    "sender raises_after": Known(NEVER, '200 ["a"]', "2.51 waits for ever, at times"),
    "errors returns_none": Known(NEVER, UNANSWERED, HANGS),
    "errors none_element": Known(NEVER, UNANSWERED, HANGS),
    "errors reschedule": Known(NEVER, "", HANGS),
    "errors recursion": Known(NEVER, "", "2.51 sends more metadata than a gRPC client takes"),
    "errors error_is_text": Known("500", "", BINDING),
    "errors tensors_not_a_list": Known("500", "", BINDING),
    "bls decoupled_error": Known(NEVER, '200 ["[{\\"error\\": \\"one failed\\"}, {\\"OUT\\": [\\"b\\"]}]"]', HANGS),
    "bls failing_model_code": Known('200 ["1"]', '200 ["2"]', KEPT),
    "bls_async cancel": Known(NEVER, '200 ["[{\\"OUT\\": [1]}, true]"]', NEWER),
    "bls_async cancel_sync": Known(NEVER, '200 ["[{\\"OUT\\": [1]}, true]"]', NEWER),
    "control bad_version": Known(ENDS, "", CRASHES),
    "control files_without_config": Known(ENDS, "", CRASHES),
    **{
        f"control {name}": Known(UNLOADED.format(model, ""), UNLOADED.format(model, f": {NOT_THERE}"), CAUSE)
        for name, model in (("unknown", "nobody"), ("broken", "broken_here"))
    },
    "control bad_config": Known(
        UNLOADED.format("controlled", ""),
        f'200 ["\\"{NO_LOAD}Invalid config override: unexpected end of data at line 1 column 2\\""]', NEWER,
    ),
    "tensors type_number": Known("500", '200 ["11"]', "2.51 has no number for it"),
    "tensors dlpack_out": Known('200 ["[[1.0, 2.0, 3.5, -4.0], false, [1, 0]]"]',
                                '200 ["[[1.0, 2.0, 3.5, -4.0], true, [1, 0]]"]', SHARED),
    "tensors dlpack_capsule": Known('200 ["[\\"PyCapsule\\", [1.0, 2.0, 3.5, -4.0], false]"]',
                                    '200 ["[\\"PyCapsule\\", [1.0, 2.0, 3.5, -4.0], true]"]', SHARED),
    "tensors dlpack_capsule_twice": Known(DIES, "", CRASHES),
    "tensors dlpack_in": Known(DIES, "", CRASHES),
    "tensors dlpack_in_shares": Known(DIES, '200 ["true"]', CRASHES),
    "tensors dlpack_refused": Known(DIES, "", CRASHES),
    "tensors dlpack_empty": Known(DIES, '200 ["[[2, 0], [2, 0]]"]', CRASHES),
    "response parameters all": Known(NO_PARAMETERS, "", NEWER),
    "response parameters none": Known(NO_PARAMETERS, '200 ["{}"]', NEWER),
    **{
        f"response parameters {name}": Known(
            NO_PARAMETERS, f'200 ["TritonModelException: Expect parameters {part} to have type {kinds}, found type '
            f"<class '{kind}'>\"]", NEWER,
        )
        for name, part, kinds, kind in (
            ("float", "values", "bool/int/str", "float"), ("key", "keys", "str", "int"),
            ("list", "values", "bool/int/str", "list"), ("value_none", "values", "bool/int/str", "NoneType"),
        )
    },
    "response parameters large": Known(NO_PARAMETERS, "", NEWER),
    **{
        f"metrics {name}": Known(ENDS, "", CRASHES)
        for name in ("values", "counter_errors", "gauge_errors", "labels", "same_family_again", "other_kind",
                     "other_description", "bad_names", "histogram")
    },
    "complete_input_bad_type": Known("200", "", STRICT),
    "complete_loads_a_model": Known(NEVER, "", HANGS),
}  # fmt: skip


def summary(answer: dict[str, Any]) -> str:
    """Status, then the error text or the values of OUT; of a stream what its messages have of these."""
    status = str(answer["status"])
    messages = answer.get("messages", [answer])
    parts = [answer.get("error", ""), *(message.get("error", "") for message in messages if message is not answer)]
    values = [message["outputs"]["OUT"][2] for message in messages if "OUT" in message.get("outputs", {})]
    texts = [part for part in parts if part] + [json.dumps(value, ensure_ascii=False) for value in values]
    return " ".join([status, *texts])


def like(found: str, wanted: str) -> bool:
    """Whether a summary is the wanted one; one that is only a status stands for any text, an empty one for all."""
    return not wanted or found == wanted or (wanted.isdigit() and found.partition(" ")[0] == wanted)


def load(address: tuple[str, int], name: str) -> dict[str, Any]:
    answer = raw.ask(address, raw.post(f"/v2/repository/models/{name}/load"))
    return {"status": answer.status, **({"error": answer.error} if answer.status != 200 else {})}


def loaded(address: tuple[str, int], name: str, root: Path) -> dict[str, Any]:
    """Load a model of python_loads, look at what became of it, and unload it again."""
    found = load(address, name)
    if "error" in found:
        return {**found, "error": cleaned(found["error"], root)}
    config = raw.ask(address, raw.get(f"/v2/models/{name}/config")).json()
    found["config"] = {key: config[key] for key in COMPLETED if key in config}
    if name.startswith("late_"):
        found["answer"] = over_http(address, one(name, 1), root)
    assert raw.ask(address, raw.post(f"/v2/repository/models/{name}/unload")).status == 200
    return found


def asked(address: tuple[str, int], channel: Channel, case: Case, root: Path) -> dict[str, Any]:
    """Both protocols' answers to a case."""
    found = {} if case.decoupled else {"http": over_http(address, case, root)}
    return {**found, "grpc": over_grpc(channel, case, root)}


def row(name: str) -> str:
    """The row of a difference in the table of docs/compatibility.md."""
    known = KNOWN[name]
    return f"| {name} | {_cell(known.reference)} | {_cell(known.text)} | {known.why} |"


def _cell(text: str) -> str:
    if text in (NEVER, ENDS, DIES):
        return text
    status, _, rest = text.partition(" ")
    shown = rest.replace("\n", " ").replace("|", "\\|").strip()
    return f"{status} `{shown}`" if shown else status or "an answer"


@contextlib.contextmanager
def served_reference(base: Path) -> Iterator[tuple[reference.Reference, Path, tuple[str, ...]]]:
    root = python_models.write(base / "models", marker=base)
    names = python_loads.write(root)
    with reference.Reference(root, base / "log", *FLAGS) as server:
        yield server, root, names


def record() -> dict[str, Any]:
    """Every answer of the reference but to what it must not be asked."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, served_reference(Path(folder)) as (server, root, names):
        here: set[str] = set()
        with Channel(server.grpc) as channel:
            for name, case in CASES.items():
                if name in KNOWN and KNOWN[name].fatal:
                    continue
                for needed in (*NEEDS.get(case.model, ()), case.model):
                    if needed not in here:
                        answer = load(server.http, needed)
                        assert answer["status"] == 200, (needed, answer)
                        here.add(needed)
                print(name, file=sys.stderr, flush=True)
                found[name] = asked(server.http, channel, case, root)
                assert found[name]["grpc"]["status"] != 4, f"{name}: no answer"
        for name in names:
            if name not in KNOWN or not KNOWN[name].fatal:
                found[name] = loaded(server.http, name, root)
    return found


def main() -> None:
    RECORD.write_text(json.dumps(record(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
