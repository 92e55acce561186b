"""Model repositories in S3, Google Cloud Storage and Azure Blob Storage; see docs/cloud_repositories.md.

The cloud library is imported when the first cloud path is opened, not before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from triton_fast.repository.cloud.cache import Cache
from triton_fast.repository.cloud.credentials import Credentials
from triton_fast.repository.cloud.source import DOWNLOADS, CloudSource, probe
from triton_fast.repository.cloud.store import ObStore
from triton_fast.repository.cloud.urls import CloudUrl, kind_of, location_of, parse, shown
from triton_fast.repository.sources import LocalSource, Source
from triton_fast.repository.workers import Workers

__all__ = ["Cache", "CloudSource", "Credentials", "OpenedSources", "kind_of", "location_of", "shown"]

MOUNTS = {
    "s3": "TRITON_AWS_MOUNT_DIRECTORY", "gs": "TRITON_GCS_MOUNT_DIRECTORY", "as": "TRITON_AZURE_MOUNT_DIRECTORY",
}  # fmt: skip
_BELOW_MOUNT = "triton_fast_repository"


class OpenedSources:
    """The sources of the given paths, local ones and those in the cloud; ``close`` removes what a run leaves behind.

    Parameters
    ----------
    cache_size
        What unused files may make each cache directory grow to; 0 for no limit.
    """

    def __init__(self, paths: Sequence[str], cache_size: int = 0, environ: Mapping[str, str] | None = None) -> None:
        """Raises ServerError when a path can not be used, or its store does not answer."""
        self._env = os.environ if environ is None else environ
        self._cache_size = cache_size
        self._caches: dict[Path, Cache] = {}
        self._downloads = Workers(DOWNLOADS, "download")
        self._credentials = Credentials(self._env)
        try:
            self.sources: list[Source] = [self.open(path) for path in paths]
        except BaseException:
            self.close()
            raise

    def open(self, path: str) -> Source:
        """Return the source of one more path."""
        if not kind_of(path):
            return LocalSource(Path(path))
        url = parse(path)
        source = CloudSource(ObStore(url, self._credentials, self._env), self._cache(url), self._downloads)
        probe(source)
        return source

    def fetch_all(self) -> list[Path]:
        """Download every model of the sources in the cloud; return directories that are as the repositories are.

        Raises Internal when one can not be listed or downloaded.
        """
        return [source.fetch_all() for source in self.sources if isinstance(source, CloudSource)]

    def fetch(self, names: Collection[str]) -> list[Path]:
        """As ``fetch_all``, but of all other models there are only the directories."""
        return [source.fetch_all(names) for source in self.sources if isinstance(source, CloudSource)]

    def close(self) -> None:
        """End downloads and remove the model directories made for this run; what was downloaded stays for the next."""
        self._downloads.close()
        for cache in self._caches.values():
            cache.close()

    def _cache(self, url: CloudUrl) -> Cache:
        root = cache_directory(url.kind, self._env)
        if root not in self._caches:
            self._caches[root] = Cache(root, self._cache_size)
        return self._caches[root]


def cache_directory(kind: str, environ: Mapping[str, str]) -> Path:
    """Return where the files of one provider are kept: what Triton's variable says, or the user's cache directory."""
    if mount := environ.get(MOUNTS[kind]):
        return Path(mount).absolute() / _BELOW_MOUNT
    home = environ.get("XDG_CACHE_HOME") or (str(Path(environ["HOME"]) / ".cache") if environ.get("HOME") else "")
    return Path(home or tempfile.gettempdir()).absolute() / "triton_fast" / "repository"
