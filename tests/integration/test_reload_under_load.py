"""Reloads while clients ask all the time: nothing fails, and every answer is of a version that may answer then."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from tests.helpers import raw
from tests.helpers.reload import STEP, Clients, Control, Site, reloads
from tests.helpers.server import Model, ServerProcess, repository, until
from tests.integration.onnx_files import index

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
RATE = 500
RELOADS = 50


def test_no_request_fails_and_every_answer_is_right(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with ServerProcess(tmp_path, *EXPLICIT) as process, Control(process.http) as control:
        clients = Clients(site, process.http, process.grpc, RATE)
        done: Counter[tuple[str, int]] = Counter()
        with clients.running():
            clients.wait(10)
            for kind, status in reloads(site, control, RELOADS):
                done[kind, status] += 1
                # Every client has asked since.
                clients.wait(2)
                assert clients.wrong == []
        assert clients.wrong == []
        assert done == {
            ("file", 200): 20, ("override", 200): 10, ("python", 200): 10, ("ensemble", 200): 10, ("broken", 400): 5,
        }  # fmt: skip
        # Each reload was seen to answer, and what was served before it too.
        assert clients.seen["http", "m"].values == {float(n) for n in range(1, site.m.loaded + 1)}
        assert clients.seen["grpc", "p"].values == {float(n * STEP) for n in range(1, site.p.loaded + 1)}
        assert len(clients.seen["http", "e"].values) >= site.m.loaded
        # What is replaced ends.
        assert until(lambda: {row["state"] for row in index(process.http).values()} == {"READY"})
        counted = sum(seen.answers for seen in clients.seen.values())
        assert counted >= 6 * (10 + 2 * (RELOADS + 5))


def test_a_repository_that_is_polled_under_load(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with ServerProcess(tmp_path, "--model-control-mode=poll", "--repository-poll-secs=1") as process:
        clients = Clients(site, process.http, process.grpc, RATE)
        with clients.running():
            clients.wait(10)
            for number in (2, 3):
                site.m.begun = site.p.begun = number
                site.write_m((tmp_path / "m" / "1" / "model.onnx").read_bytes())
                repository(tmp_path, Model(f"added{number}"))
                site.write_p(number)
                wanted = float(number * STEP)
                assert until(lambda: wanted in clients.seen["http", "p"].values)  # noqa: B023
                process.wait_for_log(f"successfully loaded 'added{number}'")
                site.p.loaded = number
                clients.wait(2)
        assert clients.wrong == []
        assert raw.ask(process.http, raw.get("/v2/models/added3/ready")).status == 200
        answer = raw.ask(process.http, raw.post("/v2/repository/models/m/load"))
        assert (answer.status, answer.error) == (
            503, "explicit model load / unload is not allowed if polling is enabled",
        )  # fmt: skip


def test_models_load_side_by_side_and_dependents_end_with_what_needs_them(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with ServerProcess(tmp_path, "--model-control-mode=explicit") as process:
        statuses: list[int] = []

        def load() -> None:
            with Control(process.http) as control:
                statuses.append(control.load("e"))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 4
        clients = Clients(site, process.http, process.grpc, RATE)
        with clients.running():
            clients.wait(5)
        assert clients.wrong == []
        # One load for all of them.
        assert process.log().count("successfully loaded 'p'") == 1
        path, body = "/v2/repository/models/e/unload", {"parameters": {"unload_dependents": True}}
        with Control(process.http) as control:
            assert control.ask("POST", path, body)[0] == 200
        assert until(lambda: {row["state"] for row in index(process.http).values()} == {"UNAVAILABLE"})
