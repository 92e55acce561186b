"""EXECUTION_ENV_PATH: directories, archives, requirements; the cache makes each once. And the backend's settings."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from triton_fast import config as cfg
from triton_fast.backends.host import Host
from triton_fast.backends.python import environment, settings
from triton_fast.backends.python.cache import EnvironmentCache
from triton_fast.config import parse
from triton_fast.errors import Internal, InvalidArg, Unavailable, Unsupported

WAIT_S = 60.0


def make_env(root: Path) -> Path:
    """Write what passes for an environment: its python is this one."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "activate").write_text(f"export CONDA_PREFIX='{root}'\n")
    os.symlink(sys.executable, root / "bin" / "python")
    return root


@pytest.fixture
def cache(tmp_path):
    return EnvironmentCache(tmp_path / "cache")


def test_none_is_the_servers_own(cache, tmp_path):
    found = environment.prepare("", tmp_path, cache)
    assert (found.interpreter, found.own) == (sys.executable, True)
    assert not (tmp_path / "cache").exists()


def test_variables_are_those_the_server_was_started_with(cache, tmp_path, monkeypatch):
    """What a framework sets in the server later would make workers, and their template, others."""
    host = Host()
    monkeypatch.setenv("SET_IN_THE_SERVER", "1")
    make_env(tmp_path / "env")
    for path in ("", "$$TRITON_MODEL_DIRECTORY/env"):
        found = environment.prepare(path, tmp_path, cache, base=host.variables)
        assert "SET_IN_THE_SERVER" not in found.variables
        assert host.variables.items() - found.variables.items() <= {
            (name, host.variables.get(name)) for name in ("LD_LIBRARY_PATH", "CONDA_PREFIX", "PYTHONHOME")
        }
    assert environment.prepare("", tmp_path, cache, base=host.variables) == environment.default(host.variables)


