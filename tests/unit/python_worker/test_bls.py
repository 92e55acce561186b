"""BLS: what the worker asks for, what it makes of the answers, by exec, async_exec and iterators, from many threads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.worker_peer import Peer, Request, tensor

HEAD = """
import asyncio, gc, threading
import numpy as np
import triton_python_backend_utils as pb_utils
R, T = pb_utils.InferenceResponse, pb_utils.Tensor
def call(model="other", **more):
    return pb_utils.InferenceRequest(model_name=model, requested_output_names=["Y"],
                                     inputs=[T("X", np.array([1.5]))], **more)
def out(value):
    return [R([T("OUT", np.array([str(value)], object))])]
"""
IN = tensor("IN", np.zeros(1, "f4"))


def start(tmp_path, body, decoupled=False):
    source = HEAD + "class TritonPythonModel:\n" + "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    peer = Peer(tmp_path, source, decoupled=decoupled)
    peer.init()
    return peer


def text(peer):
    done = peer.done.get(timeout=30)
    assert done.error == ""
    return done.responses[0].outputs["OUT"].value[0].decode()


def request(peer):
    kind, _, bls = peer.event()
    assert kind == 2
    return bls


def test_exec(tmp_path):
    body = """
def execute(self, requests):
    made = call(request_id="id", correlation_id="seq", flags=1, timeout=5, model_version=3,
                parameters={"a": 1, "s": "t"}, trace=requests[0].trace())
    response = made.exec()
    y = pb_utils.get_output_tensor_by_name(response, "Y")
    return out((y.as_numpy().tolist(), response.has_error(), response.parameters(), type(response).__name__))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN], slot=3, generation=8, trace="context")])
        bls = request(peer)
        assert (bls.model, bls.version, bls.options, bls.flags, bls.timeout) == ("other", 3, 2, 1, 5)
        assert (bls.correlation, bls.request_id, bls.trace, bls.parent) == ("seq", "id", "context", (3, 8))
        assert (bls.params, bls.wanted) == ({"a": 1, "s": "t"}, ["Y"])
        assert bls.inputs["X"].value.tolist() == [1.5]
        peer.answer(bls.call, tensor("Y", np.array([4, 5])), params='{"p": 1}')
        assert text(peer) == """([4, 5], False, '{"p": 1}', 'InferenceResponse')"""
        peer.finalize()
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0


def test_errors_are_responses(tmp_path):
    body = """
def execute(self, requests):
    response = call().exec()
    error = response.error()
    return out((response.has_error(), error.message(), int(error.code()), response.output_tensors()))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        peer.answer(request(peer).call, error="no such model", code=2)
        assert text(peer) == "(True, 'no such model', 2, [])"


@pytest.mark.parametrize("where", ["initialize(self, args)", "finalize(self)"])
def test_only_during_execute(tmp_path, where):
    body = f"""
def execute(self, requests):
    return out(self.text)
def {where}:
    try:
        call().exec()
    except pb_utils.TritonModelException as error:
        self.text = str(error)
        pb_utils.Logger.log_info(self.text)
"""
    with start(tmp_path, body) as peer:
        if "finalize" in where:
            peer.publish(0, 2)
        assert peer.message("log")["message"] == "BLS is only supported during the 'execute' function."


def test_iterating_cancelling_and_replaying(tmp_path):
    body = """
def execute(self, requests):
    responses = call().exec(decoupled=True)
    seen = []
    for response in responses:
        seen += [t.as_numpy().tolist() for t in response.output_tensors()] or ["final"]
        if len(seen) == 2:
            responses.cancel()
    again = [len(response.output_tensors()) for response in responses]
    responses.cancel()
    return out((seen, again, type(responses)))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        bls = request(peer)
        assert bls.options == 3
        for value in range(2):
            peer.answer(bls.call, tensor("Y", np.array([value])), final=False)
        assert peer.event()[:2] == (3, bls.call)
        peer.answer(bls.call, kind=3)
        assert text(peer) == "([[0], [1], 'final'], [1, 1, 0], <class 'c_python_backend_utils.ResponseIterator'>)"
        peer.finalize()
        assert peer.events.empty()
        assert peer.in_use() == []


