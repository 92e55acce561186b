"""One server for the whole suite: explicit control, everything loaded. Tests that change models use "control" only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import models
from tests.helpers.server import ServerProcess

pytest.register_assert_rewrite(
    "tests.conformance.client_verbs", "tests.conformance.client_infer", "tests.conformance.client_tensors"
)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = models.write(tmp_path_factory.mktemp("conformance") / "models")
    with ServerProcess(
        root, "--model-control-mode=explicit", "--load-model=*", "--http-max-input-size=4194304"
    ) as process:
        yield process
