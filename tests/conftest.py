"""What holds for every test: Python's collector looks only at what came since the test's file was reached.

Many tests collect before and after, to count what is left. Over all that the collected tests and the frameworks keep
alive this takes most of a second each time, and with thousands of tests most of the run.
"""

from __future__ import annotations

import gc

import pytest

_FILE = pytest.StashKey[object]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    stash = item.session.stash
    if stash.get(_FILE, None) != item.path:
        stash[_FILE] = item.path
        gc.collect()
        gc.freeze()
