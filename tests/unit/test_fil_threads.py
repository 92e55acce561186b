"""Threads of forests: what a config asks for and OpenMP does not give must not fail every request."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.server import ROOT
from triton_fast.backends.fil.settings import most_threads


def test_as_many_as_openmp_gives() -> None:
    cores = len(os.sched_getaffinity(0))
    for text, expected in (("3", 3), ("1,2", 1), ("", cores), ("no", cores), ("0", cores), ("-1", cores)):
        assert most_threads({"OMP_NUM_THREADS": text}) == expected
    assert most_threads({}) == cores


@pytest.mark.parametrize("variable", [{"OMP_NUM_THREADS": "1"}, {}])
def test_a_config_that_asks_for_more(variable: dict[str, str]) -> None:
    pytest.importorskip("treelite")
    code = """
import tempfile
from pathlib import Path
import numpy as np
from tests.native.test_fil import IRIS, answers, forest
folder = Path(tempfile.mkdtemp())
text = 'parameters { key: "cpu_nthread" value { string_value: "4096" } }'
found, _ = answers(forest(folder, config=text), IRIS[0][:5].astype(np.float32))
print(len(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), **variable}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
