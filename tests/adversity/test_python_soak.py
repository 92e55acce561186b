"""Load on Python models whose workers are killed at random, and nested calls: all is answered, nothing is left behind.

``make soak`` makes TF_SOAK_REQUESTS requests (100 000 are the release's); ``make test`` a few of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.conformance.python_cases import Case, named, one
from tests.helpers import python_models, raw, workers
from tests.helpers.grpc_channel import Channel
from tests.helpers.load import Tally
from tests.helpers.server import ServerProcess, until

REQUESTS = int(os.environ.get("TF_SOAK_REQUESTS", "4000"))
NESTED = 1000 if "TF_SOAK_REQUESTS" in os.environ else 100
CLIENTS = 16
KILLS = 40  # spread over the run: a worker that dies often is started again ever later, up to 30 s
FLAGS = ("--model-control-mode=explicit", "--load-model=*", "--allow-metrics=false")
KILLED = ("identity", "forward", "square", "add_sub_int32", "bls", "coroutine")
NEEDED = (*KILLED, "strings", "echo", "errors", "counter")
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP)
MARKER = "PYTHON_SOAK_TEST"
NEST = ("nest_top", "nest_middle", "nest_bottom", "coroutine", "cycle_a", "cycle_b", "forward")


def requests(rng: random.Random) -> Iterator[tuple[str, bytes, str]]:
    """Valid requests without an end: model, request, and what tells the right answer: a text that its body holds."""
    while True:
        n = rng.randrange(1, 1_000_000)
        choice = rng.randrange(5)
        if choice == 0:
            size = rng.choice((1, 10, 5000))
            yield "identity", Case("identity", [("INPUT0", "FP32", [1, size], [n] * size)]).http(), f"{n}"
        elif choice == 1:
            yield "forward", named("forward", f"text {n}").http(), f"text {n}"
        elif choice == 2:
            tensors = [("INPUT0", "INT32", [1, 1], [n]), ("INPUT1", "INT32", [1, 1], [7])]
            yield "add_sub_int32", Case("add_sub_int32", tensors).http(), f"{n + 7}"
        elif choice == 3:
            yield "coroutine", one("coroutine", n).http(), f"{n + 1}"
        else:
            yield "bls", named("bls", "sync").http(), "13"


def due(kills: int) -> int:
    """How many requests are answered before a worker is killed after this many."""
    return REQUESTS * kills // KILLS


def client(address: tuple[str, int], seed: int, share: int, tally: Tally) -> None:
    """Send one's share, each request on a connection that is kept, and count how each was answered."""
    stream = requests(random.Random(seed))
    with raw.Client(address) as connection:
        for _ in range(share):
            # Not ahead of the killer, which on a busy machine gets its turn late.
            assert until(lambda: tally.counts["answered"] < due(tally.counts["kills"] + 2), tries=12000)
            model, request, wanted = next(stream)
            tally.add("sent")
            answer = connection.ask(request)
            tally.add("answered")
            text = answer.body.decode()
            # The model bls tells what its own call met with.
            if answer.status == 200 and not (model == "bls" and "is not healthy" in text):
                tally.add("right" if wanted in text else f"wrong: {model}: {text[:200]}")
                continue
            assert answer.status in (200, 400, 500, 503), text
            tally.add("failed")
            # An answer that fails is the fastest there is: all would be spent while the model is away.
            path = raw.get(f"/v2/models/{model}/ready")
            until(lambda path=path: connection.ask(path).status == 200, tries=40)


def killer(server: int, stop: Event, tally: Tally) -> None:
    """Kill a worker each time a share of the requests is answered, in one way or another."""
    rng = random.Random(1)
    while tally.counts["kills"] < KILLS and not stop.wait(0.01):
        if tally.counts["answered"] < due(tally.counts["kills"]):
            continue
        found = [pid for pid in workers.workers(server) if workers.alive(pid)]
        if not found:
            continue
        try:
            os.kill(rng.choice(found), rng.choice(SIGNALS))
        except ProcessLookupError:
            continue
        tally.add("kills")


