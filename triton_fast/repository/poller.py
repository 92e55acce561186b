"""Mode poll: looks at the repositories now and then, and has the server follow what changed there.

A change is followed once it looks the same twice in a row, so that a model that is being copied is left until it is
whole. Source: spec/model_config.md section 1. Knows what changed; loading is the repository manager's.
"""

from __future__ import annotations

import threading
from typing import Any

from triton_fast.errors import ServerError, describe
from triton_fast.observability import log
from triton_fast.repository.changes import Change, Changes
from triton_fast.repository.lifecycle import ModelRepositoryManager

# How soon after a look that found a change the next one follows.
SETTLE_S = 1.0


class Poller:
    """``period_s``: time between two looks; 0 or less never looks by itself."""

    def __init__(self, repository: ModelRepositoryManager[Any], period_s: float, settle_s: float = SETTLE_S) -> None:
        self._repository = repository
        self._period_s = period_s
        self._settle_s = min(period_s, settle_s)
        # Changes of the last look that were not followed yet.
        self._pending: dict[str, Change] = {}
        # One look at a time: the thread's own and those that are asked for.
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> list[str]:
        """Names of the models whose change is not followed before it looks the same once more."""
        return sorted(self._pending)

    def start(self) -> None:
        """Begin to look, on a thread of its own."""
        if self._period_s > 0:
            self._thread = threading.Thread(target=self._run, name="repository-poll", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin no further look. Does not wait for one under way: what it loads is the repository's to end."""
        self._stop.set()

    def poll_once(self) -> Changes:
        """Look, and follow what looked the same in the last look; return what was followed.

        Raises ServerError when the server ends meanwhile.
        """
        with self._turn:
            found = self._repository.look()
            settled = {key: change for key, change in found.items() if self._pending.get(key) == change}
            self._pending = {key: change for key, change in found.items() if key not in settled}
            for key in self._pending:
                log.verbose(1, f"model '{key}' has changed in its repository; waiting until it stays as it is")
            changes = Changes.of(settled)
            if changes:
                for name, reason in self._repository.apply(changes):
                    log.error(f"failed to follow the change of model '{name}': {reason}")
            return changes

    def _run(self) -> None:
        while not self._stop.wait(self._settle_s if self._pending else self._period_s):
            try:
                self.poll_once()
            except ServerError as error:
                log.verbose(1, f"polling the repositories: {error}")
            except Exception as error:
                log.error(f"polling the repositories failed: {describe(error)}")
