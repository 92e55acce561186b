"""The control socket: loading and its texts, auto-complete, readiness, log, metrics, model control; a worker's end."""

from __future__ import annotations

import os
import signal

import pytest

from tests.helpers.worker_peer import Peer, Request, WorkerError, tensor

IMPORT = "import triton_python_backend_utils as pb_utils\n"
HEAD = IMPORT + "import numpy as np\nR, T = pb_utils.InferenceResponse, pb_utils.Tensor\n"
EXEC = HEAD + (
    "class TritonPythonModel:\n"
    "    def initialize(self, args):\n        self.args = args\n"
    "    def execute(self, requests):\n"
    "        scope = {'pb_utils': pb_utils, 'self': self, 'value': None}\n"
    "        try:\n            exec(requests[0].inputs()[0].as_numpy()[0].decode(), scope)\n"
    "        except Exception as error:\n            scope['value'] = f'{type(error).__name__}: {error}'\n"
    "        return [R([T('OUT', np.array([str(scope['value'])], object))])]\n"
)


def run(peer, code):
    return peer.one(tensor("IN", [code.encode()])).outputs["OUT"].value[0].decode()


# A model's file as its tracebacks name it: from the repository on.
SHOWN = "m/1/model.py"


def fails(tmp_path, source):
    with Peer(tmp_path, source) as peer:
        with pytest.raises(WorkerError) as caught:
            peer.init()
        return SHOWN, str(caught.value)


def test_syntax_error(tmp_path):
    _, text = fails(tmp_path, "def f(:\n")
    assert text == "SyntaxError: invalid syntax (model.py, line 1)"


def test_exception_at_import(tmp_path):
    path, text = fails(tmp_path, "def g():\n    raise RuntimeError('at import')\ng()\n")
    head = f"RuntimeError: at import\n\nAt:\n  {path}(2): g\n  {path}(3): <module>\n  <frozen importlib._bootstrap>("
    assert text.startswith(head)
    assert text.endswith("): _find_and_load\n")
    assert "triton_fast" not in text


def test_missing_module(tmp_path):
    path, text = fails(tmp_path, "import nonexistent_thing\n")
    assert text.startswith(f"ModuleNotFoundError: No module named 'nonexistent_thing'\n\nAt:\n  {path}(1): <module>\n")


def test_missing_class(tmp_path):
    _, text = fails(tmp_path, "import os\n")
    assert text == "AttributeError: module '1.model' has no attribute 'TritonPythonModel'"


def test_exception_at_initialize(tmp_path):
    source = "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('init')\n"
    path, text = fails(tmp_path, source)
    assert text == f"ValueError: init\n\nAt:\n  {path}(3): initialize\n"


def test_exit_at_initialize(tmp_path):
    source = "import sys\nclass TritonPythonModel:\n    def initialize(self, args):\n        sys.exit(3)\n"
    path, text = fails(tmp_path, source)
    assert text == f"SystemExit: 3\n\nAt:\n  {path}(4): initialize\n"


def test_wrong_constructor(tmp_path):
    _, text = fails(tmp_path, "class TritonPythonModel:\n    def __init__(self, x): pass\n")
    assert text.startswith("TypeError: ")
    assert text.endswith("__init__() missing 1 required positional argument: 'x'")


def test_missing_file(tmp_path):
    with Peer(tmp_path, "") as peer:
        peer.path.unlink()
        with pytest.raises(WorkerError, match=r"^Python model file not found in '.*model.py'$"):
            peer.init()


def test_args_path_and_siblings(tmp_path):
    source = EXEC + "import beside\nimport above\nassert pb_utils.get_model_dir() == pb_utils.get_model_dir()\n"
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "beside.py").write_text("")
    (tmp_path / "m" / "above.py").write_text("")
    with Peer(tmp_path, source) as peer:
        peer.init(model_version="1")
        assert run(peer, "value = self.args['model_version'], self.args['model_name']") == "('1', 'm')"
        assert run(peer, "value = pb_utils.get_model_dir()") == str(peer.version_dir)
        folders = [str(peer.version_dir), str(peer.version_dir.parent)]
        assert run(peer, "import sys; value = sys.path[-2:]") == str(folders)
        assert run(peer, "import sys; value = sys.argv") == "['']"