def test_a_directory_and_what_is_missing_in_it(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    root = make_env(tmp_path / "env")
    found = environment.prepare("$$TRITON_MODEL_DIRECTORY/env", tmp_path, cache)
    assert found.variables["CONDA_PREFIX"] == str(root)
    assert "PYTHONHOME" not in found.variables
    (root / "bin" / "python").unlink()
    with pytest.raises(Internal, match="bin/python does not exist or can not be executed"):
        environment.prepare(str(root), tmp_path, cache)
    (root / "bin" / "activate").write_text("exit 3\n")
    (root / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(Internal, match="exit code 3"):
        environment.prepare(str(root), tmp_path, cache)
    (root / "bin" / "activate").unlink()
    with pytest.raises(Internal) as caught:
        environment.prepare(str(root), tmp_path, cache)
    assert str(caught.value) == (
        f"Path {root}/bin/activate does not exist. The Python environment should contain an 'activate' script."
    )


@pytest.mark.parametrize("path", ["/nonexistent/env", "$$TRITON_MODEL_DIRECTORY/x.tar.gz", "relative/x", "a\0b"])
def test_a_path_that_is_not_there(cache, tmp_path, path):
    shown = path.replace("$$TRITON_MODEL_DIRECTORY", str(tmp_path))
    with pytest.raises(Internal) as caught:
        environment.prepare(path, tmp_path, cache)
    assert str(caught.value) == f"Failed to get the canonical path for {shown}."


def test_an_archive_is_extracted_once_and_again_when_it_changes(cache, tmp_path):
    root = make_env(tmp_path / "env")
    path = tmp_path / "env.tar.gz"

    def pack(note):
        (root / "note").write_text(note)
        (root / "bin" / "python").unlink()
        (root / "bin" / "python").write_text("#!/bin/sh\n")
        (root / "bin" / "python").chmod(0o755)
        with tarfile.open(path, "w:gz") as tar:
            tar.add(root, arcname=".")

    pack("one")
    first = environment.prepare(str(path), tmp_path, cache)
    other = environment.prepare(str(path), tmp_path, EnvironmentCache(tmp_path / "cache"))
    assert other.interpreter == first.interpreter
    place = Path(first.interpreter).parents[1]
    assert (place / "note").read_text() == "one"
    assert place.name == f"archive-{hashlib.sha256(path.read_bytes()).hexdigest()}"
    pack("other")
    second = environment.prepare(str(path), tmp_path, cache)
    assert (Path(second.interpreter).parents[1] / "note").read_text() == "other"
    assert (place / "note").read_text() == "one"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_requirements_are_installed_once(cache, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "setup.py").write_text("from setuptools import setup\nsetup(name='tfown', py_modules=['tfown'])\n")
    (package / "tfown.py").write_text("VALUE = 5\n")
    path = tmp_path / "requirements.txt"
    path.write_text("# nothing from anywhere\n")
    found = environment.prepare(str(path), tmp_path, cache)
    assert os.access(found.interpreter, os.X_OK)
    assert not found.own
    assert found.variables["VIRTUAL_ENV"] == str(Path(found.interpreter).parents[1])
    assert environment.prepare(str(path), tmp_path, cache) == found


def test_what_pip_says_is_in_the_error_and_nothing_is_left(cache, tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("./there-is-no-such-directory\n")
    with pytest.raises(Internal, match=r"(?s)pip install -r requirements\.txt failed with exit code 1.*such-directory"):
        environment.prepare(str(path), tmp_path, cache)
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if not entry.name.endswith(".lock")] == []
    assert len(environment.shortened("x" * 5000)) == 2004


def test_other_files_are_refused(cache, tmp_path):
    (tmp_path / "env.zip").touch()
    with pytest.raises(Internal, match="neither a directory, a conda-pack archive"):
        environment.prepare(str(tmp_path / "env.zip"), tmp_path, cache)


def test_concurrent_callers_make_it_once(cache, tmp_path):
    begun, go = threading.Event(), threading.Event()
    made = []

    def make(target):
        begun.set()
        assert go.wait(WAIT_S)
        target.mkdir()
        made.append(target)

    results = []
    threads = [threading.Thread(target=lambda: results.append(cache.get("k", "1", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(WAIT_S)
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(made) == 1
    assert set(results) == {tmp_path / "cache" / "k-1"}


def test_a_waiter_may_be_told_to_stop(cache, tmp_path):
    stop = threading.Event()
    stop.set()

    def make(target):
        with pytest.raises(Unavailable):
            EnvironmentCache(tmp_path / "cache").get("k", "1", make, stop=stop)
        target.mkdir()

    cache.get("k", "1", make)


def test_a_half_made_one_is_made_again(cache, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "k-1").mkdir()

    def make(target):
        target.mkdir()
        (target / "x").touch()

    assert (cache.get("k", "1", make, in_place=True) / "x").exists()
    with pytest.raises(ZeroDivisionError):
        cache.get("k", "2", lambda target: target.mkdir() or 1 / 0, in_place=True)
    assert not (tmp_path / "cache" / "k-2").exists()


def test_a_cache_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(Internal, match="only its owner may use"):
        EnvironmentCache(tmp_path / "cache").get("k", "1", Path.mkdir)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(Internal):
        EnvironmentCache(tmp_path / "link").get("k", "1", Path.mkdir)


# ---- settings


def test_defaults():
    found = settings.read({}, usable=8 << 30)
    assert found == settings.Settings(region_bytes=8 << 30)
    assert found.native_client is True
    assert settings.read({"native-client": "no"}, usable=0).native_client is False
    assert settings.read({"worker-template": "no"}, usable=0).template is False
    assert settings.read({}, usable=0).template is True
    assert settings.read({}, usable=0).region_bytes == 64 << 20
    assert settings.read({}, usable=1 << 50).region_bytes == 64 << 30


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shm-default-byte-size", "1048575", "shm-default-byte-size can't be smaller than 4 MiBs"),
        ("shm-growth-byte-size", "0", "shm-growth-byte-size can't be smaller than or equal to zero."),
        ("shm-growth-byte-size", "-5", "shm-growth-byte-size can't be smaller than or equal to zero."),
        ("stub-timeout-seconds", "0", "stub-timeout-seconds can't be smaller than or equal to zero."),
        ("shm-region-prefix-name", "", "shm-region-prefix-name must at least contain one character."),
        ("thread-pool-size", "0", "thread-pool-size can't be less than 1."),
        ("thread-pool-size", "x", "thread-pool-size must be a whole number, got 'x'"),
        ("shm-max-byte-size", "1000", "shm-max-byte-size can't be smaller than 67108864"),
        ("shm_message_queue_size", "9" * 30, f"shm_message_queue_size must be a whole number, got '{'9' * 30}'"),
        ("execution-timeout-seconds", "nan", "execution-timeout-seconds must be 0 or a number of seconds, got 'nan'"),
        ("native-client", "maybe", "native-client must be 'yes' or 'no', got 'maybe'"),
        ("worker-template", "on", "worker-template must be 'yes' or 'no', got 'on'"),
        ("execution-timeout-seconds", "-1", "execution-timeout-seconds must be 0 or a number of seconds, got '-1'"),
        ("shm-wait-seconds", "soon", "shm-wait-seconds must be 0 or a number of seconds, got 'soon'"),
    ],
)
def test_values_that_can_not_be(key, value, message):
    with pytest.raises(InvalidArg) as caught:
        settings.read({key: value}, usable=1 << 30)
    assert str(caught.value) == message


def config(text):
    parsed = parse.parse_text(f'name: "m" backend: "python" {text}'.encode(), "f")
    cfg.normalize(parsed.config, cpu_count=1)
    return parsed.config


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def test_parameters_of_models():
    assert settings.parameters(config("")) == settings.Parameters()
    text = parameter("EXECUTION_MODE", "in_process") + parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no")
    assert settings.parameters(config(text)) == settings.Parameters("", False, True)
    with pytest.raises(Unsupported, match=r"^Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: maybe'$"):
        settings.parameters(config(parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "maybe")))
    with pytest.raises(InvalidArg, match="'EXECUTION_MODE' must be 'process' or 'in_process', got 'thread'"):
        settings.parameters(config(parameter("EXECUTION_MODE", "thread")))
