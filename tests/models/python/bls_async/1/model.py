"""Calls of other models from a coroutine: awaited, gathered, iterated, cancelled."""

import asyncio
import json

import numpy as np
import triton_python_backend_utils as pb_utils


def tensor(name, values, kind=np.int32):
    return pb_utils.Tensor(name, np.array(values, kind))


def asked(model, tensors, outputs=("OUT",), **more):
    return pb_utils.InferenceRequest(model_name=model, inputs=tensors, requested_output_names=list(outputs), **more)


def told(response):
    """An inference response as JSON."""
    if response.has_error():
        return {"error": response.error().message()}
    return {one.name(): plain(one.as_numpy().tolist()) for one in response.output_tensors()}


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def squares(n):
    return asked("square", [tensor("IN", [n])])


class TritonPythonModel:
    async def execute(self, requests):
        return [await self.answer(request) for request in requests]

    async def answer(self, request):
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(await getattr(self, name)())
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])

    async def one(self):
        return told(await asked("coroutine", [tensor("IN", [4])]).async_exec())

    async def gather(self):
        calls = [asked("coroutine", [tensor("IN", [i])]).async_exec() for i in range(20)]
        return [told(one)["OUT"][0] for one in await asyncio.gather(*calls)]

    async def gather_mixed(self):
        calls = [
            asked("coroutine", [tensor("IN", [1])]), asked("nobody", [tensor("IN", [1])]),
            asked("add_sub_int32", [tensor("INPUT0", [[1]]), tensor("INPUT1", [[2]])], ("OUTPUT0",)),
        ]
        return [told(one) for one in await asyncio.gather(*(call.async_exec() for call in calls))]

    async def decoupled(self):
        return [told(one) for one in await squares(3).async_exec(decoupled=True)]

    async def decoupled_gather(self):
        made = await asyncio.gather(*(squares(n).async_exec(decoupled=True) for n in (1, 0, 4)))
        return [[told(one) for one in responses] for responses in made]

    async def decoupled_without(self):
        try:
            await squares(1).async_exec()
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return "nothing was raised"

    async def sync_inside(self):
        return told(asked("coroutine", [tensor("IN", [4])]).exec())

    async def cancel(self):
        responses = await asked("endless", [tensor("IN", [1])]).async_exec(decoupled=True)
        found = []
        for one in responses:
            found.append(told(one))
            responses.cancel()
        return [found[0], "error" in found[-1] or found[-1] == {}]

    async def cancel_sync(self):
        responses = asked("endless", [tensor("IN", [1])]).exec(decoupled=True)
        first = told(next(iter(responses)))
        responses.cancel()
        return [first, all("OUT" in told(one) or told(one) == {} or "error" in told(one) for one in responses)]
