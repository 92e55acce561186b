"""``async def execute`` of a decoupled model: it goes on beside later executions. 0 waits for the next request."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.came = None

    async def execute(self, requests):
        if self.came is None:
            self.came = asyncio.Event()
        for request in requests:
            value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
            if value < 0:
                raise ValueError(f"{value} is negative")
            sender = request.get_response_sender()
            if value == 0:
                await self.came.wait()
                self.came = asyncio.Event()
            else:
                self.came.set()
            for _ in range(max(value, 1)):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([value], np.int32))]))
                await asyncio.sleep(0)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
