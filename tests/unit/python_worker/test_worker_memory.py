"""Outbound memory that is used up: both transports wait as long as they are told and somebody wants the message."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.worker_peer import Peer, Request, tensor

HOUR_S = 3600.0
NO_SPACE = "Failed to increase the shared memory pool size to "
# The heap has 8 MiB.
MODEL = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

R, T = pb_utils.InferenceResponse, pb_utils.Tensor
state = ["nothing"]

def send(sender, count):
    try:
        sender.send(R([T("OUT", np.ones(count, "u1"))]), 1)
        state[0] = "sent"
    except Exception as error:
        state[0] = str(error)

def call(count):
    request = pb_utils.InferenceRequest(
        inputs=[T("X", np.ones(count, "u1"))], requested_output_names=["Y"], model_name="other"
    )
    try:
        request.exec()
        state[0] = "answered"
    except Exception as error:
        state[0] = str(error)

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            what, count = (int(number) for number in request.inputs()[0].as_numpy())
            if what in (1, 2):
                state[0] = "waiting"
                arguments = (send, request.get_response_sender()) if what == 1 else (call,)
                threading.Thread(target=arguments[0], args=(*arguments[1:], count), daemon=True).start()
                answers.append(None if what == 1 else R([T("OUT", np.ones(1, "u1"))]))
            elif what == 3:
                answers.append(R([T("OUT", np.array([state[0]], dtype=object))]))
            else:
                answers.append(R([T("OUT", np.ones(count, "u1"))]))
        return answers
"""
PLAIN, SEND, CALL, STATE = range(4)
LARGE = 5 << 20


def ask(what, count=1, **fields):
    return Request([tensor("IN", np.array([what, count], "i8"))], **fields)


def size(done):
    assert done.error == "", done.error
    return len(done.responses[0].outputs["OUT"].data)


def state(peer):
    done = peer.infer(ask(STATE, slot=9, generation=9))
    return done.responses[0].outputs["OUT"].value[0].decode()


def state_after(peer, before):
    while (found := state(peer)) == before:
        pass
    return found


@pytest.fixture
def full(tmp_path):
    """A worker whose client still reads most of its memory; ``full(seconds)`` says how long it waits."""
    peers = []

    def start(seconds):
        peer = Peer(tmp_path, MODEL)
        peers.append(peer)
        peer.shm_wait = seconds
        peer.init()
        peer.holding = True
        assert size(peer.infer(ask(PLAIN, LARGE))) == LARGE
        return peer

    yield start
    for peer in peers:
        peer.close()


def test_a_response_waits_until_clients_have_read(full):
    peer = full(HOUR_S)
    done = peer.infer(ask(SEND, LARGE, slot=1, generation=1))
    assert done.responses[0].kind == 1
    for _ in range(20):
        assert state(peer) == "waiting"
    peer.release()
    assert len(peer.response().outputs["OUT"].data) == LARGE
    assert state_after(peer, "waiting") == "sent"
    # So does an execution's.
    peer.holding = True
    assert size(peer.infer(ask(PLAIN, LARGE))) == LARGE
    peer.execute([ask(PLAIN, LARGE)])
    peer.release()
    assert size(peer.done.get(timeout=30)) == LARGE


def test_a_request_of_another_model_waits_too(full):
    peer = full(HOUR_S)
    assert size(peer.infer(ask(CALL, LARGE))) == 1
    for _ in range(20):
        assert state(peer) == "waiting"
    peer.release()
    kind, number, called = peer.event()
    assert (kind, called.model, len(called.inputs["X"].data)) == (2, "other", LARGE)
    peer.answer(number, tensor("Y", np.ones(1, "u1")))
    assert state_after(peer, "waiting") == "answered"


def test_the_wait_ends_when_it_was_said_to(full):
    peer = full(0.01)
    assert NO_SPACE in peer.infer(ask(PLAIN, LARGE)).error
    peer.infer(ask(SEND, LARGE, slot=1, generation=1))
    assert state_after(peer, "waiting").startswith(NO_SPACE)
    response = peer.response()
    assert response.error.startswith(NO_SPACE)
    assert response.final
    peer.infer(ask(CALL, LARGE))
    assert state_after(peer, "waiting").startswith(NO_SPACE)
    peer.release()
    assert size(peer.infer(ask(PLAIN, LARGE))) == LARGE


def test_nobody_waits_for_what_was_cancelled(full):
    peer = full(HOUR_S)
    peer.cancel(1, 5)
    assert NO_SPACE in peer.infer(ask(PLAIN, LARGE, slot=1, generation=5)).error
    peer.infer(ask(SEND, LARGE, slot=1, generation=5))
    assert state_after(peer, "waiting").startswith(NO_SPACE)
    assert peer.response().error.startswith(NO_SPACE)
    # Of one that waits already.
    peer.infer(ask(SEND, LARGE, slot=2, generation=5))
    for _ in range(5):
        assert state(peer) == "waiting"
    peer.cancel(2, 5)
    assert state_after(peer, "waiting").startswith(NO_SPACE)
    # A batch is wanted as long as one of its requests is.
    peer.execute([ask(PLAIN, LARGE, slot=1, generation=5), ask(PLAIN, 1, slot=3, generation=1)])
    peer.release()
    done = peer.done.get(timeout=30)
    assert done.error == ""
    assert [len(one.outputs["OUT"].data) for one in done.responses] == [LARGE, 1]


def test_what_never_fits_is_not_waited_for(full):
    peer = full(HOUR_S)
    assert NO_SPACE in peer.infer(ask(PLAIN, 9 << 20)).error