INPUT = {"name": "A", "data_type": "TYPE_FP32", "dims": [2]}
CONFIG = {"name": "m", "max_batch_size": 4, "input": [INPUT], "output": []}
WHERE = "in auto-complete-config function for model 'm'"


def complete(tmp_path, statement, config=CONFIG):
    method = f"    @staticmethod\n    def auto_complete_config(c):\n        {statement}\n        return c\n"
    source = f"class TritonPythonModel:\n{method}"
    with Peer(tmp_path, source, region=False) as peer:
        return peer.ask("auto_complete", config=config, context=peer.context)


def test_auto_complete(tmp_path):
    statement = (
        "c.set_max_batch_size(8); c.set_dynamic_batching(); c.set_model_transaction_policy({'decoupled': True});"
        "c.add_input({'name': 'A', 'data_type': 'TYPE_FP32', 'dims': [2], 'optional': True});"
        "c.add_output({'name': 'B', 'data_type': 'TYPE_INT8', 'dims': [1]})"
    )
    assert complete(tmp_path, statement) == {
        "name": "m", "max_batch_size": 8, "dynamic_batching": {}, "model_transaction_policy": {"decoupled": True},
        "input": [{"name": "A", "data_type": "TYPE_FP32", "dims": [2], "optional": True}],
        "output": [{"name": "B", "data_type": "TYPE_INT8", "dims": [1]}],
    }  # fmt: skip


def test_auto_complete_is_optional(tmp_path):
    with Peer(tmp_path, "class TritonPythonModel:\n    pass\n", region=False) as peer:
        assert peer.ask("auto_complete", config=CONFIG, context=peer.context) == CONFIG


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("c.set_max_batch_size(2)",
         "configuration specified max_batch_size 4, but in auto-complete-config function for model 'm' specified "
         "max_batch_size 2"),
        ("c.as_dict()['sequence_batching'] = {}; c.set_dynamic_batching()",
         "Configuration specified scheduling_choice as 'sequence_batching', but auto-complete-config function for "
         "model 'm' tries to set scheduling_choice as 'dynamic_batching'"),
        ("c.add_input({'name': 'A', 'x': 1})",
         f"input 'A' {WHERE} contains property other than 'name', 'data_type', 'dims' and 'optional'."),
        ("c.add_output({'name': 'A', 'optional': 1})",
         f"output 'A' {WHERE} contains property other than 'name', 'data_type' and 'dims'."),
        ("c.add_input({})", f"input {WHERE} is missing 'name' property."),
        ("c.add_output({'name': 'B'})", f"output 'B' {WHERE} is missing 'data_type' property."),
        ("c.add_input({'name': 'B', 'data_type': 'TYPE_FP32'})", f"input 'B' {WHERE} is missing 'dims' property."),
        ("c.add_input({'name': 'A', 'data_type': 'TYPE_INT8', 'dims': [2]})",
         "unable to load model 'm', configuration expects datatype TYPE_FP32 for input 'A', model provides TYPE_INT8"),
        ("c.add_input({'name': 'A', 'data_type': 'TYPE_FP32', 'dims': [3]})",
         "model 'm', tensor 'A': the model expects dims [3] but the model configuration specifies dims [2]"),
        ("c.set_model_transaction_policy({'x': 1})",
         "model transaction property in auto-complete-config function for model 'm' contains property other than "
         "'decoupled'."),
        ("c.as_dict()['model_transaction_policy'] = {'decoupled': False}; "
         "c.set_model_transaction_policy({'decoupled': True})",
         "trying to change decoupled property in auto-complete-config for model 'm', which is already set to 'False'."),
    ],
)  # fmt: skip
def test_auto_complete_texts(tmp_path, statement, text):
    with pytest.raises(WorkerError) as caught:
        complete(tmp_path, statement)
    assert str(caught.value).startswith(f"ValueError: {text}\n\nAt:\n")
    assert str(caught.value).endswith("model.py(4): auto_complete_config\n")


