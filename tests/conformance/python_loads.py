"""Python models that are written from a piece of code: ``auto_complete_config``, and models that do not load.

Each row is the body of ``auto_complete_config`` or a whole module; what becomes of it is the server's to say.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from tests.helpers.python_models import model_of

EXECUTE = """
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([1], np.int32))]) for _ in requests]
"""
CLASS = f"class TritonPythonModel:{EXECUTE}"
PLAIN = """backend: "python"
input [{ name: "IN" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
BATCHED = PLAIN + "max_batch_size: 4\n"
BARE = 'backend: "python"\n'
IN = '{"name": "IN", "data_type": "TYPE_INT32", "dims": [1]}'
OUT = '{"name": "OUT", "data_type": "TYPE_INT32", "dims": [1]}'
BOTH = f"c.add_input({IN})\nc.add_output({OUT})\n"
SEQUENCE = "sequence_batching { }\n"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
COUPLED = "model_transaction_policy { decoupled: false }\n"

# name -> (body, configuration). ``c`` is the ModelConfig; it is returned unless the body returns.
COMPLETE: dict[str, tuple[str, str]] = {
    "batch": (f"c.set_max_batch_size(4)\nc.set_dynamic_batching()\n{BOTH}", BARE),
    "no_batch": (f"c.set_max_batch_size(0)\n{BOTH}", BARE),
    "batch_no_scheduler": (f"c.set_max_batch_size(4)\n{BOTH}", BARE),
    "decoupled": (f'{BOTH}c.set_model_transaction_policy({{"decoupled": True}})', BARE),
    "not_decoupled": (f'{BOTH}c.set_model_transaction_policy({{"decoupled": False}})', BARE),
    "optional": (f"{BOTH}c.add_input(dict({IN}, name='MORE', optional=True))", BARE),
    "wildcards": ('c.add_input({"name": "IN", "data_type": "TYPE_STRING", "dims": [-1, 2]})\n'
                  f"c.add_output({OUT})", BARE),
    "nothing_to_do": (BOTH, PLAIN),
    "nothing_done": ("pass", PLAIN),
    "nothing_done_bare": ("pass", BARE),
    "sees_config": ('d = c.as_dict()\nassert d["name"] and d["backend"] == "python", d\n'
                    'assert d["input"][0]["name"] == "IN"', PLAIN),
    "as_dict_is_live": ('c.as_dict()["max_batch_size"] = 3\n' + BOTH, BARE),
    "other_fields": (BOTH + 'c.as_dict()["parameters"] = {"a": {"string_value": "b"}}\n'
                     'c.as_dict()["version_policy"] = {"latest": {"num_versions": 3}}', BARE),
    "twice": (BOTH + BOTH, BARE),
    "smaller_batch": ("c.set_max_batch_size(2)", BATCHED),
    "same_batch": ("c.set_max_batch_size(4)", BATCHED),
    "larger_batch": ("c.set_max_batch_size(8)", BATCHED),
    "negative_batch": ("c.set_max_batch_size(-1)\n" + BOTH, BARE),
    "dynamic_of_sequence": ("c.set_dynamic_batching()", BATCHED + SEQUENCE),
    "dynamic_twice": ("c.set_dynamic_batching()", BATCHED + "dynamic_batching { max_queue_delay_microseconds: 7 }\n"),
    "dynamic_unbatched": (f"c.set_max_batch_size(0)\nc.set_dynamic_batching()\n{BOTH}", BARE),
    "input_type": ("c.add_input(dict(" + IN + ", data_type='TYPE_FP32'))", PLAIN),
    "output_type": ("c.add_output(dict(" + OUT + ", data_type='TYPE_FP32'))", PLAIN),
    "input_dims": ("c.add_input(dict(" + IN + ", dims=[2]))", PLAIN),
    "output_dims": ("c.add_output(dict(" + OUT + ", dims=[2, 3]))", PLAIN),
    "input_optional": ("c.add_input(dict(" + IN + ", optional=True))", PLAIN),
    "input_extra": ("c.add_input(dict(" + IN + ", shape=[1]))", BARE),
    "output_extra": ("c.add_output(dict(" + OUT + ", optional=True))", BARE),
    "input_nameless": ('c.add_input({"data_type": "TYPE_INT32", "dims": [1]})', BARE),
    "output_nameless": ('c.add_output({"data_type": "TYPE_INT32", "dims": [1]})', BARE),
    "input_typeless": ('c.add_input({"name": "IN", "dims": [1]})', BARE),
    "output_typeless": ('c.add_output({"name": "OUT", "dims": [1]})', BARE),
    "input_dimless": ('c.add_input({"name": "IN", "data_type": "TYPE_INT32"})', BARE),
    "output_dimless": ('c.add_output({"name": "OUT", "data_type": "TYPE_INT32"})', BARE),
    "input_bad_type": ('c.add_input(dict(' + IN + f', data_type="INT32"))\nc.add_output({OUT})', BARE),
    "input_more": (f"c.add_input(dict({IN}, name='OTHER'))", PLAIN),
    "policy_extra": ('c.set_model_transaction_policy({"decoupled": True, "x": 1})', BARE),
    "policy_empty": (BOTH + "c.set_model_transaction_policy({})", BARE),
    "policy_changed": ('c.set_model_transaction_policy({"decoupled": False})', PLAIN + DECOUPLED),
    "policy_same": ('c.set_model_transaction_policy({"decoupled": True})', PLAIN + DECOUPLED),
    "policy_from_false": ('c.set_model_transaction_policy({"decoupled": True})', PLAIN + COUPLED),
    "returns_none": ("return None", PLAIN),
    "returns_dict": ("return {}", PLAIN),
    "raises": ('raise ValueError("not today")', PLAIN),
    "loads_a_model": ('pb_utils.load_model("counter")', PLAIN),
    "logs": ('pb_utils.Logger.log_info("in auto_complete_config")', PLAIN),
}

WRONG: dict[str, tuple[str, str]] = {
    "syntax": ("def f(:\n    pass\n", PLAIN),
    "indentation": ("class A:\nx = 1\n", PLAIN),
    "not_utf8": ("x = '\udcff'\n", PLAIN),
    "import_missing": ("import no_such_module_anywhere\n", PLAIN),
    "import_raises": ('raise RuntimeError("while importing")\n', PLAIN),
    "import_exits": ("import sys\nsys.exit(5)\n", PLAIN),
    "no_class": ("x = 1\n", PLAIN),
    "class_is_no_class": ("TritonPythonModel = 1\n", PLAIN),
    "init_raises": (
        "class TritonPythonModel:\n    def __init__(self):\n        raise ValueError('in __init__')\n", PLAIN,
    ),
    "initialize_raises": (
        "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('in initialize')\n"
        + EXECUTE, PLAIN,
    ),
    "initialize_deep": (
        "def inner():\n    raise KeyError('deep')\n\n\nclass TritonPythonModel:\n    def initialize(self, args):\n"
        "        inner()\n" + EXECUTE, PLAIN,
    ),
    "initialize_model_exception": (
        "class TritonPythonModel:\n    def initialize(self, args):\n"
        "        raise pb_utils.TritonModelException('a model exception')\n" + EXECUTE, PLAIN,
    ),
    "initialize_arguments": (
        "class TritonPythonModel:\n    def initialize(self):\n        pass\n" + EXECUTE, PLAIN,
    ),
    "initialize_bls": (
        "class TritonPythonModel:\n    def initialize(self, args):\n"
        "        pb_utils.InferenceRequest(model_name='counter', inputs=[], requested_output_names=['OUT']).exec()\n"
        + EXECUTE, PLAIN,
    ),
    "bad_env": (CLASS, PLAIN + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere/env" } }\n'),
    "bad_archive": (
        CLASS, PLAIN + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere/env.tar.gz" } }\n',
    ),
    "bad_force_cpu": (
        CLASS, PLAIN + 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "maybe" } }\n',
    ),
}  # fmt: skip

# Load, and then show something at a request.
LATE: dict[str, tuple[str, str]] = {
    "no_execute": ("class TritonPythonModel:\n    pass\n", PLAIN),
    "execute_arguments": ("class TritonPythonModel:\n    def execute(self):\n        return []\n", PLAIN),
    "only_execute": (CLASS, PLAIN),
    "initialize_returns": (
        "class TritonPythonModel:\n    def initialize(self, args):\n        return 5\n" + EXECUTE, PLAIN,
    ),
    "force_cpu_yes": (
        CLASS, PLAIN + 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "yes" } }\n',
    ),
}  # fmt: skip


def completing(body: str) -> str:
    lines = indent(body.rstrip("\n"), " " * 8)
    return (
        "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(c):\n"
        f"{lines}\n        return c\n{EXECUTE}"
    )


def write(root: Path) -> tuple[str, ...]:
    """Write all of them under ``root``; return their names in order."""
    made = []
    for name, (body, config) in COMPLETE.items():
        made.append(model_of(root, f"complete_{name}", completing(body), config).name)
    for kind, table in (("wrong", WRONG), ("late", LATE)):
        for name, (code, config) in table.items():
            folder = model_of(root, f"{kind}_{name}", "", config)
            imports = (folder / "1" / "model.py").read_text()
            (folder / "1" / "model.py").write_bytes((imports + code).encode("utf-8", "surrogateescape"))
            made.append(folder.name)
    return tuple(made)
