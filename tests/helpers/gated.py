"""Python models that say in a file what is done with them and wait in ``execute`` until the test opens a gate.

Four models: ``plain`` answers; ``stream`` (decoupled) answers once before the gate and once behind it; ``asker`` asks
``plain2`` and the identity model ``m`` behind the gate, over BLS; ``slow`` waits in ``initialize`` if it is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.server import Model, repository, until

SOURCE = """
import os
import time

import triton_python_backend_utils as pb_utils

FOLDER = {folder!r}


def note(*words):
    descriptor = os.open(FOLDER + "/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, " ".join(map(str, words)).encode() + b"\\n")
    os.close(descriptor)


def gate(name):
    while not os.path.exists(FOLDER + "/" + name):
        time.sleep(0.002)


class TritonPythonModel:
{auto_complete}
    def initialize(self, args):
        self.name = args["model_name"]
        note("initializing", self.name, os.getpid())
        gate("{initialize_gate}")
        note("initialized", self.name, os.getpid())

    def execute(self, requests):
        answers = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            note("execute", self.name)
{execute}
        return answers

    def finalize(self):
        note("finalized", self.name, os.getpid())
"""
PLAIN = """
            gate("go")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value)]))
"""
AT_ONCE = """
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value)]))
"""
STREAM = """
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value)]))
            gate("go")
            final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value + 1)]), final)
        answers = None
"""
ASKER = """
            gate("go")
            for name in ("plain2", "m"):
                asked = pb_utils.InferenceRequest(model_name=name, inputs=[pb_utils.Tensor("INPUT0", value)],
                                                  requested_output_names=["OUTPUT0"])
                answer = asked.exec()
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
                value = pb_utils.get_output_tensor_by_name(answer, "OUTPUT0").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value)]))
"""
AUTO_COMPLETE = """
    @staticmethod
    def auto_complete_config(config):
        note("completing")
        gate("completed")
        return config
"""
BODIES = {"plain": PLAIN, "plain2": AT_ONCE, "asker": ASKER, "stream": STREAM, "slow": AT_ONCE, "unsure": AT_ONCE}
# How many instances each has.
INSTANCES = {"stream": 2}


class Gated:
    """The models below ``root/models``, the file and the gates in ``root``."""

    def __init__(self, root: Path, *names: str) -> None:
        self.root = root
        self.models = repository(root / "models", Model("m", dims=(1,), max_batch=0))
        self.names = [name for name in names or ("plain", "plain2", "asker", "stream")]
        for name in self.names:
            self.write(name)
        if "slow" not in self.names:
            self.open("loaded")

    def write(self, name: str) -> None:
        folder = self.models / name
        (folder / "1").mkdir(parents=True)
        decoupled = "model_transaction_policy { decoupled: true }\n" if name == "stream" else ""
        count = f"instance_group [{{ count: {INSTANCES.get(name, 1)} kind: KIND_CPU }}]\n"
        tensors = "".join(f'{side} [{{ name: "{side.upper()}0" data_type: TYPE_FP32 dims: [1] }}]\n'
                          for side in ("input", "output"))  # fmt: skip
        (folder / "config.pbtxt").write_text(f'backend: "python"\n{tensors}{count}{decoupled}')
        source = SOURCE.format(
            folder=str(self.root), execute=BODIES[name], auto_complete=AUTO_COMPLETE if name == "unsure" else "",
            initialize_gate="loaded",
        )  # fmt: skip
        (folder / "1" / "model.py").write_text(source)

    def open(self, gate: str = "go") -> None:
        (self.root / gate).touch()

    def notes(self, words: str) -> list[str]:
        """The lines that begin with these words, as the models wrote them."""
        file = self.root / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if f"{line} ".startswith(f"{words} ")]

    def saw(self, word: str, times: int) -> bool:
        """Wait until the models wrote so many lines that begin with this word."""
        return until(lambda: len(self.notes(word)) >= times, tries=6000)

    def pids(self) -> list[int]:
        """Of every worker that there was."""
        return [int(line.split(" ")[-1]) for line in self.notes("initializing")]

    def finalized_once(self) -> bool:
        """Whether every instance that was initialized was finalized, by its own worker, and none twice."""
        began = sorted(line.split(" ", 1)[1] for line in self.notes("initialized"))
        ended = sorted(line.split(" ", 1)[1] for line in self.notes("finalized"))
        return bool(began) and began == ended and len(set(ended)) == len(ended)

    def environment(self, mark: str) -> dict[str, str]:
        """A temporary directory of the server's own, and what its workers are known by."""
        (self.root / "tmp").mkdir(exist_ok=True)
        return {"TMPDIR": str(self.root / "tmp"), "GATED_TEST": mark}

    @property
    def temporary(self) -> list[str]:
        return sorted(os.listdir(self.root / "tmp"))
