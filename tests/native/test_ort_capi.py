"""The library binding: slots that behave, and errors of opening, each in a process of its own where that matters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from triton_fast._native.ort import capi
from triton_fast.backends.onnxruntime import OnnxRuntimeBackend, library
from triton_fast.errors import Internal

ROOT = Path(__file__).resolve().parents[2]


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_version_and_providers() -> None:
    assert OnnxRuntimeBackend().version == onnxruntime.__version__
    library.prepare({})
    assert capi.providers() == onnxruntime.get_available_providers()


def test_every_slot_is_its_own() -> None:
    slots = capi.slots()
    assert len(set(slots.values())) == len(slots) > 70
    assert min(slots.values()) == 0


def test_opening_again() -> None:
    assert library.open_library() == onnxruntime.__version__
    with pytest.raises(Internal, match="already loaded from another file"):
        capi.open_library("/lib/libother.so")


def test_onnxruntime_package_is_not_imported() -> None:
    out = run(
        "import sys\n"
        "from triton_fast.backends.onnxruntime import OnnxRuntimeBackend, library\n"
        "OnnxRuntimeBackend(); library.prepare({})\n"
        "print('onnxruntime' in sys.modules, 'numpy' in sys.modules)"
    )
    assert out.strip() == "False False"


def test_telemetry_is_off_unless_the_user_says_otherwise() -> None:
    code = "import os\nfrom triton_fast.backends.onnxruntime import library\nlibrary.open_library()\n"
    assert run(code + "print(os.environ['ORT_DISABLE_TELEMETRY'])").strip() == "1"
    kept = "import os\nos.environ['ORT_DISABLE_TELEMETRY'] = '0'\n" + code
    assert run(kept + "print(os.environ['ORT_DISABLE_TELEMETRY'])").strip() == "0"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/libonnxruntime.so", "can not open the ONNX Runtime library 'libonnxruntime.so'"),
        (__file__, "can not open the ONNX Runtime library 'test_ort_capi.py'"),
        (str(library.find_library().with_name("libonnxruntime_providers_shared.so")), "does not export OrtGetApiBase"),
    ],
)
def test_files_that_are_not_the_library(path: str, message: str) -> None:
    out = run(
        "from triton_fast._native.ort import capi\n"
        "from triton_fast.errors import ServerError\n"
        f"try: capi.open_library({path!r})\n"
        "except ServerError as error: print(error)\n"
        "else: print('opened')"
    )
    assert message in out


def test_calls_before_the_library_is_open() -> None:
    out = run(
        "from triton_fast._native.ort import capi, session\n"
        "from triton_fast.errors import Internal\n"
        "for call in (capi.init_env, capi.providers, session.SessionOptions):\n"
        "    try: call()\n"
        "    except Internal as error: print(error)"
    )
    assert out.count("the ONNX Runtime library is not open") == 3


def test_global_thread_pool() -> None:
    """Sessions of a process with a global pool have no threads of their own and give the same results."""
    code = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from tests.helpers import onnx_models as models\n"
        "from tests.helpers.onnx_repository import open_model\n"
        "settings = {'enable-global-threadpool': '1', 'intra_op_thread_count': '2', 'inter_op_thread_count': '1'}\n"
        "with tempfile.TemporaryDirectory() as root:\n"
        "    first = open_model(Path(root) / 'a', models.mlp(), settings=settings, threads=8)\n"
        "    tasks = set(os.listdir('/proc/self/task'))\n"
        "    opened = open_model(Path(root) / 'b', models.add_sub('FP32'), settings=settings, threads=8)\n"
        "    x = np.ones((2, 16), np.float32)\n"
        "    (answer,) = opened.run({'INPUT0': x, 'INPUT1': x})\n"
        "    print(answer['OUTPUT0'].sum(), len(set(os.listdir('/proc/self/task')) - tasks))\n"
    )
    assert run(code).split() == ["64.0", "0"]
