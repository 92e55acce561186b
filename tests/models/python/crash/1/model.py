"""Ends its process in the way that the input says; ``pid`` tells who it is. A file tells of starts and finalize."""

import ctypes
import faulthandler
import json
import os
import signal
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.marker = json.loads(args["model_config"])["parameters"]["marker"]["string_value"]
        faulthandler.disable()
        if self.marker and os.path.exists(self.marker + ".die"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.note("initialized")

    def note(self, text):
        if self.marker:
            descriptor = os.open(self.marker, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{text} {os.getpid()}\n".encode())
            os.close(descriptor)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        if name.startswith("wait"):
            self.note(name)
            time.sleep(int(name[4:] or 1) / 1000)
        elif name != "pid":
            getattr(self, name)()
        text = np.array([str(os.getpid())], dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", text)])

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def terminate(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    def segv(self):
        ctypes.string_at(8)

    def abort(self):
        os.abort()

    def exit3(self):
        os._exit(3)

    def exit0(self):
        os._exit(0)

    def system_exit(self):
        raise SystemExit(4)

    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def finalize(self):
        self.note("finalized")