def test_auto_complete_must_return_the_config(tmp_path):
    with pytest.raises(WorkerError) as caught:
        complete(tmp_path, "return 3")
    assert str(caught.value) == (
        "auto_complete_config function in model 'm_0' must return a valid pb.ModelConfig object."
    )


@pytest.mark.parametrize("prefix", ["", "async "])
def test_is_ready(tmp_path, prefix):
    source = EXEC + f"    answer = True\n    {prefix}def is_ready(self):\n        return self.answer\n"
    with Peer(tmp_path, source) as peer:
        peer.init()
        assert peer.ask("is_ready") is True
        run(peer, "self.answer = False")
        assert peer.ask("is_ready") is False
        run(peer, "self.answer = 1")
        with pytest.raises(WorkerError, match=r"^is_ready\(\) must return a boolean value$"):
            peer.ask("is_ready")


def test_is_ready_while_execute_runs_and_without_the_method(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        peer.execute([Request([tensor("IN", [b"pb_utils.is_model_ready('x')"])])])
        peer.replies["is_model_ready"] = True
        assert peer.ask("is_ready") is True
        assert peer.done.get(timeout=30).error == ""


def test_log(tmp_path):
    source = EXEC + "pb_utils.Logger.log('at import', pb_utils.Logger.WARNING)\n"
    with Peer(tmp_path, source) as peer:
        peer.init()
        message = peer.message("log")
        assert (message["level"], message["message"], message["file"]) == (1, "at import", str(peer.path))
        assert message["line"] == source.count("\n")
        for level, name in enumerate(("info", "warn", "error", "verbose")):
            run(peer, f"pb_utils.Logger.log_{name}('é {level}')")
            assert peer.message("log")["level"] == level


def test_metrics(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        peer.replies["metric_value"] = 2.5
        code = "self.f = pb_utils.MetricFamily(name='n', description='d', kind=pb_utils.MetricFamily.KIND)"
        run(peer, code.replace("KIND", "COUNTER"))
        family = peer.message("metric_family")
        assert (family["name"], family["description"], family["kind"]) == ("n", "d", "counter")
        run(peer, "self.m = self.f.Metric(labels={'a': 'b'}); self.m.increment(2)")
        assert run(peer, "value = self.m.value()") == "2.5"
        metric = peer.message("metric")
        assert (metric["family"], metric["labels"], metric["buckets"]) == (family["family"], {"a": "b"}, None)
        update = peer.message("metric_update")
        assert (update["metric"], update["op"], update["value"]) == (metric["metric"], "increment", 2)
        head = "TritonModelException: Failed to "
        wrapped = "Failed to process the request for model 'm_0', message: "
        assert run(peer, "self.m.increment(-1)") == (
            f"{head}increment metric value: {wrapped}TRITONSERVER_METRIC_KIND_COUNTER can only be incremented "
            "monotonically by non-negative values."
        )
        assert run(peer, "self.m.set(1)") == (
            f"{head}set metric value: {wrapped}TRITONSERVER_METRIC_KIND_COUNTER does not support Set"
        )
        assert run(peer, "self.f.Metric(labels=3)") == f"{head}create metric. Labels must be a dictionary."
        assert run(peer, "self.f.Metric(buckets=3)") == f"{head}create metric. Buckets must be a list."
        assert run(peer, "self.f.Metric(buckets=[3])") == f"{head}create metric. Unexpected buckets found."
        run(peer, "self.f = None")
        assert peer.message("metric_drop")["metric"] == metric["metric"]
        assert peer.message("metric_family_drop")["family"] == family["family"]
        assert run(peer, "self.m.value()") == (
            f"{head}get metric value: Invalid metric operation as the corresponding 'MetricFamily' has been deleted. "
            "The 'MetricFamily' object should be deleted AFTER its corresponding 'Metric' objects have been deleted."
        )
        run(peer, code.replace("KIND", "HISTOGRAM"))
        assert run(peer, "self.f.Metric()") == f"{head}create metric. Missing required buckets."
        run(peer, "self.f.Metric(buckets=[1, 2.5]).observe(2)")
        assert peer.message("metric")["buckets"] == [1, 2.5]
        assert peer.message("metric_update")["op"] == "observe"
        peer.replies["metric_family"] = ValueError("exists")
        assert run(peer, code.replace("KIND", "GAUGE")) == (
            f"TritonModelException: Error when creating MetricFamily: {wrapped}exists"
        )


def test_model_control(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        peer.replies["is_model_ready"] = True
        assert run(peer, "value = pb_utils.is_model_ready('x', '2')") == "True"
        message = peer.message("is_model_ready")
        assert (message["model"], message["version"]) == ("x", "2")
        run(peer, "pb_utils.load_model('x', config='{}', files={'file:1/a': b'ab', 'file:1/b': b'c'})")
        message = peer.message("load_model")
        assert (message["model"], message["config"]) == ("x", "{}")
        assert message["files"] == [["file:1/a", 2], ["file:1/b", 1]]
        assert peer.blobs[-1] == b"abc"
        run(peer, "pb_utils.unload_model('x', unload_dependents=True)")
        assert peer.message("unload_model")["unload_dependents"] is True
        peer.replies["load_model"] = ValueError("no")
        assert run(peer, "pb_utils.load_model('x')") == (
            "TritonModelException: Failed to load model: Failed to process the request for model 'm_0', message: no"
        )


def test_finalize_and_its_exception(tmp_path):
    source = EXEC + "    def finalize(self):\n        raise ValueError('at the end')\n"
    with Peer(tmp_path, source) as peer:
        peer.init()
        assert "ValueError: at the end" in peer.finalize()["error"]


def test_the_worker_ends_with_its_socket(tmp_path):
    source = EXEC.replace("exec(requests", "__import__('threading').Event().wait() or (requests")
    with Peer(tmp_path, source) as peer:
        peer.init()
        peer.execute([Request([tensor("IN", [b""])])])
        peer.socket.shutdown(2)
        assert peer.process.wait(30) == 1


def test_signals_to_the_group_do_not_end_it(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(peer.process.pid, number)
            assert run(peer, "value = 1") == "1"
        peer.finalize()


def test_pickled_exceptions_keep_their_class(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        code = "import pickle; value = pickle.loads(pickle.dumps(pb_utils.TritonModelException('x')))"
        assert run(peer, code) == "x"
        code = "import pickle; code = pb_utils.TritonError.CANCELLED; value = pickle.loads(pickle.dumps(code)) is code"
        assert run(peer, code) == "True"


def test_texts_that_the_server_would_not_take_are_cut(tmp_path):
    with Peer(tmp_path, EXEC) as peer:
        peer.init()
        run(peer, "pb_utils.Logger.log_info('\U0001f600' * (3 << 20))")
        assert peer.message("log")["message"] == "\U0001f600" * (128 << 10) + " ... (text cut)"
        text = run(peer, "pb_utils.load_model('m', 'x' * (3 << 20))")
        assert text.startswith("TritonModelException: ") and "the message 'load_model' is too large" in text


def test_errors_that_the_server_would_not_take_are_cut(tmp_path):
    _, text = fails(tmp_path, "raise ValueError('x' * (3 << 20))\n")
    assert text.endswith("x ... (text cut)") and len(text) < 1 << 20
