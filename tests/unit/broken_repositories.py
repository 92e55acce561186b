"""Broken model repositories, each with what `triton_fast check` must say: place, text and what to do.

A case is (files, expected place, part of the text, part of the hint). Files: path -> content; a path that ends in '/'
is an empty directory. Knows nothing of the checker.
"""

from __future__ import annotations

IO = """input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
ONNX = "\x08\x08\x12\x04test"
MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
Case = tuple[dict[str, str], str, str, str]


def onnx(config: str, **more: str) -> dict[str, str]:
    return {"m/config.pbtxt": config, "m/1/model.onnx": ONNX, **more}


def python(source: str, config: str = 'backend: "python"\n') -> dict[str, str]:
    return {"m/config.pbtxt": config + IO, "m/1/model.py": source}


def sequence(block: str) -> dict[str, str]:
    return onnx('backend: "onnxruntime"\nmax_batch_size: 4\n' + IO + "sequence_batching {\n" + block + "\n}\n")


def ensemble(steps: str, head: str = 'platform: "ensemble"\n') -> dict[str, str]:
    return {"m/config.pbtxt": head + IO + "ensemble_scheduling { step [\n" + steps + "\n] }\n", "m/1/": ""}


STEP = (
    '{{ model_name: "a" model_version: -1 input_map {{ key: "I" value: "{}" }} output_map {{ key: "O" value: "{}" }} }}'
)
HEAD = 'backend: "onnxruntime"\nmax_batch_size: 8\n'

CASES: dict[str, Case] = {
    # ---- text of the config
    "field typo": (
        onnx("max_batchsize: 4\n"),
        "m/config.pbtxt:1:1",
        "no field named",
        "did you mean 'max_batch_size'?",
    ),
    "field elsewhere": (onnx("dims: [ 4 ]\n"), "m/config.pbtxt:1:1", "no field named", "'dims' belongs in 'input'"),
    "datatype of numpy": (
        onnx('input [ { name: "X" data_type: FLOAT32 dims: [ 4 ] } ]\n'),
        "m/config.pbtxt:1:32",
        "no value named FLOAT32",
        "did you mean 'TYPE_FP32'?",
    ),
    "datatype in quotes": (
        onnx('input [ { name: "X" data_type: "TYPE_FP32" } ]\n'),
        "m/config.pbtxt:1:32",
        'has no value named "TYPE_FP32"',
        "",
    ),
    "unquoted name": (
        onnx("backend: onnxruntime\n"),
        "m/config.pbtxt:1:10",
        "Expected string",
        'put the value in quotes: "onnxruntime"',
    ),
    "quoted number": (
        onnx('max_batch_size: "8"\n'),
        "m/config.pbtxt:1:17",
        "Couldn't parse integer",
        "remove the quotes: 8",
    ),
    "equals sign": (
        onnx("max_batch_size = 8\n"),
        "m/config.pbtxt:1:16",
        "Expected",
        "write 'name: value' with a colon",
    ),
    "C comment": (onnx("// a model\nmax_batch_size: 8\n"), "m/config.pbtxt:1:1", "Expected", "comments begin with #"),
    "JSON": (onnx('{ "max_batch_size": 8 }\n'), "m/config.pbtxt:1:1", "Expected identifier", "no JSON"),
    "never closed": (onnx('input [ { name: "X"\n'), "m/config.pbtxt:1:17", "Expected", "is never closed"),
    "closed twice": (onnx("version_policy { all { } } }\n"), "m/config.pbtxt:1:28", "Expected", "closes nothing"),
    "wrong bracket": (onnx("version_policy { all { ] }\n"), "m/config.pbtxt:1:24", "Expected", "is closed by ']'"),
    "open quote": (onnx('backend: "onnxruntime\n'), "m/config.pbtxt:1:10", "quote", "close the string"),
    "typographic quote": (onnx("backend: “onnxruntime”\n"), "m/config.pbtxt:1:10", "Expected", "typographic quote"),
    "invisible space": (
        onnx("max_batch_size:\u200b8\n"),
        "m/config.pbtxt:1:16",
        "Couldn't parse",
        "invisible character U+200B",
    ),
    "template number": (
        onnx("max_batch_size: ${triton_max_batch_size}\n"),
        "m/config.pbtxt:1:17",
        "",
        "the template variable ${triton_max_batch_size} was not filled in",
    ),
    "template string": (
        python(MODEL, 'backend: "python"\nname: "${name}"\n'),
        "m/config.pbtxt:2:8",
        "template variable ${name}",
        "fill the template",
    ),
    "given twice": (
        onnx("max_batch_size: 1\nmax_batch_size: 2\n"),
        "m/config.pbtxt:2:1",
        "multiple",
        "keep one of them",
    ),
    "two schedulers": (
        onnx(HEAD + IO + "dynamic_batching { }\nsequence_batching { }\n"),
        "m/config.pbtxt:6:1",
        "oneof",
        "keep one of the two",
    ),
    "true as text": (
        onnx('optimization { eager_batching: "yes" }\n'),
        "m/config.pbtxt:1:32",
        'Expected "true" or "false"',
        "write true or false",
    ),
    "message as value": (onnx("dynamic_batching: true\n"), "m/config.pbtxt:1:19", 'Expected "{"', "{ ... }"),
    "missing comma": (onnx('input [ { name: "X" } { name: "Z" } ]\n'), "m/config.pbtxt:1:23", "Expected", "commas"),
    "UTF-16": ({"m/config.pbtxt": "\ufeff\x00", "m/1/model.onnx": ONNX}, "m/config.pbtxt:1:1", "0x00", "UTF-8"),
    "named .txt": ({"m/config.pbtxt.txt": HEAD, "m/1/x": "1"}, "m", "Could not determine backend", ""),
    # ---- identity and batching
    "other name": (
        onnx('name: "n"\n' + HEAD + IO),
        "m/config.pbtxt:1:7",
        "unexpected directory name 'm'",
        'write name: "m"',
    ),
    "negative batch": (
        onnx('backend: "onnxruntime"\nmax_batch_size: -1\n' + IO),
        "m/config.pbtxt:2:1",
        "'max_batch_size' must be non-negative",
        "got -1; 0 means no batching",
    ),
    "platform of another": (
        onnx('backend: "onnxruntime"\nplatform: "tensorrt_plan"\n' + IO),
        "m/config.pbtxt:2:1",
        "unexpected 'platform' and 'backend' pair",
        "the platform is onnxruntime_onnx",
    ),
    "unknown backend": (
        {"m/config.pbtxt": 'backend: "onnxruntme"\n' + IO, "m/1/model.onnx": ONNX},
        "m/config.pbtxt:1:10",
        "unable to find backend library for backend 'onnxruntme'",
        "did you mean 'onnxruntime'?",
    ),
    "backend that is not here": (
        {"m/config.pbtxt": 'platform: "tensorflow_savedmodel"\n' + IO, "m/1/model.savedmodel/saved_model.pb": "x"},
        "m/config.pbtxt:1:1",
        "unable to find backend library for backend 'tensorflow'",
        "export the model to ONNX (tf2onnx), or serve it with backend: \"openvino\"",
    ),
    "preferred too large": (
        onnx(HEAD + IO + "dynamic_batching { preferred_batch_size: [ 16 ] }\n"),
        "m/config.pbtxt:5:20",
        "dynamic batching preferred size must be <= max batch size",
        "got 16, max_batch_size is 8",
    ),
    "priority out of range": (
        onnx(HEAD + IO + "dynamic_batching { priority_levels: 2 }\n"),
        "m/config.pbtxt:5:20",
        "default priority level must be in range [1, 2]",
        "set default_priority_level",
    ),
    "ordering with levels": (
        onnx(HEAD + IO + "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }\n"),
        "m/config.pbtxt:5:65",
        "Only one priority level is allowed when 'preserve_ordering' is true",
        "",
    ),
    # ---- tensors
    "input without name": (
        onnx(HEAD + "input [ { data_type: TYPE_FP32 dims: [ 4 ] } ]\n" + IO.split("\n")[1] + "\n"),
        "m/config.pbtxt:",
        "model input must specify 'name'",
        "",
    ),
    "input without type": (
        onnx(HEAD + 'input [ { name: "X" dims: [ 4 ] } ]\n' + IO.split("\n")[1]),
        "m/config.pbtxt:3:17",
        "model input 'X' must specify 'data_type'",
        "",
    ),
    "input without dims": (
        onnx(HEAD + 'input [ { name: "X" data_type: TYPE_FP32 } ]\n' + IO.split("\n")[1]),
        "m/config.pbtxt:3:17",
        "model input 'X' must specify 'dims'",
        "",
    ),
    "dimension 0": (
        onnx(HEAD + IO.replace("[ 4 ] } ]\no", "[ 0 ] } ]\no")),
        "m/config.pbtxt:3:17",
        "model input 'X' dimension must be integer >= 1",
        "",
    ),
    "same input twice": (
        onnx(HEAD + IO + 'input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'),
        "m/config.pbtxt:3:17",
        "model input 'X' is specified more than once",
        "",
    ),
    "reshape of another size": (
        onnx(HEAD + IO.replace("[ 4 ] } ]\no", "[ 4 ] reshape { shape: [ 3 ] } } ]\no")),
        "m/config.pbtxt:3:17",
        "different size for dims and reshape",
        "",
    ),
    "label file outside": (
        onnx(
            HEAD
            + IO.replace("[ 4 ] } ]\n", '[ 4 ] label_filename: "../l.txt" } ]\n').replace(
                '"X" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "../l.txt"',
                '"X" data_type: TYPE_FP32 dims: [ 4 ]',
            )
        ),
        "m/config.pbtxt:",
        "is outside model directory",
        "",
    ),
    "label file missing": (
        onnx(
            HEAD
            + IO.replace("[ 4 ] } ]\n", '[ 4 ] label_filename: "l.txt" } ]\n').replace(
                '"X" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "l.txt"', '"X" data_type: TYPE_FP32 dims: [ 4 ]'
            )
        ),
        "m/config.pbtxt:",
        "failed to open text file for read m/l.txt",
        "",
    ),
    "batch input type": (
        onnx(
            HEAD + IO + 'batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "C" data_type: TYPE_INT64 '
            'source_input: "X" } ]\n'
        ),
        "m/config.pbtxt:",
        "batch input data type must be",
        "",
    ),
    "batch input source": (
        onnx(
            HEAD + IO + 'batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "C" data_type: TYPE_INT32 '
            'source_input: "XX" } ]\n'
        ),
        "m/config.pbtxt:5:",
        "unknown source input name 'XX'",
        "did you mean 'X'?",
    ),
    # ---- groups, warm-up, cache
    "GPU without one": (onnx(HEAD + IO + "instance_group [ { kind: KIND_GPU } ]\n"), "m/config.pbtxt:", "KIND_GPU", ""),
    "CPU with GPUs": (
        onnx(HEAD + IO + "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]\n"),
        "m/config.pbtxt:",
        "has kind KIND_CPU but specifies one or more GPUs",
        "",
    ),
    "cache of sequences": (
        onnx(HEAD + IO + "sequence_batching { }\nresponse_cache { enable: true }\n"),
        "m/config.pbtxt:",
        "Response Cache does not currently support model m",
        "",
    ),
    # ---- sequences
    "control without values": (
        sequence('control_input [ { name: "S" control [ { kind: CONTROL_SEQUENCE_START } ] } ]'),
        "m/config.pbtxt:6:",
        "must specify either 'int32_false_true'",
        "int32_false_true: [ 0, 1 ]",
    ),
    "control with three": (
        sequence(
            'control_input [ { name: "S" control [ { kind: CONTROL_SEQUENCE_START\n'
            "int32_false_true: [ 0, 1, 2 ] } ] } ]"
        ),
        "m/config.pbtxt:6:47",
        "must have exactly 2 entries",
        "got 3",
    ),
    "corrid type": (
        sequence('control_input [ { name: "C" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } ] } ]'),
        "m/config.pbtxt:",
        "unexpected data type for control CONTROL_SEQUENCE_CORRID",
        "",
    ),
    "state of another type": (
        sequence(
            'state [ { input_name: "I" output_name: "O" data_type: TYPE_FP32 dims: [ 1 ]\n'
            'initial_state { name: "z" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } } ]'
        ),
        "m/config.pbtxt:6:23",
        "does not match the state data type",
        "",
    ),
    # ---- ensembles
    "no steps": (ensemble(""), "m/config.pbtxt:", "must specify 'step' for ensemble 'm'", ""),
    "ensemble with backend": (
        ensemble(STEP.format("X", "Y"), 'platform: "ensemble"\nbackend: "python"\n'),
        "m/config.pbtxt:1:1",
        "must have platform type 'ensemble' and empty backend type",
        "",
    ),
    "steps without ensemble": (
        {
            "m/config.pbtxt": 'backend: "onnxruntime"\n'
            + IO
            + "ensemble_scheduling { step ["
            + STEP.format("X", "Y")
            + "] }\n",
            "m/1/model.onnx": ONNX,
        },
        "m/config.pbtxt:",
        "ensemble scheduling cannot be set for model 'm'",
        'write platform: "ensemble"',
    ),
    "input not used": (
        ensemble(STEP.format("Z", "Y")),
        "m/config.pbtxt:",
        "ensemble input 'X' for ensemble m' is not used",
        "",
    ),
    "output not written": (ensemble(STEP.format("X", "Z")), "m/config.pbtxt:", "", ""),
    "member not there": (
        {**ensemble(STEP.format("X", "Y")), "ab/1/model.py": MODEL},
        "m/config.pbtxt:",
        "contains models that are not available: a",
        "",
    ),
    "member with other inputs": (
        {**ensemble(STEP.format("X", "Y")), "a/config.pbtxt": HEAD + IO, "a/1/model.onnx": ONNX},
        "m/config.pbtxt:",
        "is mapping to non-existing input I in model a",
        "",
    ),
    "member of another type": (
        {
            **ensemble(STEP.format("X", "Y")),
            "a/config.pbtxt": 'backend: "onnxruntime"\n'
            + IO.replace('"X" data_type: TYPE_FP32', '"I" data_type: TYPE_INT32').replace('"Y"', '"O"'),
            "a/1/model.onnx": ONNX,
        },
        "m/config.pbtxt:",
        "inconsistent data type",
        "",
    ),
    # ---- directories and files
    "no version": ({"m/config.pbtxt": HEAD + IO}, "m", "the model has no version directory", "make m/1"),
    "loose model file": (
        {"m/model.onnx": ONNX},
        "m/model.onnx",
        "is not in a version directory",
        "move it to m/1/model.onnx",
    ),
    "version with a letter": (
        {"m/config.pbtxt": HEAD + IO, "m/v1/model.onnx": ONNX},
        "m",
        "ignoring version directory 'v1'",
        "plain numbers",
    ),
    "leading zero": ({"m/config.pbtxt": HEAD + IO, "m/01/model.onnx": ONNX}, "m", "it starts with 0", "plain numbers"),
    "version not there": (
        onnx(HEAD + IO + "version_policy { specific { versions: [ 3 ] } }\n"),
        "m/config.pbtxt:",
        "at least one version must be available",
        "",
    ),
    "other file name": (
        {"m/config.pbtxt": HEAD + IO, "m/1/models.onnx": ONNX},
        "m/1",
        "there is no 'model.onnx'",
        "did you mean 'models.onnx'?",
    ),
    "empty file": ({"m/config.pbtxt": HEAD + IO, "m/1/model.onnx": ""}, "m/1/model.onnx", "the file is empty", "copy"),
    "LFS pointer": (
        {"m/config.pbtxt": HEAD + IO, "m/1/model.onnx": "version https://git-lfs.github.com/spec/v1\n"},
        "m/1/model.onnx",
        "is a Git LFS pointer",
        "run git lfs pull",
    ),
    "not TorchScript": (
        {"m/config.pbtxt": 'backend: "pytorch"\n' + IO, "m/1/model.pt": "text"},
        "m/1/model.pt",
        "is not a TorchScript archive",
        "save the model",
    ),
    "space in directory": (
        {"m /config.pbtxt": HEAD + IO, "m /1/model.onnx": ONNX},
        "'m '",
        "white space",
        "rename it to 'm'",
    ),
    "config in the repository": (
        {"config.pbtxt": HEAD},
        "config.pbtxt",
        "lies in the repository itself",
        "<model>/config.pbtxt",
    ),
    "nothing tells the backend": ({"m/1/weights.bin": "x"}, "m", "Could not determine backend for model 'm'", ""),
    # ---- Python models
    "syntax error": (
        python("class TritonPythonModel:\n    def execute(self requests):\n"),
        "m/1/model.py:2:22",
        "SyntaxError",
        "def execute(self requests):",
    ),
    "indentation": (
        python("class TritonPythonModel:\ndef execute(self, requests):\n    pass\n"),
        "m/1/model.py:2:1",
        "IndentationError",
        "",
    ),
    "class misspelt": (
        python(MODEL.replace("TritonPythonModel", "TritonPythonModle")),
        "m/1/model.py:1:1",
        "no class TritonPythonModel",
        "did you mean 'TritonPythonModle' is the class: rename it",
    ),
    "no execute": (
        python("class TritonPythonModel:\n    def execte(self, requests):\n        return []\n"),
        "m/1/model.py:1:1",
        "has no method execute",
        "did you mean 'execte'?",
    ),
}
