"""API keys: the file in its two forms, what a key reaches, expiry, rates, rotation, broken files; a given clock."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triton_fast.cli import keys as command
from triton_fast.cli.values import RESTRICTED
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.frontends import keyfile
from triton_fast.frontends.authorizer import Authorizer, presented
from triton_fast.frontends.keys import CATEGORIES, REACH, KeyRing, Refusal
from triton_fast.observability import log

HASH = f"sha256${'ab' * 16}${'cd' * 32}"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for name in ("info", "warning", "error"):
        monkeypatch.setattr(log, name, lambda text, name=name, **_: lines.append(f"{name}: {text}"))
    return lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def add(path: Path, scopes: str = "infer", **more: object) -> bytes:
    text, key = keyfile.make(keyfile.scopes_of(scopes), **more)  # type: ignore[arg-type]
    keyfile.add(path, key)
    return text.encode()


def code(refusal: Refusal | None) -> tuple[int, int]:
    return (0, 0) if refusal is None else (refusal.http, refusal.grpc)


# ---- the file


def test_both_forms_say_the_same(path: Path) -> None:
    lines = f"# mine\n\n0123456789ab {HASH} infer,metrics name=ci expires=2030-01-02T03:04:05Z rate=2.5\n"
    entry = {"id": "0123456789ab", "hash": HASH, "scopes": ["metrics", "infer"], "name": "ci",
             "expires": "2030-01-02T05:04:05+02:00", "rate": 2.5}  # fmt: skip
    found = keyfile.parse(lines.encode())
    assert found == keyfile.parse(json.dumps({"keys": [entry]}).encode())
    (key,) = found.values()
    assert (key.scopes, key.rate, key.expires) == (("infer", "metrics"), 2.5, 1893553445.0)


@pytest.mark.parametrize("form", ["lines", "json"])
def test_add_and_remove_keep_the_form_and_the_rest(path: Path, form: str) -> None:
    path.write_text("# a word to the next\n" if form == "lines" else '{"keys": []}')
    one, two = add(path, "infer", name="one"), add(path, "admin,metrics", name="two", rate=1.5)
    assert path.read_text().startswith("# a word" if form == "lines" else "{")
    ids = [keyfile.id_of(text) for text in (one, two)]
    assert list(keyfile.load(path)) == ids
    assert keyfile.load(path)[ids[1]].matches(two) and not keyfile.load(path)[ids[1]].matches(one)
    assert keyfile.remove(path, "one").id == ids[0]
    assert list(keyfile.load(path)) == [ids[1]]
    keyfile.remove(path, ids[1])
    assert keyfile.load(path) == {}
    if form == "lines":
        assert path.read_text() == "# a word to the next\n"
    assert os.listdir(path.parent) == ["keys"]


def test_a_file_that_is_made_is_for_its_owner_alone(path: Path) -> None:
    text = add(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert text not in path.read_bytes() and text.split(b"_", 2)[2] not in path.read_bytes()


BROKEN = [
    b"", b"\n \n", b"\xff\xfe", b"0123456789ab", f"0123456789ab {HASH}".encode(), f"xyz {HASH} infer".encode(),
    f"0123456789ab {HASH} root".encode(), f"0123456789ab {HASH} infer infer".encode(),
    f"0123456789ab {HASH} infer rate=-1".encode(), f"0123456789ab {HASH} infer rate=nan".encode(),
    f"0123456789ab {HASH} infer expires=soon".encode(), f"0123456789ab {HASH} infer name=a/b".encode(),
    f"0123456789ab {HASH} infer name=a name=b".encode(), b"0123456789ab sha256$00$00 infer",
    f"0123456789ab {HASH[:-1]} infer".encode(), f"0123456789ab {HASH} infer\n".encode() * 2, b"{", b"{}", b"[]",
    b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": [{}]}', b'{"keys": [], "more": 1}', b"{" * 100_000,
    json.dumps({"keys": [{"id": "0123456789ab", "hash": HASH, "scopes": [["infer"]]}]}).encode(),
    json.dumps({"keys": [{"id": "0123456789ab", "hash": HASH, "scopes": "infer", "rate": True}]}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN)
def test_broken_files(data: bytes) -> None:
    with pytest.raises(InvalidArg):
        keyfile.parse(data)


def test_errors_do_not_repeat_what_stands_there(path: Path) -> None:
    text, _ = keyfile.make(("infer",))
    for data in (f"{text} infer", f"0123456789ab {text} infer", f"0123456789ab {HASH} {text}", f"x{text} y z",
                 json.dumps({"keys": [{"id": text}]}), f'{{"keys": "{text}"'):  # fmt: skip
        with pytest.raises(InvalidArg) as caught:
            keyfile.parse(data.encode())
        assert text[17:] not in str(caught.value)


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"--file={path}"
    assert command.main(["add", file, "--scope=infer,admin", "--name=ci", "--expires=2031-01-01", "--rate=5"]) == 0
    text = capsys.readouterr().out.strip()
    assert keyfile.load(path)[keyfile.id_of(text.encode())].matches(text.encode())
    assert command.main(["list", file]) == 0
    listed = capsys.readouterr().out
    assert "infer,admin" in listed and "2031-01-01T00:00:00Z" in listed and text[17:] not in listed
    for bad in (["--scope=root"], ["--scope=infer", "--name=ci"], ["--scope=infer", "--rate=x"],
                ["--scope=infer", "--name=a b"], ["--scope=infer", "--expires=x"]):  # fmt: skip
        assert command.main(["add", file, *bad]) == 1
    assert command.main(["remove", file, "nobody"]) == 1
    assert command.main(["remove", file, "ci"]) == 0
    assert keyfile.load(path) == {}


# ---- what a key reaches


def test_every_category_is_reached_by_somebody() -> None:
    assert {*RESTRICTED, "metrics"} == CATEGORIES


@pytest.mark.parametrize("scope", keyfile.SCOPES)
def test_scopes(path: Path, scope: str) -> None:
    text = add(path, scope)
    ring = KeyRing(path)
    for category in CATEGORIES:
        assert code(ring.refusal(text, category)) == ((0, 0) if category in REACH[scope] else (403, 7)), category
    assert code(ring.refusal(text, "no such thing")) == (403, 7)


def test_wrong_keys(path: Path) -> None:
    text = add(path)
    ring = KeyRing(path)
    number = text[4:16]
    assert code(ring.refusal(b"", "health")) == (401, 16)
    wrong = [text[:-1], text + b"x", text.upper(), b" " + text, text + b"\0", b"x" * 10_000, b"\xff" * 60, number,
             b"tfk_" + number + b"_" + b"A" * 43, b"tfk_000000000000_" + text[17:], HASH.encode()]  # fmt: skip
    for other in wrong:
        for _ in range(2):  # what was refused is not remembered as good
            assert code(ring.refusal(other, "inference")) == (401, 16), other
    assert ring.refusal(text, "inference") is None


def test_how_a_key_is_presented() -> None:
    assert presented({}) == b""
    for kind in ("Bearer", "bearer", "BEARER"):
        assert presented({"authorization": f"{kind} a.b"}) == presented({"authorization": f"{kind}   a.b"}) == b"a.b"
    assert presented({"authorization": "Basic a.b"}) == presented({"authorization": "Bearer"}) == b""
    assert presented({"authorization": "Bearer x", "x-api-key": "y"}) == b"y"
    assert presented({"x-api-key": "\u20ac"}) == "\u20ac".encode()


def test_with_a_restricted_header_both_must_pass(path: Path) -> None:
    text = add(path, "infer").decode()
    guard = Authorizer({"health": ("X-Group", "g")}, KeyRing(path))
    assert isinstance(guard.missing("health", {"x-group": "g"}), Refusal)
    assert guard.missing("health", {"x-api-key": text}) == "X-Group"
    assert not isinstance(guard.missing("health", {"x-api-key": text}), Refusal)
    assert guard.missing("health", {"x-api-key": text, "x-group": "g"}) == ""
    assert guard.missing("metadata", {"authorization": f"Bearer {text}"}) == ""


def test_exempt_categories(path: Path) -> None:
    add(path)
    guard = Authorizer(keys=KeyRing(path, ("health",)))
    assert guard.missing("health", {}) == ""
    assert guard.missing("metadata", {}) != ""


# ---- time


def test_expiry(path: Path) -> None:
    clock = Clock()
    text = add(path, "infer", expires=clock.now + 10)
    ring = KeyRing(path, clock=clock)
    assert ring.refusal(text, "inference") is None
    clock.now += 9
    ring.expire()
    assert ring.gate.scopes(text) is not None
    clock.now += 1
    ring.expire()
    assert code(ring.refusal(text, "inference")) == (401, 16)
    clock.now -= 5  # a clock set back
    ring.expire()
    assert ring.refusal(text, "inference") is None


def test_rates(path: Path) -> None:
    fast, slow, free = add(path, rate=3.0), add(path, rate=0.5), add(path)
    ring = KeyRing(path)
    ring.gate.now = 10**12

    def taken(text: bytes, tries: int) -> int:
        return sum(ring.refusal(text, "inference") is None for _ in range(tries))

    assert (taken(fast, 10), taken(slow, 10), taken(free, 10)) == (3, 1, 10)
    assert code(ring.refusal(fast, "inference")) == (429, 8)
    assert ring.refusal(fast, "inference", counts=False) is None
    ring.gate.now += 334_000_000
    assert (taken(fast, 10), taken(slow, 10)) == (1, 0)
    ring.gate.now += 10**9
    assert (taken(fast, 10), taken(slow, 10)) == (3, 0)
    ring.gate.now += 10**9
    assert (taken(fast, 10), taken(slow, 10)) == (3, 1)


# ---- the watched file


@pytest.fixture
def ring(path: Path, logged: list[str]) -> Iterator[tuple[KeyRing, bytes]]:
    text = add(path)
    yield KeyRing(path), text


def turn(ring: KeyRing) -> bool:
    """What the watch does once; whether the file was read."""
    keys = ring.read()
    if keys is not None:
        ring.adopt(keys)
    return keys is not None


def test_rotation(ring: tuple[KeyRing, bytes], path: Path) -> None:
    keys, old = ring
    assert keys.refusal(old, "inference") is None
    assert not turn(keys)
    before = keys.gate.generation
    new = add(path)
    assert code(keys.refusal(new, "inference")) == (401, 16)
    assert turn(keys) and keys.gate.generation > before
    assert keys.refusal(new, "inference") is None and keys.refusal(old, "inference") is None
    keyfile.remove(path, keyfile.id_of(old))
    assert turn(keys)
    assert code(keys.refusal(old, "inference")) == (401, 16)
    assert keys.refusal(new, "inference") is None


@pytest.mark.parametrize("damage", ["empty", "garbage", "gone", "directory", "half"])
def test_a_broken_file_keeps_the_keys(ring: tuple[KeyRing, bytes], path: Path, damage: str, logged: list[str]) -> None:
    keys, text = ring
    good = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"empty": b"", "garbage": b"\0\xff", "half": good[:-20]}[damage])
    for _ in range(3):
        assert not turn(keys)
        assert keys.refusal(text, "inference") is None
    errors = [line for line in logged if line.startswith("error")]
    assert len(errors) == 1 and "the keys before it stay" in errors[0]
    if damage == "directory":
        path.rmdir()
    path.write_bytes(good)
    assert turn(keys)
    assert not turn(keys)


def test_others_may_read_it(path: Path, logged: list[str]) -> None:
    add(path)
    KeyRing(path)
    assert logged == []
    path.chmod(0o644)
    keys = KeyRing(path)
    turn(keys)
    assert [line for line in logged if "chmod 600" in line] == logged and len(logged) == 1


@pytest.mark.parametrize("data", [None, b"", b"x"])
def test_no_start_without_keys(path: Path, data: bytes | None) -> None:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ServerError, match="the file of API keys"):
        KeyRing(path)


def test_the_watch_follows(ring: tuple[KeyRing, bytes], path: Path) -> None:
    keys, old = ring

    async def follow() -> None:
        adopted = asyncio.Event()
        take = keys.adopt
        keys.adopt = lambda fresh: (take(fresh), adopted.set())[0]  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as work:
            task = asyncio.get_running_loop().create_task(keys.watch(work, 0.001))
            new = add(path)
            await asyncio.wait_for(adopted.wait(), 30)
            task.cancel()
            assert keys.refusal(new, "inference") is None
            assert keys.refusal(old, "inference") is None

    asyncio.run(follow())