def test_a_dropped_iterator_closes_its_call(tmp_path):
    body = """
def execute(self, requests):
    next(iter(call().exec(decoupled=True)))
    gc.collect()
    return out("done")
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        bls = request(peer)
        peer.answer(bls.call, tensor("Y", np.array([1])), final=False)
        assert peer.event()[:2] == (4, bls.call)
        assert text(peer) == "done"
        # One that was under way is taken and given back.
        peer.answer(bls.call, tensor("Y", np.array([2])))
        peer.execute([Request([IN])])
        bls = request(peer)
        peer.answer(bls.call, tensor("Y", np.array([3])))
        assert text(peer) == "done"
        peer.finalize()
        assert peer.in_use() == []


def test_async_exec(tmp_path):
    body = """
async def execute(self, requests):
    responses = await asyncio.gather(*[call(request_id=str(i)).async_exec() for i in range(50)])
    values = [r.output_tensors()[0].as_numpy()[0] for r in responses]
    several = await call().async_exec(decoupled=True)
    return out((int(sum(values)), [len(r.output_tensors()) for r in several]))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        calls = [request(peer) for _ in range(50)]
        # In any order: each awaits its own.
        for bls in reversed(calls):
            peer.answer(bls.call, tensor("Y", np.array([int(bls.request_id)])))
        bls = request(peer)
        assert bls.options == 3
        peer.answer(bls.call, tensor("Y", np.array([1])), final=False)
        peer.answer(bls.call)
        assert text(peer) == f"({sum(range(50))}, [1, 0])"
        peer.finalize()
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0


def test_async_exec_needs_a_loop(tmp_path):
    body = """
def execute(self, requests):
    try:
        call().async_exec()
    except RuntimeError as error:
        return out(error)
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        assert text(peer) == "no running event loop"


def test_threads_share_the_reading(tmp_path):
    body = """
def execute(self, requests):
    got = {}
    def work(i):
        for j in range(20):
            response = call(request_id=f"{i}.{j}").exec()
            got[i, j] = response.output_tensors()[0].as_numpy()[0].decode() == f"{i}.{j}"
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out((len(got), all(got.values())))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        for _ in range(160):
            bls = request(peer)
            peer.answer(bls.call, tensor("Y", [bls.request_id.encode()]))
        assert text(peer) == "(160, True)"
        peer.finalize()
        assert peer.in_use() == []


def test_waiting_threads_and_callbacks_together(tmp_path):
    body = """
async def execute(self, requests):
    loop = asyncio.get_running_loop()
    def wait(i):
        return int(call(request_id=str(i)).exec().output_tensors()[0].as_numpy()[0])
    waiting = [loop.run_in_executor(None, wait, i) for i in range(4)]
    for i in range(20):
        await call(request_id=str(100 + i)).async_exec()
    return out(sum(await asyncio.gather(*waiting)))
"""
    with start(tmp_path, body) as peer:
        peer.execute([Request([IN])])
        late = []
        for _ in range(24):
            bls = request(peer)
            if int(bls.request_id) < 100:
                late.append(bls)
            else:
                peer.answer(bls.call, tensor("Y", np.array([1])))
        for bls in late:
            peer.answer(bls.call, tensor("Y", np.array([int(bls.request_id)])))
        assert text(peer) == "6"


def test_answers_are_views_that_hold_their_memory(tmp_path):
    body = """
kept = None
def execute(self, requests):
    self.kept = call().exec().output_tensors()[0].as_numpy()[1:]
    return out(self.kept.tolist())
"""
    with start(tmp_path, body) as peer:
        for index in range(3):
            peer.execute([Request([IN])])
            peer.answer(request(peer).call, tensor("Y", np.array([index, index + 1])))
            assert text(peer) == str([index + 1])
            assert len(peer.in_use()) == 1
