"""The Python backend, server's side: unmodified Triton ``model.py`` files in supervised worker processes.

The wire to a worker is described in docs/python_worker.md; the native half of it is ``_native/pyworker``.
"""

from __future__ import annotations

from triton_fast.backends.python.backend import PythonBackend

__all__ = ["PythonBackend"]
