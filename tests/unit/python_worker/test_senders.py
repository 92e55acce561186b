"""Response senders: decoupled models and others, coroutines, cancelling, holding, rescheduling, lost senders."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.worker_peer import Peer, Request, tensor

HEAD = """
import asyncio, threading
import numpy as np
import triton_python_backend_utils as pb_utils
R, T = pb_utils.InferenceResponse, pb_utils.Tensor
def number(request):
    return int(request.inputs()[0].as_numpy()[0])
"""
FAILED = "Failed to process the request(s) for model 'm_0', message: "
REPEAT = HEAD + (
    "class TritonPythonModel:\n"
    "    def execute(self, requests):\n"
    "        for request in requests:\n"
    "            threading.Thread(target=self.answer, args=(request.get_response_sender(), number(request))).start()\n"
    "    def answer(self, sender, count):\n"
    "        for i in range(count):\n"
    "            sender.send(R([T('OUT', np.array([i]))]))\n"
    "        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)\n"
)


def count(value: int, **fields: int) -> Request:
    return Request([tensor("IN", np.array([value], "i4"))], **fields)


def start(tmp_path, source, decoupled=True):
    peer = Peer(tmp_path, source, decoupled=decoupled)
    peer.init()
    return peer


def test_decoupled_responses_from_a_thread(tmp_path):
    with start(tmp_path, REPEAT) as peer:
        done = peer.infer(count(3, slot=4, generation=9))
        assert (done.code, done.responses) == (-1, None)
        responses = [peer.response() for _ in range(4)]
        assert [r.outputs["OUT"].value.tolist() for r in responses[:3]] == [[0], [1], [2]]
        assert [(r.final, r.kind) for r in responses] == [(False, 0)] * 3 + [(True, 3)]
        assert {(r.slot, r.generation) for r in responses} == {(4, 9)}
        peer.finalize()
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0


def test_decoupled_must_return_none(tmp_path):
    source = HEAD + "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
    with start(tmp_path, source) as peer:
        assert peer.infer(count(1)).error == (
            FAILED + "Python model 'm_0' is using the decoupled mode and the execute function must return None."
        )


def test_sender_after_an_error_is_closed(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    sender = None\n"
        "    def execute(self, requests):\n"
        "        if self.sender is None:\n"
        "            self.sender = requests[0].get_response_sender()\n"
        "            raise ValueError('first')\n"
        "        self.sender.send(R([]))\n"
    )
    with start(tmp_path, source) as peer:
        assert "ValueError: first" in peer.infer(count(1)).error
        text = "TritonModelException: Unable to send response. Response sender has been closed.\n\nAt:\n"
        assert FAILED + text in peer.infer(count(1)).error


def test_non_decoupled_sender(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        sender = requests[0].get_response_sender()\n"
        "        response = R([T('OUT', np.array([1]))])\n"
        "        if number(requests[0]) == 1:\n"
        "            sender.send(response, flags=1)\n"
        "        else:\n"
        "            sender.send(response)\n"
        "            sender.send(flags=1)\n"
        "        try:\n            sender.send(response)\n"
        "        except pb_utils.TritonModelException as error:\n            self.text = str(error)\n"
        "        try:\n            sender.send(flags=1)\n"
        "        except pb_utils.TritonModelException as error:\n            self.text += '|' + str(error)\n"
        "        pb_utils.Logger.log_warn(self.text)\n"
        "        return [None]\n"
    )
    texts = (
        "Unable to send response. Non-decoupled model cannot send more than one response.|"
        "Unable to send response. Response sender has been closed."
    )
    with start(tmp_path, source, decoupled=False) as peer:
        for number, finals in ((1, [True]), (2, [False, True])):
            done = peer.infer(count(number))
            assert [r.kind for r in done.responses] == [1]
            assert [peer.response().final for _ in finals] == finals
            assert peer.message("log")["message"] == texts
        peer.finalize()
        assert peer.events.empty()


def test_async_execute_of_a_decoupled_model_does_not_block(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def initialize(self, args):\n        self.first = None\n"
        "    async def execute(self, requests):\n"
        "        sender = requests[0].get_response_sender()\n"
        "        if self.first is None:\n"
        "            self.first = asyncio.Event()\n"
        "            await self.first.wait()\n"
        "        self.first.set()\n"
        "        sender.send(R([T('OUT', np.array([number(requests[0])]))]), 1)\n"
    )
    with start(tmp_path, source) as peer:
        assert peer.infer(count(1)).responses is None
        assert peer.infer(count(2)).responses is None
        assert [peer.response().outputs["OUT"].value.tolist() for _ in range(2)] == [[2], [1]]
        peer.finalize()
        assert peer.in_use() == []


def test_async_execute_of_a_plain_model(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    async def execute(self, requests):\n"
        "        return [R([T('OUT', np.array([await self.double(number(r))]))]) for r in requests]\n"
        "    async def double(self, value):\n"
        "        await asyncio.sleep(0)\n"
        "        if value < 0:\n            raise ValueError('negative')\n"
        "        return value * 2\n"
    )
    with start(tmp_path, source, decoupled=False) as peer:
        assert peer.infer(count(4)).responses[0].outputs["OUT"].value.tolist() == [8]
        text = "ValueError: negative\n\nAt:\n  m/1/model.py(14): double\n"
        assert peer.infer(count(-1)).error.startswith(FAILED + text)


def test_failure_in_the_background_is_answered(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    async def execute(self, requests):\n"
        "        await asyncio.sleep(0)\n"
        "        raise ValueError('late')\n"
    )
    with start(tmp_path, source) as peer:
        assert peer.infer(count(1)).error == ""
        response = peer.response()
        assert (response.code, response.final) == (1, True)
        assert response.error.startswith(FAILED + "ValueError: late\n\nAt:\n")


def test_cancel_words(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        r = requests[0]\n"
        "        return [R([T('OUT', np.array([r.is_cancelled(), r.get_response_sender().is_cancelled()]))])]\n"
    )
    with start(tmp_path, source, decoupled=False) as peer:
        peer.cancel(40000, 6)
        for generation, cancelled in ((5, False), (6, True)):
            output = peer.infer(count(1, slot=40000, generation=generation)).responses[0].outputs["OUT"]
            assert output.value.tolist() == [cancelled] * 2


@pytest.mark.parametrize("release", ["hold", "cancel"])
def test_a_held_sender_waits(tmp_path, release):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        pb_utils.Logger.log_info('sending')\n"
        "        requests[0].get_response_sender().send(R([]), 1)\n"
    )
    with start(tmp_path, source) as peer:
        peer.hold(7, 2)
        peer.execute([count(1, slot=7, generation=2)])
        peer.message("log")
        assert peer.events.empty()
        assert peer.done.empty()
        if release == "hold":
            peer.hold(7, 0)
        else:
            peer.cancel(7, 2)
        assert peer.response().final


@pytest.mark.parametrize("decoupled", [True, False])
def test_rescheduled_requests(tmp_path, decoupled):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        again = [number(r) > 0 for r in requests]\n"
        "        for request, one in zip(requests, again):\n"
        "            if one:\n"
        "                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)\n"
        f"            elif {decoupled}:\n"
        "                request.get_response_sender().send(R([]), 1)\n"
        f"        return None if {decoupled} else [None if one else R([]) for one in again]\n"
    )
    with start(tmp_path, source, decoupled=decoupled) as peer:
        done = peer.infer(count(1), count(0))
        assert [r.kind for r in done.responses] == [2, 1 if decoupled else 0]
        peer.finalize()
        # A rescheduled request's sender is not lost, it is closed.
        assert peer.events.qsize() == (1 if decoupled else 0)


def test_a_lost_sender_ends_its_request(tmp_path):
    lost = HEAD + "class TritonPythonModel:\n    def execute(self, requests):\n        return NOTHING\n"
    with start(tmp_path / "a", lost.replace("NOTHING", "[None]"), decoupled=False) as peer:
        assert [r.kind for r in peer.infer(count(1)).responses] == [1]
        response = peer.response()
        assert (response.code, response.final) == (1, True)
        assert response.error.startswith(FAILED + "The request was neither answered")
    with start(tmp_path / "b", lost.replace("NOTHING", "None")) as peer:
        peer.infer(count(1))
        response = peer.response()
        assert (response.kind, response.code, response.final) == (3, -1, True)


def test_model_keeps_the_list_of_requests(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    kept = None\n"
        "    def execute(self, requests):\n"
        "        for old in self.kept or ():\n"
        "            old.get_response_sender().send(R([T('OUT', old.inputs()[0].as_numpy())]), 1)\n"
        "        self.kept = requests\n"
    )
    with start(tmp_path, source) as peer:
        peer.infer(count(5), count(6))
        peer.infer(count(7))
        assert [peer.response().outputs["OUT"].value.tolist() for _ in range(2)] == [[5], [6]]


def test_only_the_final_response_is_sent_by_reference(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        values = requests[0].inputs()[0].as_numpy()\n"
        "        for i in range(3):\n"
        "            values[...] = i\n"
        "            requests[0].get_response_sender().send(R([T('OUT', values)]), i == 2)\n"
    )
    with start(tmp_path, source) as peer:
        peer.infer(Request([tensor("IN", np.zeros(5000, "i4"))]))
        outputs = [peer.response().outputs["OUT"] for _ in range(3)]
        assert [set(output.value.tolist()) for output in outputs] == [{0}, {1}, {2}]
        assert [output.off < peer.out_off for output in outputs] == [False, False, True]


def test_what_cannot_be_sent_ends_the_request(tmp_path):
    source = HEAD + (
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        sender = requests[0].get_response_sender()\n"
        "        for size in (1 << 26, 1):\n"
        "            try:\n                sender.send(R([T('OUT', np.zeros(size))]))\n"
        "            except pb_utils.TritonModelException as error:\n"
        "                pb_utils.Logger.log_error(str(error))\n"
    )
    with start(tmp_path, source) as peer:
        peer.infer(count(1))
        response = peer.response()
        assert response.final
        assert response.error == peer.message("log")["message"]
        assert peer.message("log")["message"] == "Unable to send response. Response sender has been closed."
        peer.finalize()
        assert peer.events.empty()


def test_many_senders_at_once(tmp_path):
    with start(tmp_path, REPEAT) as peer:
        for slot in range(40):
            peer.execute([count(50, slot=slot)])
        counted = dict.fromkeys(range(40), 0)
        while any(value < 51 for value in counted.values()):
            counted[peer.response().slot] += 1
        assert set(counted.values()) == {51}
        peer.finalize()
        assert peer.in_use() == []
        assert peer.outbound_in_use() == 0
