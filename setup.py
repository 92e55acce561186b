"""Build of the native extensions and of the protobuf descriptor set.

Every ``ext/**/*.pyx`` becomes the extension of the same dotted path. Switches (environment):

* ``TF_EXT=a.b,c``  build only the extensions whose dotted path ends in one of these
* ``TF_DEBUG=1``    Cython bounds checks on, TF_DEBUG invariants compiled in, no optimisation
* ``TF_ASAN=1``     AddressSanitizer and UndefinedBehaviorSanitizer (implies line directives)
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
EXT = Path("ext")
PROTOS = Path("protos")
DESCRIPTORS = Path("triton_fast/protos/v2.binpb")
DEBUG = os.environ.get("TF_DEBUG") == "1"
ASAN = os.environ.get("TF_ASAN") == "1"
VARIANT = "-asan" if ASAN else "-debug" if DEBUG else ""
ONLY = tuple(filter(None, os.environ.get("TF_EXT", "").split(",")))

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "binding": False,
    "freethreading_compatible": True,
}


def compile_args(cplusplus: bool) -> tuple[list[str], list[str]]:
    args = ["-fvisibility=hidden", "-Wall", "-Wno-unused-function", "-Wno-unused-variable"]
    args.append("-std=c++17" if cplusplus else "-std=gnu11")
    link: list[str] = []
    if ASAN:
        args += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
        args += ["-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    elif DEBUG:
        args += ["-O0", "-g"]
    else:
        args += ["-O3", "-g1", "-fno-plt"]
    if DEBUG or ASAN:
        args.append("-DTF_DEBUG=1")
    return args, link


def extensions() -> list[Extension]:
    found = []
    for source in sorted((ROOT / EXT).rglob("*.pyx")):
        path = source.relative_to(ROOT)
        name = ".".join(path.relative_to(EXT).with_suffix("").parts)
        if ONLY and not name.endswith(ONLY):
            continue
        head = source.read_text(encoding="utf-8")[:400]
        cplusplus = "distutils: language = c++" in head
        args, link = compile_args(cplusplus)
        libraries = ["pthread"]
        for line in head.splitlines():
            if line.startswith("# distutils: libraries ="):
                libraries += line.partition("=")[2].split()
        found.append(
            Extension(
                name,
                [str(path)],
                language="c++" if cplusplus else "c",
                include_dirs=[str(EXT / "triton_fast" / "_native" / "include")],
                extra_compile_args=args,
                extra_link_args=link,
                libraries=libraries,
            )
        )
    return found


def compile_protos() -> None:
    """One descriptor set, loaded into a private pool, so that tritonclient may live in the same process."""
    sources = sorted(str(p.relative_to(ROOT / PROTOS)) for p in (ROOT / PROTOS).rglob("*.proto"))
    target = ROOT / DESCRIPTORS
    newest = max((p.stat().st_mtime for p in (ROOT / PROTOS).rglob("*.proto")), default=0)
    if not sources or (target.exists() and target.stat().st_mtime >= newest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_imports",
               f"--descriptor_set_out={DESCRIPTORS}", *sources]
    subprocess.run(command, check=True, cwd=ROOT)


class BuildPy(build_py):
    def run(self) -> None:
        compile_protos()
        super().run()


class BuildExt(build_ext):
    def initialize_options(self) -> None:
        super().initialize_options()
        self.parallel = os.cpu_count() if not ONLY else 1

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp += VARIANT

    def run(self) -> None:
        compile_protos()
        # Not in finalize_options, which making metadata or an sdist runs too: it takes minutes.
        from Cython.Build import cythonize

        generated = cythonize(
            self.extensions,
            include_path=[str(EXT)],
            build_dir="build/cython" + VARIANT,
            compiler_directives=DIRECTIVES,
            emit_linenums=DEBUG or ASAN,
            nthreads=os.cpu_count() if not ONLY else 0,
            quiet=bool(ONLY),
        )
        by_name = {extension.name: vars(extension) for extension in generated}
        for extension in self.extensions:
            vars(extension).update(by_name[extension.name])
        super().run()


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt, "build_py": BuildPy})
