"""A repository in the cloud: models by listings, fingerprints from ETags, directories out of the cache.

Nothing here guesses: a listing that does not come whole raises, and a model that changes while it is downloaded is
downloaded again. Source: spec/capi.md section 8, spec/users.md 22. Knows no provider.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from triton_fast.errors import Internal, NotFound
from triton_fast.observability import log
from triton_fast.repository.cloud.cache import Cache, key_of, told
from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.layout import FOLDER, Layout, fingerprint_of, is_name, lay_out
from triton_fast.repository.cloud.store import Object, Store
from triton_fast.repository.fingerprint import Fingerprint
from triton_fast.repository.sources import Choose, MaterializedDir, check_name, shown
from triton_fast.repository.workers import Workers

DOWNLOADS = 8
_CHANGE_TRIES = 3
# From this many fingerprints after one listing on, all models are listed at once: somebody compares them all.
_SWEEP_FROM = 4
_SWEEP_AGE_S = 10.0


class CloudSource:
    """One ``--model-repository`` in a store.

    Parameters
    ----------
    downloads
        Shared by the sources of a server: so many objects are downloaded at a time.
    clock
        Seconds.
    """

    def __init__(
        self, store: Store, cache: Cache, downloads: Workers, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._cache = cache
        self._downloads = downloads
        self._clock = clock
        self._prefix = store.url.prefix
        self._lock = threading.Lock()
        self._asked = 0
        self._swept: dict[str, list[Object]] = {}
        self._swept_at = 0.0

    @property
    def location(self) -> str:
        return self._store.url.location

    def list_models(self) -> list[str]:
        """Return the model names, sorted. Raises Internal when they can not be listed whole."""
        names, objects = self._store.children(self._prefix)
        with self._lock:
            self._asked = 0
            self._swept = {}
        marked = [_name(item.key).removesuffix(FOLDER) for item in objects if _is_marker(item)]
        return sorted(name for name in {*names, *marked} if name and not name.startswith("."))

    def list_others(self) -> list[str]:
        """Return the names of objects that lie beside the models."""
        objects = self._store.children(self._prefix)[1]
        return sorted(
            name for item in objects if not _is_marker(item) and not (name := _name(item.key)).startswith(".")
        )

    def fingerprint(self, name: str) -> Fingerprint:
        """Return how the model looks now. Raises NotFound, or Internal when it can not be told whole."""
        return fingerprint_of(self._layout(name, self._swept_objects(name)))

    def materialize(self, name: str, choose: Choose | None = None) -> MaterializedDir:
        """Return the model's directory on the local disk, downloading what is not there yet.

        ``choose`` tells of which versions, from what lies outside them.

        Raises
        ------
        NotFound
            No such model.
        Internal
            It can not be downloaded, its keys can not be paths, or it changes all the time.
        """
        for attempt in range(_CHANGE_TRIES):
            layout = self._layout(name)
            tree = self._cache.new_tree()
            try:
                self._build(layout, tree / name, choose)
            except BaseException as error:
                self._cache.drop_tree(tree)
                if not isinstance(error, StoreError) or error.kind is not Kind.CHANGED:
                    raise
                log.warning(f"model '{name}' changed while it was downloaded, try {attempt + 1} of {_CHANGE_TRIES}")
                continue
            return MaterializedDir(tree / name, partial(self._release, tree))
        raise Internal(
            f"model '{name}' changed in '{self.location}' each time it was downloaded ({_CHANGE_TRIES} times): "
            "load it when its upload has finished"
        )

    def fetch_all(self, only: Collection[str] | None = None) -> Path:
        """Return a directory with all models, which stays until the cache is closed.

        With ``only``, other models than these have an empty directory.
        """
        root = self._cache.new_tree()
        for name in self.list_models():
            check_name(name)
            if only is None or name in only:
                self._build(self._layout(name), root / name)
            elif is_name(name):
                (root / name).mkdir(mode=0o700)
        for name in self.list_others():
            if is_name(name):
                (root / name).touch(mode=0o600, exist_ok=False)
        return root

    # ---- listing one model

    def _layout(self, name: str, objects: list[Object] | None = None) -> Layout:
        check_name(name)
        if not is_name(name):
            raise NotFound(f"model '{shown(name)}' is not in the repository")
        prefix = f"{self._prefix}{name}/"
        try:
            if objects is None:
                objects = self._store.walk(prefix)
            layout = lay_out(objects, prefix)
            for parent in {path.rpartition("/")[0] for path in layout.unclear}:
                self._settle(layout, prefix, parent)
        except StoreError as error:
            if error.kind is Kind.KEY:
                raise StoreError(f"model '{name}' in '{self.location}': {error}", Kind.KEY) from None
            raise
        if not layout.files and not layout.folders and name not in self.list_models():
            raise NotFound(f"model '{shown(name)}' is not in the repository")
        return layout

    def _settle(self, layout: Layout, prefix: str, parent: str) -> None:
        """Ask whether the empty objects right below ``parent`` are files or markers of directories."""
        below = f"{parent}/" if parent else ""
        folders = set(self._store.children(prefix + below)[0])
        for path in [path for path in layout.unclear if path.rpartition("/")[0] == parent]:
            layout.settle(path, is_folder=path[len(below) :] in folders)

    def _swept_objects(self, name: str) -> list[Object] | None:
        """Return the model's objects as one listing of the whole repository had them; None if it has to be listed.

        A listing of all serves each name once, and not the next listing of models.
        """
        with self._lock:
            if self._clock() - self._swept_at > _SWEEP_AGE_S:
                self._swept = {}
            if name in self._swept:
                return self._swept.pop(name)
            self._asked += 1
            if self._asked != _SWEEP_FROM:
                return None
        began = self._clock()
        try:
            found = self._store.walk(self._prefix)
        except Internal:
            # A key that can not be a path spoils this listing; it shall spoil its own model only.
            return None
        models: dict[str, list[Object]] = {}
        for item in found:
            models.setdefault(item.key[len(self._prefix) :].partition("/")[0], []).append(item)
        with self._lock:
            self._swept, self._swept_at = models, began
            return self._swept.pop(name, None)

    # ---- downloading

    def _build(self, layout: Layout, target: Path, choose: Choose | None = None) -> None:
        """Make the model's directory. Nothing exists below ``target`` that was not made here."""
        with told():
            self._build_in(layout, target, choose)

    def _build_in(self, layout: Layout, target: Path, choose: Choose | None) -> None:
        target.mkdir(mode=0o700)
        versions = layout.versions if choose is not None else frozenset()
        for folder in sorted(folder for folder in layout.folders if _top(folder) not in versions or folder in versions):
            (target / folder).mkdir(mode=0o700)
        common = {path: item for path, item in layout.files.items() if _top(path) not in versions}
        self._fetch(common, target)
        if choose is None:
            return
        chosen = choose(target)
        wanted = versions if chosen is None else versions.intersection(chosen)
        for version in versions - wanted:
            (target / version).rmdir()
        for folder in sorted(folder for folder in layout.folders - versions if _top(folder) in wanted):
            (target / folder).mkdir(mode=0o700)
        self._fetch({path: item for path, item in layout.files.items() if _top(path) in wanted}, target)

    def _fetch(self, files: Mapping[str, Object], target: Path) -> None:
        keys = {path: self._key(item) for path, item in files.items()}
        missing = {
            keys[path]: item.size
            for path, item in files.items()
            if not self._cache.has(keys[path], item.size, item.modified_ns)
        }
        if missing:
            size = sum(missing.values())
            log.info(f"downloading {len(missing)} files, {size} bytes, of model '{target.name}' from '{self.location}'")
            self._cache.trim(size)
        jobs = [
            self._downloads.submit(
                partial(
                    self._cache.fetch, keys[path], item.size, item.modified_ns, partial(self._store.read, item),
                    target / path, resume=bool(item.etag),
                )
            )
            for path, item in files.items()
        ]  # fmt: skip
        # All of them end before the tree may go.
        errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            # What changed is tried again, unless something else is wrong too.
            raise min(errors, key=lambda error: isinstance(error, StoreError) and error.kind is Kind.CHANGED)

    def _key(self, item: Object) -> str:
        url = self._store.url
        what = item.etag or f"at {item.modified_ns}"
        return key_of(url.kind, url.endpoint, url.account, url.bucket, item.key, what, str(item.size))

    def _release(self, tree: Path) -> None:
        self._cache.drop_tree(tree)
        self._cache.trim()


def probe(source: CloudSource) -> None:
    """See whether the repository can be listed. Raises Internal with what to do; an empty one is only warned of."""
    if not source.list_models():
        log.warning(f"model repository '{source.location}' is empty: nothing lies below it")


def _top(path: str) -> str:
    return path.partition("/")[0]


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _is_marker(item: Object) -> bool:
    return item.size == 0 and item.key.endswith(FOLDER)
