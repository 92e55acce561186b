"""Where ONNX Runtime and the CUDA libraries of its providers are found, and what is said when they are not."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from tests.helpers.elf import shared_object
from triton_fast._native.ort import capi
from triton_fast.backends.onnxruntime import cuda_libraries, library, providers
from triton_fast.errors import Unavailable

SITE = "lib/site-packages"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up site-packages that is all there is on Python's path; nothing is open yet."""
    folder = tmp_path / SITE
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)  # what others have imported
    monkeypatch.setattr(cuda_libraries, "_OPENED", {})
    return folder


def put(file: Path, data: bytes = b"x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def distribution(site: Path, name: str, version: str) -> None:
    put(site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode())  # fmt: skip


# --- ONNX Runtime itself ---------------------------------------------------------------------------------------------


def test_no_package(site: Path) -> None:
    with pytest.raises(Unavailable, match="ONNX Runtime is not installed"):
        library.find_library()
    put(site / "onnxruntime" / "capi" / "readme.txt")
    with pytest.raises(Unavailable, match=r"has no libonnxruntime\.so"):
        library.find_library()


def test_the_newest_library_of_a_folder(site: Path) -> None:
    folder = site / "onnxruntime" / "capi"
    put(folder / "libonnxruntime.so.1.9.0")
    newest = put(folder / "libonnxruntime.so.1.31.1")
    put(folder / "onnxruntime_pybind11_state.cpython-312-x86_64-linux-gnu.so")
    assert library.find_library() == newest


def test_old_gpu_wheels_have_all_in_the_extension(site: Path) -> None:
    only = put(site / "onnxruntime" / "capi" / "onnxruntime_pybind11_state.so")
    assert library.find_library() == only


def test_both_distributions_in_one_folder(site: Path) -> None:
    """They have the same package: the CUDA provider fits the library that came with it, not the newer one."""
    folder = site / "onnxruntime" / "capi"
    put(site / "onnxruntime" / "__init__.py")
    newer = put(folder / "libonnxruntime.so.1.32.0")
    own = put(folder / "libonnxruntime.so.1.31.1")
    distribution(site, "onnxruntime", "1.32.0")
    assert library.find_library() == newer
    put(folder / library.CUDA_PROVIDER)
    distribution(site, "onnxruntime-gpu", "1.31.1")
    assert library.find_library() == own


def test_the_package_with_the_cuda_provider_is_preferred(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(site / "onnxruntime" / "__init__.py")
    put(site / "onnxruntime" / "capi" / "libonnxruntime.so.1.32.0")
    other = put(tmp_path / "other" / "onnxruntime" / "capi" / "libonnxruntime.so.1.31.1")
    for path in ([str(site), str(tmp_path / "other")], [str(tmp_path / "other"), str(site)]):
        monkeypatch.setattr(sys, "path", path)
        put(other.with_name(library.CUDA_PROVIDER))
        assert library.find_library() == other
        other.with_name(library.CUDA_PROVIDER).unlink()
        assert library.find_library().parent.parent.parent == site  # a package goes before a folder without __init__


# --- ELF -------------------------------------------------------------------------------------------------------------


def test_needed_names(tmp_path: Path) -> None:
    names = ["libcublasLt.so.13", "libcudart.so.13", "libc.so.6"]
    assert cuda_libraries.needed(put(tmp_path / "a.so", shared_object("a.so", names))) == names
    assert "libc.so.6" in cuda_libraries.needed(Path(capi.__file__))


def test_files_that_are_no_libraries(tmp_path: Path) -> None:
    whole = shared_object("a.so", ["libc.so.6"])
    assert cuda_libraries.needed(tmp_path / "absent") == []
    for n in range(0, len(whole), 7):
        found = cuda_libraries.needed(put(tmp_path / "a.so", whole[:n]))
        assert found in ([], ["libc.so.6"])
    for n in range(len(whole)):
        damaged = bytearray(whole)
        damaged[n] ^= 0xFF
        cuda_libraries.needed(put(tmp_path / "a.so", bytes(damaged)))  # no error, whatever it finds
    big = bytearray(whole)
    struct.pack_into("<H", big, 56, 0xFFFF)
    assert cuda_libraries.needed(put(tmp_path / "a.so", bytes(big))) == []


# --- NVIDIA's wheels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["12", "13"])
def test_libraries_are_opened_where_pip_puts_them(site: Path, layout: str) -> None:
    below, above = f"libcubelow{layout}.so.1", f"libcuabove{layout}.so.{layout}"
    folder = site / ("nvidia/cu13/lib" if layout == "13" else "nvidia/one/lib")
    put(folder / above, shared_object(above, [below]))
    put((folder if layout == "13" else site / "nvidia/two/lib") / below, shared_object(below))
    provider = put(site / "provider.so", shared_object("provider.so", [above, "libcuda.so.1", "libc.so.6"]))
    assert cuda_libraries.open_for(provider) == []
    assert list(cuda_libraries._OPENED) == [below, above]
    assert cuda_libraries.open_for(provider) == []  # once more: nothing is opened twice


def test_a_library_that_is_nowhere(site: Path) -> None:
    names = ["libcunowhere.so.13", "libcublas.so.4242", "libm.so.6"]
    provider = put(site / "provider.so", shared_object("provider.so", names))
    assert cuda_libraries.open_for(provider) == names[:2]


def test_libraries_that_need_each_other(site: Path) -> None:
    one, two = "libcuringone.so.1", "libcuringtwo.so.1"
    put(site / "nvidia/cu13/lib" / one, shared_object(one, [two]))
    put(site / "nvidia/cu13/lib" / two, shared_object(two, [one]))
    provider = put(site / "provider.so", shared_object("provider.so", [one]))
    assert cuda_libraries.open_for(provider) == [one]  # the loader does not find the second while it opens the first


def test_packages() -> None:
    assert cuda_libraries.cuda_major(["libcublas.so.13", "libcudart.so.12", "libm.so.6"]) == "12"
    assert cuda_libraries.cuda_major(["libcublas.so.13"]) == ""
    for name, major, package in (
        ("libcublasLt.so.13", "13", "nvidia-cublas"), ("libcublas.so.12", "12", "nvidia-cublas-cu12"),
        ("libcudnn.so.9", "13", "nvidia-cudnn-cu13"), ("libcudnn.so.9", "12", "nvidia-cudnn-cu12"),
        ("libnvinfer.so.10", "13", "tensorrt"), ("libnvinfer.so.10", "12", "tensorrt"), ("libcux.so.1", "12", ""),
    ):  # fmt: skip
        assert cuda_libraries.package_of(name, major) == package


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_reasons_why_a_provider_can_not_be_used(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site / "onnxruntime" / "capi"
    cpu = ("AzureExecutionProvider", "CPUExecutionProvider")
    gpu = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    reason = providers.find_reason("cuda", cpu, folder)
    assert reason.startswith(
        "the installed ONNX Runtime has only AzureExecutionProvider, CPUExecutionProvider; install"
    )
    assert "pip install onnxruntime-gpu" in reason
    assert "is not beside the installed ONNX Runtime" in providers.find_reason("cuda", gpu, folder)
    put(folder / library.CUDA_PROVIDER, shared_object("p", ["libcublasLt.so.4242", "libcurand.so.4242"]))
    monkeypatch.setattr(cuda_libraries, "has_driver", lambda: False)
    assert "NVIDIA's driver is not installed" in providers.find_reason("cuda", gpu, folder)
    monkeypatch.setattr(cuda_libraries, "has_driver", lambda: True)
    assert providers.find_reason("cuda", gpu, folder) == (
        "libonnxruntime_providers_cuda.so needs libcublasLt.so.4242, libcurand.so.4242; "
        "pip install nvidia-cublas nvidia-curand"
    )
    put(folder / "libonnxruntime_providers_tensorrt.so", shared_object("t", ["libnvinfer.so.4242"]))
    assert providers.find_reason("tensorrt", gpu, folder) == (
        "libonnxruntime_providers_tensorrt.so needs libnvinfer.so.4242; pip install tensorrt"
    )


def test_what_the_cuda_runtime_says(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site / "onnxruntime" / "capi"
    put(folder / library.CUDA_PROVIDER, shared_object("p", ["libcudart.so.13"]))
    monkeypatch.setattr(cuda_libraries, "has_driver", lambda: True)
    monkeypatch.setattr(cuda_libraries, "open_for", lambda _: [])
    gpu = ("CUDAExecutionProvider",)

    class Text:
        restype = None

        def __call__(self, code: int) -> bytes:
            return f"error {code} of the driver".encode()

    class Runtime:
        code, devices = 35, 0
        cudaGetErrorString = Text()

        def cudaGetDeviceCount(self, count: object) -> int:
            count._obj.value = self.devices  # type: ignore[attr-defined]
            return self.code

    runtime = Runtime()
    monkeypatch.setattr(cuda_libraries, "_OPENED", {"libcudart.so.13": runtime})
    said = "the CUDA 13 runtime that onnxruntime-gpu needs fails: "
    assert providers.find_reason("cuda", gpu, folder) == said + "error 35 of the driver"
    runtime.code = 0
    assert providers.find_reason("cuda", gpu, folder) == said + "no device"
    runtime.devices = 1
    assert providers.find_reason("cuda", gpu, folder) == ""