@pytest.mark.soak
@pytest.mark.parametrize("end", ["stop", "kill -9"])
def test_every_request_is_answered_though_workers_die(tmp_path: Path, end: str) -> None:
    root = python_models.write(tmp_path / "models", marker=tmp_path, only=NEEDED)
    shared, mark = workers.named_shared_memory(), uuid.uuid4().hex
    tally, stop = Tally(), Event()
    with ServerProcess(root, *FLAGS, env={MARKER: mark}) as process:
        server = process.process.pid
        # Once through all models, so that what is made on first use is there.
        for name in KILLED:
            assert until(lambda name=name: raw.ask(process.http, raw.get(f"/v2/models/{name}/ready")).status == 200)
        share = REQUESTS // CLIENTS
        threads = [Thread(target=client, args=(process.http, seed, share, tally)) for seed in range(CLIENTS)]
        threads.append(Thread(target=killer, args=(server, stop, tally)))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads[:-1]:
            thread.join()
        stop.set()
        threads[-1].join()
        counts: Counter[str] = tally.counts
        print(f"{dict(counts)} in {time.monotonic() - began:.1f} s")
        assert counts["answered"] == counts["sent"] == share * CLIENTS
        assert not [name for name in counts if name.startswith("wrong")]
        assert counts["right"] > counts["failed"]
        # The requests may be over before the last of them.
        assert KILLS - 2 <= counts["kills"] <= KILLS
        # All come back, and no ended worker is left unwaited for.
        for name in NEEDED:
            path = f"/v2/models/{name}/ready"
            assert until(lambda path=path: raw.ask(process.http, raw.get(path)).status == 200, tries=12000), name
        # The last one may have been stopped a moment ago: until that is noticed its model counts as ready.
        assert until(lambda: raw.ask(process.http, named("bls", "sync").http()).status == 200)
        assert until(lambda: len(workers.workers(server)) == len(NEEDED)), workers.workers(server)
        assert until(lambda: len(workers.regions(server)) <= 2 * len(NEEDED)), workers.regions(server)
        pids = workers.workers(server)
        regions = set().union(*(workers.regions(pid) for pid in pids))
        if end == "kill -9":
            process.exit_code = None
            process.kill()
        else:
            assert process.stop() == 0
        assert workers.ended(pids)
        assert until(lambda: workers.with_marker(mark) == [])
        assert not regions & set().union(*(workers.regions(pid) for pid in workers.processes()))
        assert workers.named_shared_memory() <= shared


# ---- nested calls


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = python_models.write(tmp_path_factory.mktemp("nested") / "models", only=NEST)
    with ServerProcess(root, *FLAGS) as process:
        yield process


@pytest.mark.soak
def test_nested_calls_do_not_hang(nested: ServerProcess) -> None:
    """All at once through three models that call the next, plainly, awaited and decoupled, one instance each."""
    with Channel(nested.grpc) as channel:
        calls = [channel.infer_later(one("nest_top", i).grpc(), timeout=600) for i in range(NESTED)]
        for i, call in enumerate(calls):
            (data,) = call.result().raw_output_contents
            # Two times three answers of i + 1, and 110.
            assert int.from_bytes(data, "little") == 6 * (i + 1) + 110


def test_nested_calls_beside_plain_ones(nested: ServerProcess) -> None:
    """Whoever asks a model of the chain directly is answered too."""
    with Channel(nested.grpc) as channel:
        tops = [channel.infer_later(one("nest_top", i).grpc()) for i in range(20)]
        middles = [channel.infer_later(one("nest_middle", i).grpc()) for i in range(20)]
        leaves = [channel.infer_later(one("coroutine", i).grpc()) for i in range(20)]
        for i in range(20):
            for calls, value in ((tops, 6 * (i + 1) + 110), (middles, 6 * (i + 1) + 10), (leaves, i + 1)):
                (data,) = calls[i].result().raw_output_contents
                assert int.from_bytes(data, "little") == value


@pytest.mark.parametrize("n", [1, 5])
def test_a_cycle_is_an_error(nested: ServerProcess, n: int) -> None:
    """a calls b, which calls a: the only instance of a waits, so nobody could ever answer."""
    with Channel(nested.grpc) as channel:
        calls = [channel.infer_later(one("cycle_a", 1).grpc()) for _ in range(n)]
        for call in calls:
            assert call.code().value[0] not in (0, 4), "a cycle was answered, or hung"
            assert call.details()
        assert channel.infer(one("cycle_a", 0).grpc()).outcome == (0, "")
    assert raw.ask(nested.http, named("forward", "still here").http()).status == 200


def test_a_cycle_from_both_ends(nested: ServerProcess) -> None:
    with Channel(nested.grpc) as channel:
        calls = [channel.infer_later(one(name, 1).grpc()) for _ in range(4) for name in ("cycle_a", "cycle_b")]
        for call in calls:
            assert call.code().value[0] not in (0, 4)
        for name in ("cycle_a", "cycle_b"):
            assert channel.infer(one(name, 0).grpc()).outcome == (0, "")


def test_a_cycle_that_has_instances_ends_by_itself(tmp_path: Path) -> None:
    """With more instances than the chain is deep a call into the same model is no cycle."""
    root = tmp_path / "models"
    python_models.add(root, "cycle_a", replace={"count: 1": "count: 2"})
    python_models.add(root, "forward")
    code = (root / "cycle_a" / "1" / "model.py").read_text()
    # Calls itself once: the value sinks to 0.
    code = code.replace('model_name="cycle_b"', 'model_name="cycle_a"').replace(
        "inputs=[tensor]", 'inputs=[pb_utils.Tensor("IN", tensor.as_numpy() - 1)]'
    )
    (root / "cycle_a" / "1" / "model.py").write_text(code)
    with ServerProcess(root) as process, Channel(process.grpc) as channel:
        assert channel.infer(one("cycle_a", 1).grpc()).outcome == (0, "")
        assert channel.infer(one("cycle_a", 9).grpc()).status != 4
        assert channel.infer(one("cycle_a", 1).grpc()).outcome == (0, "")
