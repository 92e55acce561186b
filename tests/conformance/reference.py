"""Runs the reference Triton on the models of the conformance suite, each as a Python model that does the same.

Needs the environment variable TRITON_REFERENCE, the path of a command that takes tritonserver's arguments.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from tests.helpers import raw

VARIABLE = "TRITON_REFERENCE"
START_TRIES = 600
EXIT_TIMEOUT_S = 60.0
IDENTITY = """
import json
import time

import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        delay = config.get("parameters", {}).get("execute_delay_ms", {"string_value": "0"})
        self.delay_s = int(delay["string_value"]) / 1000
        self.pairs = [(one["name"], other["name"]) for one, other in zip(config["input"], config["output"])]

    def execute(self, requests):
        time.sleep(self.delay_s)
        return [utils.InferenceResponse(list(self.answer(request))) for request in requests]

    def answer(self, request):
        wanted = request.requested_output_names()
        for given, made in self.pairs:
            tensor = utils.get_input_tensor_by_name(request, given)
            if tensor is not None and made in wanted:
                yield utils.Tensor(made, tensor.as_numpy())
"""
REPEAT = """
import time

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            values, delays, wait = (
                utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT")
            )
            wanted = request.requested_output_names()
            for i in range(len(values)):
                time.sleep(delays[i] / 1000)
                made = [utils.Tensor("OUT", values[i : i + 1]), utils.Tensor("IDX", delays[:1] * 0 + i)]
                sender.send(utils.InferenceResponse([one for one in made if one.name() in wanted]))
            time.sleep(wait[0] / 1000)
            sender.send(flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def python_models(source: Path, target: Path, names: tuple[str, ...]) -> Path:
    """Copy the named models to ``target`` as models of the Python backend."""
    for name in names:
        shutil.copytree(source / name, target / name)
        config = target / name / "config.pbtxt"
        text = config.read_text()
        code = REPEAT if 'backend: "repeat"' in text else IDENTITY
        config.write_text(re.sub('backend: "(identity|repeat)"', 'backend: "python"', text))
        for version in (target / name).iterdir():
            if version.is_dir():
                (version / "model.py").write_text(code)
    return target


class Reference:
    """The reference server as a child process; ``http``, ``grpc`` and ``metrics`` are its addresses.

    ``flags`` replace those that load every model.
    """

    def __init__(self, root: Path, log: Path, *flags: str) -> None:
        with socket.socket() as one, socket.socket() as other, socket.socket() as third:
            for each in (one, other, third):
                each.bind(("127.0.0.1", 0))
            self.http: tuple[str, int] = one.getsockname()
            self.grpc: tuple[str, int] = other.getsockname()
            self.metrics: tuple[str, int] = third.getsockname()
        self._log = log
        self._argv = [
            os.environ[VARIABLE], f"--model-repository={root}", "--http-address=127.0.0.1",
            f"--http-port={self.http[1]}", "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc[1]}",
            "--metrics-address=127.0.0.1", f"--metrics-port={self.metrics[1]}", "--http-thread-count=2",
            *(flags or ("--model-control-mode=explicit", "--load-model=*")),
        ]  # fmt: skip

    def __enter__(self) -> Reference:
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(self._argv, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        pause = threading.Event()
        for _ in range(START_TRIES):
            if self._process.poll() is not None:
                break
            if self._is_ready():
                return self
            pause.wait(0.1)
        self._end()
        raise RuntimeError(f"the reference did not start:\n{self._log.read_text(errors='replace')[-4000:]}")

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(self.http).close()
            return raw.ask(self.http, raw.get("/v2/health/ready")).status == 200
        except (OSError, raw.Closed):
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        # The launcher's children share its group; after a crash they are what is left of it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(EXIT_TIMEOUT_S)
