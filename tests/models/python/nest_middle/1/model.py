"""Depth 2 of three: two awaited calls of ``nest_bottom`` for each request; adds 10 to the sum of what they answer."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        values = np.concatenate([await self.called(request), await self.called(request)])
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([values.sum() + 10], np.int32))])

    async def called(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "IN")
        call = pb_utils.InferenceRequest(model_name="nest_bottom", inputs=[tensor], requested_output_names=["OUT"])
        found = []
        for response in await call.async_exec(decoupled=True):
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            found += [tensor.as_numpy() for tensor in response.output_tensors()]
        return np.concatenate(found)
