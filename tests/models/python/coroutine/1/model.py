"""``async def execute`` of a model that is not decoupled: it is awaited to its end."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
        await asyncio.sleep(0)
        if value < 0:
            raise ValueError(f"{value} is negative")
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([value + 1], np.int32))])
