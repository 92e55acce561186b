"""Opens the CUDA libraries that an execution provider needs, from where pip puts them.

NVIDIA's wheels lie in ``site-packages/nvidia``, where the loader does not look. What is open already is found by its
name when the provider asks for it. Knows ELF's list of needed libraries, nothing of ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# nvidia/<component>/lib for CUDA 12 and cuDNN, nvidia/cu13/lib for CUDA 13.
FOLDERS = ("nvidia/*/lib", "tensorrt_libs")
_OF_CUDA = re.compile(r"lib(cu|nv)[A-Za-z0-9_]*\.so\.[0-9.]+")
DRIVER = "libcuda.so.1"
# What the provider opens by name only when a kernel asks for it; absent, those kernels fail with their own error.
_LATER = {
    "12": ("libnvrtc.so.12", "libnvJitLink.so.12", "libcufft.so.11", "libcudnn.so.9"),
    "13": ("libnvrtc.so.13", "libnvJitLink.so.13", "libcufft.so.12", "libcudnn.so.9"),
}
# Package that has a library, by the name's stem; for CUDA 12 the name goes on with -cu12.
_PACKAGES = {
    "libcudart": "nvidia-cuda-runtime", "libcublas": "nvidia-cublas", "libcublasLt": "nvidia-cublas",
    "libcurand": "nvidia-curand", "libcufft": "nvidia-cufft", "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvJitLink": "nvidia-nvjitlink", "libcudnn": "nvidia-cudnn", "libnvinfer": "tensorrt",
    "libnvinfer_plugin": "tensorrt", "libnvonnxparser": "tensorrt",
}  # fmt: skip
_OPENED: dict[str, ctypes.CDLL] = {}


def needed(library: Path) -> list[str]:
    """Return the names that a 64-bit library was linked with; none for a file that is no such library."""
    try:
        with library.open("rb") as file:
            return list(_needed(file))
    except (OSError, ValueError, struct.error):
        return []


def _needed(file: BinaryIO) -> Iterator[str]:
    def at(offset: int, size: int) -> bytes:
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise ValueError("cut short")
        return data

    head = at(0, 64)
    if head[:6] != b"\x7fELF\x02\x01":
        return
    table, entry, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
    loads, dynamic = [], b""
    for number in range(count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", at(table + number * entry, 56))
        if kind == 1:
            loads.append((address, size, offset))
        elif kind == 2 and size < 1 << 20:
            dynamic = at(offset, size)
    tags = [struct.unpack_from("<QQ", dynamic, n) for n in range(0, len(dynamic) - 15, 16)]
    addresses = [value for tag, value in tags if tag == 5]
    sizes = [value for tag, value in tags if tag == 10]
    if not addresses or not sizes or sizes[0] > 1 << 28:
        return
    strings = b""
    for address, size, offset in loads:
        if address <= addresses[0] < address + size:
            strings = at(offset + addresses[0] - address, sizes[0])
    for tag, value in tags:
        if tag == 1 and value < len(strings):
            yield strings[value : strings.index(b"\0", value)].decode("utf-8", "replace")


def open_for(library: Path) -> list[str]:
    """Open what a provider needs of CUDA; return the names that are neither in a package nor on the loader's path."""
    wanted = [name for name in needed(library) if _OF_CUDA.fullmatch(name) and name != DRIVER]
    folders = [folder for entry in _search_path() for pattern in FOLDERS for folder in sorted(entry.glob(pattern))]
    missing: list[str] = []
    for name in wanted:
        _open(name, folders, missing)
    for name in _LATER.get(cuda_major(wanted), ()):
        _open(name, folders, [])
    return missing


def cuda_major(names: list[str]) -> str:
    """Return the major version of the CUDA runtime among the names; empty without one."""
    found = [name.split(".so.")[1].split(".")[0] for name in names if name.startswith("libcudart.so.")]
    return found[0] if found else ""


def package_of(name: str, major: str) -> str:
    """Return the package to install for a missing library."""
    package = _PACKAGES.get(name.partition(".so")[0], "")
    if package == "nvidia-cudnn":
        return f"{package}-cu{major or '12'}"
    return f"{package}-cu12" if package.startswith("nvidia") and major == "12" else package


def runtime_error(names: list[str]) -> str:
    """Return what the CUDA runtime that was opened says against the driver; empty when it finds a device."""
    runtime = next((_OPENED[name] for name in names if name.startswith("libcudart.so.") and name in _OPENED), None)
    if runtime is None:
        return ""
    count = ctypes.c_int(0)
    code = runtime.cudaGetDeviceCount(ctypes.byref(count))
    if code == 0:
        return "" if count.value > 0 else "no device"
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    text: bytes | None = runtime.cudaGetErrorString(code)
    return (text or b"").decode("utf-8", "replace") or f"CUDA error {code}"


def has_driver() -> bool:
    """Return whether NVIDIA's driver can be opened."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def _search_path() -> list[Path]:
    return [path for path in dict.fromkeys(Path(entry) for entry in sys.path if entry) if path.is_dir()]


def _open(name: str, folders: list[Path], missing: list[str], above: tuple[str, ...] = ()) -> None:
    if name in _OPENED:
        return
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is not None:
        # Those of its own first: wheels of components lie in different folders.
        for other in needed(file):
            if other not in (DRIVER, name, *above) and _OF_CUDA.fullmatch(other):
                _open(other, folders, [], (name, *above))
    try:
        # What another framework of this process has opened serves all: two copies would be two CUDA runtimes.
        _OPENED[name] = ctypes.CDLL(name, os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        try:
            _OPENED[name] = ctypes.CDLL(name if file is None else str(file))
        except OSError:
            missing.append(name)
