"""Every test of the worker runs with its transport in pure Python and with the compiled client.

Fixtures that keep a worker for a module ask for ``transport``: else the worker would outlive it.
"""

from __future__ import annotations

import pytest

from tests.helpers import worker_peer
from triton_fast._native.pyworker import client


@pytest.fixture(scope="module", params=["pure", "compiled"], autouse=True)
def transport(request):
    worker_peer.client = client.__file__ if request.param == "compiled" else ""
    yield request.param
    worker_peer.client = ""
