"""The interpreter of a model's workers and the variables they start with: EXECUTION_ENV_PATH in all its forms.

A directory (venv or conda), a conda-pack archive, a requirements.txt. What is made of the last two is kept in the
cache (cache.py) and shared by all models. No path ever becomes part of a shell's text. Source: spec section 1.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_fast.backends.paths import DIRECTORY_VARIABLE
from triton_fast.backends.python.archive import extract
from triton_fast.backends.python.cache import EnvironmentCache
from triton_fast.errors import Internal
from triton_fast.observability import log

# Seconds for what runs once: pip may have to download and compile, an activation script only sets variables.
INSTALL_TIMEOUT_S = 3600.0
ACTIVATE_TIMEOUT_S = 60.0
MAX_OUTPUT = 1 << 20
# A fixed text: the script's path is an argument of it.
_ACTIVATE = '. "$1" >/dev/null 2>&1 && exec env -0'
# Changed by every shell, or belonging to the shell that ran the script.
_SHELL_OWN = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "PS1", "BASH_FUNC_which%%"})
# What a variable of the server's own interpreter would do to another one.
_FOREIGN = ("PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class Environment:
    """``own``: the interpreter is the server's, so that the compiled client may be used."""

    interpreter: str
    variables: Mapping[str, str]
    own: bool = False


def default(base: Mapping[str, str] = os.environ) -> Environment:
    """Return the server's own interpreter, with the variables ``base``."""
    return Environment(sys.executable, dict(base), own=True)


def prepare(
    given: str, model_dir: Path, cache: EnvironmentCache, stop: threading.Event | None = None,
    base: Mapping[str, str] = os.environ,
) -> Environment:  # fmt: skip
    """Return what EXECUTION_ENV_PATH stands for, made ready. Blocks while it is being made, by whomever.

    ``base``: the variables that the environment's own are laid over.

    Raises
    ------
    Internal
        With Triton's texts where it has one; of pip, the end of what it said.
    """
    if not given:
        return default(base)
    path = given.replace(DIRECTORY_VARIABLE, str(model_dir))
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError):
        raise Internal(f"Failed to get the canonical path for {path}.") from None
    if real.is_dir():
        return _of_directory(real, base)
    if real.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _of_directory(_of_archive(real, cache), base)
    if real.suffix == ".txt":
        return _of_directory(_of_requirements(real, cache, stop), base)
    raise Internal(
        f"EXECUTION_ENV_PATH {path} is neither a directory, a conda-pack archive (.tar.gz) nor a requirements.txt"
    )


# ---- a directory


def _of_directory(root: Path, base: Mapping[str, str]) -> Environment:
    script = root / "bin" / "activate"
    if not script.exists():
        raise Internal(
            f"Path {script} does not exist. The Python environment should contain an 'activate' script."
        )
    interpreter = root / "bin" / "python"
    if not os.access(interpreter, os.X_OK):
        raise Internal(f"Path {interpreter} does not exist or can not be executed.")
    variables = activate(script, base)
    for name in _FOREIGN:
        variables.pop(name, None)
    libraries = variables.get("LD_LIBRARY_PATH", "")
    variables["LD_LIBRARY_PATH"] = f"{root / 'lib'}:{libraries}" if libraries else str(root / "lib")
    return Environment(str(interpreter), variables)


def activate(script: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Return ``base`` with what the script exports, found by running it in a clean shell. Raises Internal."""
    clean = {name: base[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in base}
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    options = ["--noprofile", "--norc"] if shell.endswith("bash") else []
    try:
        done = subprocess.run(
            [shell, *options, "-c", _ACTIVATE, "activate", str(script)],
            env=clean, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=ACTIVATE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Internal(f"Failed to run {script}: {type(error).__name__}") from None
    if done.returncode != 0:
        raise Internal(f"Failed to run {script}: exit code {done.returncode}")
    exported = {}
    for entry in done.stdout[:MAX_OUTPUT].split(b"\0"):
        name, equals, value = os.fsdecode(entry).partition("=")
        if equals and name and name not in _SHELL_OWN and clean.get(name) != value:
            exported[name] = value
    return {**base, **exported}


# ---- an archive


def _of_archive(path: Path, cache: EnvironmentCache) -> Path:
    """Return the directory with the archive's content; one that changes is extracted anew, for the hash is another."""

    def make(target: Path) -> None:
        log.info(f"extracting Python execution env {path}")
        extract(path, target)
        # Paths inside are those of the place it was packed at, until this has run.
        unpack, interpreter = target / "bin" / "conda-unpack", target / "bin" / "python"
        if unpack.is_file() and os.access(interpreter, os.X_OK):
            _command([str(interpreter), str(unpack)], f"conda-unpack of {path.name}", timeout=INSTALL_TIMEOUT_S)

    return cache.get("archive", cache.hash_of(path), make)


# ---- requirements.txt


def _of_requirements(path: Path, cache: EnvironmentCache, stop: threading.Event | None) -> Path:
    key = hashlib.sha256()
    key.update(cache.hash_of(path).encode())
    key.update(f"\0{sys.version}\0{sys.executable}".encode())

    def make(target: Path) -> None:
        log.info(f"installing {path} into a new environment")
        _command([sys.executable, "-m", "venv", str(target)], "python -m venv", timeout=INSTALL_TIMEOUT_S)
        pip = [str(target / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"]
        # Relative names in the file are those of its own directory.
        _command([*pip, "-q", "-r", str(path)], f"pip install -r {path.name}", timeout=INSTALL_TIMEOUT_S,
                 folder=path.parent)  # fmt: skip

    return cache.get("requirements", key.hexdigest(), make, in_place=True, stop=stop)


def _command(argv: list[str], what: str, *, timeout: float, folder: Path | None = None) -> None:
    """Run a command that makes an environment. Raises Internal with the end of what it printed."""
    variables = {name: value for name, value in os.environ.items() if name not in _FOREIGN and name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            argv, env=variables, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Internal(f"{what} did not end within {timeout:.0f} seconds") from None
    except OSError as error:
        raise Internal(f"{what} can not be run: {error.strerror}") from None
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip()
        raise Internal(f"{what} failed with exit code {done.returncode}: {shortened(said)}")


def shortened(said: str, limit: int = 2000) -> str:
    """Return the end of a command's output, where the cause is."""
    return said if len(said) <= limit else f"... {said[-limit:]}"
