"""make examples: train each example's models, serve them, run its client; the names of some as arguments narrow.

Run from the repository root as ``python -m scripts.examples``. Exit code 0 only when every client was content and every
server ended with code 0 on SIGTERM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from scripts.server_process import ROOT, ServerProcess


class Example(NamedTuple):
    """``train``: a script and its arguments; ``file``: what it makes."""

    train: tuple[str, ...]
    file: str


DIGITS = "examples/image_pipeline/models/digits/1/model.onnx"
EXAMPLES = {
    "embeddings": Example(("examples/embeddings/train.py",), "examples/embeddings/models/encoder/1/model.onnx"),
    "trees": Example(("examples/trees/train.py",), "examples/trees/models/wine/1/checkpoint.tl"),
    "image_pipeline": Example(("examples/digits/train.py", DIGITS), DIGITS),
    "backend_template": Example(
        ("examples/backend_template/train.py",), "examples/backend_template/models/tumours/1/model.npz"
    ),
}


def run(name: str, example: Example, scratch: Path) -> bool:
    print(f"\n== examples/{name}", flush=True)
    if not (ROOT / example.file).exists():
        subprocess.run([sys.executable, *example.train], cwd=ROOT, check=True)
    flags = []
    if name == "backend_template":
        # As if it were installed: the same file, from a backend directory.
        (scratch / "linear").mkdir()
        source = ROOT / "examples" / name / "triton_fast_linear.py"
        (scratch / "linear" / "backend.py").write_text(source.read_text())
        flags.append(f"--backend-directory={scratch}")
    with ServerProcess(ROOT / "examples" / name / "models", scratch / f"{name}.log", args=tuple(flags)) as server:
        client = [sys.executable, f"examples/{name}/client.py", "--http", server.address,
                  "--grpc", f"127.0.0.1:{server.grpc_port}"]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        failed = subprocess.run(client, cwd=ROOT, check=False, env=env).returncode
        code = server.stop()
        if failed or code:
            print(server.log_tail(), file=sys.stderr)
    return not (failed or code)


def main() -> int:
    names = sys.argv[1:] or list(EXAMPLES)
    with tempfile.TemporaryDirectory(prefix="triton_fast-examples-") as folder:
        results = [run(name, EXAMPLES[name], Path(folder)) for name in names]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
