"""grpc.health.v1: Check, and a Watch that tells the state at once and each change once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.grpc_calls import FakeCall, Front
from tests.helpers.server import Model, repository
from triton_fast import protos
from triton_fast.frontends.grpc import health
from triton_fast.frontends.grpc.calls import MAX_BUFFERED

REQUEST = protos.HealthCheckRequest(service="whatever").SerializeToString()
SERVING, NOT_SERVING = 1, 2


def states(call: FakeCall) -> list[int]:
    return [protos.HealthCheckResponse.FromString(data).status for data in call.sent]


async def next_turn() -> None:
    """Let everything run that the loop was asked for before."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    await done.wait()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    root = repository(tmp_path, Model("m"), Model("n"))
    with Front(root, "--model-control-mode=explicit", "--load-model=m") as front:
        yield front


def open_watch(front: Front) -> tuple[FakeCall, health.Watch]:
    call = FakeCall(health.WATCH)
    watch = front.app.start(call)
    assert isinstance(watch, health.Watch)
    watch.message(REQUEST)
    assert call.sent == []
    watch.end()
    return call, watch


def test_check_follows_readiness(front: Front) -> None:
    assert states(front.ask(health.CHECK, REQUEST)) == [SERVING]
    front.plane.started = False
    call = front.ask(health.CHECK, b"")
    assert (states(call), call.outcome) == ([NOT_SERVING], (0, ""))
    front.plane.exiting = True
    call = front.ask(health.CHECK, REQUEST)
    assert (call.sent, call.outcome) == ([], (14, "Server exiting"))


def test_watch_tells_the_state_at_once_and_each_change(front: Front) -> None:
    async def run() -> None:
        call, watch = open_watch(front)
        assert states(call) == [SERVING]
        front.plane.started = False
        await call.until(lambda: len(call.sent) == 2)
        front.plane.started = True
        await call.until(lambda: len(call.sent) == 3)
        assert states(call) == [SERVING, NOT_SERVING, SERVING]
        assert call.status is None
        watch.cancel()
        assert front.app.watchers.watches == set()
        front.plane.started = False
        await next_turn()
        assert len(call.sent) == 3
        assert call.status is None

    asyncio.run(run())


def test_changes_of_models_on_other_threads_are_seen(front: Front, tmp_path: Path) -> None:
    """A model that is asked for and does not load makes a strictly ready server unready; unloading it settles that."""
    (tmp_path / "n" / "config.pbtxt").write_text("nonsense")

    def load() -> None:
        with pytest.raises(Exception, match="failed to load 'n'"):
            front.plane.load_model("n", {})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        call, _ = open_watch(front)
        await loop.run_in_executor(None, load)
        await call.until(lambda: states(call) == [SERVING, NOT_SERVING])
        await loop.run_in_executor(None, front.plane.unload_model, "n")
        await call.until(lambda: states(call) == [SERVING, NOT_SERVING, SERVING])

    asyncio.run(run())


def test_many_changes_are_one_look(front: Front) -> None:
    async def run() -> None:
        call, _ = open_watch(front)
        looks = []
        front.app.watchers._look = lambda: looks.append(1)  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: [setattr(front.plane, "started", n % 2 == 0) for n in range(100)])
        thread.start()
        thread.join()
        await next_turn()
        assert looks == [1]
        assert states(call) == [SERVING]

    asyncio.run(run())


def test_a_change_after_the_look_is_looked_at_again(front: Front) -> None:
    """The flag that saves looks is down before the state is read."""

    async def run() -> None:
        call, _ = open_watch(front)
        front.plane.started = False
        true_ready = front.plane.server_ready

        def ready() -> bool:
            now = true_ready()
            front.plane.server_ready = true_ready  # type: ignore[method-assign]
            front.plane.started = True
            return now

        front.plane.server_ready = ready  # type: ignore[method-assign]
        await call.until(lambda: states(call) == [SERVING, NOT_SERVING, SERVING])

    asyncio.run(run())


def test_the_end_of_the_server_ends_watches(front: Front) -> None:
    async def run() -> None:
        calls = [open_watch(front)[0] for _ in range(3)]
        front.plane.exiting = True
        for call in calls:
            await call.until(lambda call=call: call.status is not None)  # type: ignore[misc]
            assert (states(call), call.outcome) == ([SERVING], (14, "Server exiting"))
        late, _ = open_watch(front)
        assert (late.sent, late.outcome) == ([], (14, "Server exiting"))
        assert front.app.watchers.watches == set()
        assert front.plane._watchers == ()

    asyncio.run(run())


def test_a_reader_that_reads_nothing_is_let_go(front: Front) -> None:
    async def run() -> None:
        call, _ = open_watch(front)
        call.buffered = MAX_BUFFERED
        front.plane.started = False
        await call.until(lambda: len(call.sent) == 2)
        call.buffered += 1
        front.plane.started = True
        await call.until(lambda: call.status is not None)
        assert call.status == 8
        assert len(call.sent) == 2
        assert front.app.watchers.watches == set()

    asyncio.run(run())


def test_watches_are_bounded(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHERS", 2)

    async def run() -> None:
        first, watch = open_watch(front)
        open_watch(front)
        refused, _ = open_watch(front)
        assert (refused.sent, refused.status) == ([], 8)
        assert first.status is None
        watch.cancel()
        assert open_watch(front)[0].status is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "Unable to parse request"),
        ([b"\xff"], "Unable to parse request"),
        ([REQUEST, REQUEST], "the call takes one request message, more than one came"),
    ],
)
def test_watch_takes_one_good_message(front: Front, messages: list[bytes], text: str) -> None:
    call = front.ask(health.WATCH, *messages)
    assert (call.sent, call.outcome) == ([], (13, text))


def test_changes_after_the_loop_has_ended_are_nobodys(front: Front) -> None:
    async def run() -> FakeCall:
        return open_watch(front)[0]

    call = asyncio.run(run())
    front.plane.started = False
    assert states(call) == [SERVING]
