"""examples/image_pipeline from PNG files to labels; its PNG reader against Pillow where that is installed."""

from __future__ import annotations

import importlib.util
import io
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.helpers import raw
from tests.helpers.server import ROOT, ServerProcess
from tests.integration.examples import addresses, copied, run
from tests.integration.onnx_files import arrays, infer, request

if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "sklearn", "tritonclient")):
    pytest.skip("onnx, onnxruntime, scikit-learn or tritonclient is not installed", allow_module_level=True)

import onnxruntime

pytestmark = pytest.mark.timeout(300)
PNG = ROOT / "examples" / "image_pipeline" / "models" / "classify" / "1" / "png.py"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_images_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


png = module(PNG)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied("image_pipeline", tmp_path_factory.mktemp("example"))
    shutil.copytree(ROOT / "examples" / "digits", folder.parent / "digits")
    target = folder / "models" / "digits" / "1" / "model.onnx"
    run(folder.parent / "digits" / "train.py", str(target))
    return folder


@pytest.fixture(scope="module")
def server(example: Path) -> Iterator[ServerProcess]:
    with ServerProcess(example / "models") as process:
        yield process


def files(*contents: bytes) -> np.ndarray:
    return np.array([[content] for content in contents], object)


def digit(example: Path, n: int) -> tuple[bytes, np.ndarray]:
    """A held-out digit as a PNG file, and as the classifier takes it."""
    image = module(example.parent / "digits" / "data.py").load()[1][n]
    return png.write((255 - image[0] / 16 * 255).round().astype(np.uint8).repeat(5, 0).repeat(3, 1)), image


def test_the_client_reads_real_files(server: ServerProcess, example: Path, tmp_path: Path) -> None:
    said = run(example / "client.py", *addresses(server))
    assert said.count("of 360 PNG files right") == 2
    (tmp_path / "a.png").write_bytes(digit(example, 0)[0])
    label = module(example.parent / "digits" / "data.py").load()[3][0]
    assert f"a.png: {label} (" in run(example / "client.py", str(tmp_path / "a.png"), *addresses(server))


def test_answers_are_those_of_the_classifier(server: ServerProcess, example: Path) -> None:
    session = onnxruntime.InferenceSession(example / "models" / "digits" / "1" / "model.onnx")
    made = [digit(example, n) for n in range(5)]
    scores = session.run(None, {"image": np.stack([image for _, image in made])})[0]
    found = infer(server.http, "classify", {"image": files(*(content for content, _ in made))})
    # The grey of a file has 256 steps.
    assert np.allclose(found["confidence"][:, 0], scores.max(axis=1), atol=0.02)
    assert [int(label) for label in found["label"][:, 0]] == scores.argmax(axis=1).tolist()


def test_a_file_that_is_none_fails_its_request_only(server: ServerProcess, example: Path) -> None:
    good = digit(example, 1)[0]

    def ask(n: int) -> raw.Answer:
        return raw.ask(server.http, request("classify", {"image": files(good, good[: 60 + n] if n % 2 else good)}))

    with ThreadPoolExecutor(8) as pool:
        for n, answer in enumerate(pool.map(ask, range(24))):
            assert answer.status == (400 if n % 2 else 200)
            if n % 2:
                assert answer.json()["error"].startswith("the image can not be read: ")
            else:
                assert len(arrays(answer)["label"]) == 2
    for content in (b"", b"GIF89a", png.SIGNATURE, good.replace(b"IDAT", b"IDXT")):
        answer = raw.ask(server.http, request("classify", {"image": files(content)}))
        assert answer.status in (400, 500)
        assert "the image can not be read" in answer.json()["error"]


# --- the reader -------------------------------------------------------------------------------------------------------


def encoded(pixels: bytes, width: int, height: int, colour: int, *more: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A file of rows that are filtered already."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return png.SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 7, 3), (1, 9, 3)])
def test_what_is_written_is_read(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = image if image.ndim == 3 else np.stack([image] * 3, axis=2)
    assert (png.read(png.write(image)) == expected).all()


def test_every_filter_undoes_what_the_format_says() -> None:
    # Left, above and corner by hand: 10 20 / 30 40, the second row by each filter.
    second = {0: (30, 40), 1: (30, 10), 2: (20, 20), 3: (25, 15), 4: (20, 10)}
    for kind, row in second.items():
        data = encoded(bytes([0, 10, 20, kind, *row]), 2, 2, 0)
        assert png.read(data)[:, :, 0].tolist() == [[10, 20], [30, 40]], kind


def test_palette_and_transparency() -> None:
    palette = encoded(bytes([0, 0, 1]), 2, 1, 3, (b"PLTE", bytes([1, 2, 3, 100, 100, 100])), (b"tRNS", bytes([255, 0])))
    assert png.read(palette).tolist() == [[[1, 2, 3], [255, 255, 255]]]
    assert png.read(encoded(bytes([0, 0, 0, 0, 255]), 2, 1, 4)).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (encoded(b"\0" + b"1" * 6, 2, 1, 3, (b"PLTE", b"123")), "a colour that its palette does not have"),
        (encoded(b"\0\0", 1, 1, 0, depth=16), "only 8 bits a value"),
        (encoded(b"\0", 0, 1, 0), "0 x 1 pixels"),
        (encoded(b"\0", 1 << 31, 1 << 31, 0), "the limit is"),
        (encoded(b"\0\0", 100, 100, 0), "too few pixels"),
        (encoded(b"\x09\0", 1, 1, 0), "an unknown filter 9"),
        (encoded(b"\0\0", 1, 1, 7), "only 8 bits"),
        (encoded(b"\0\0", 1, 1, 0)[:-20], "it is cut off"),
        (encoded(b"\0\0", 1, 1, 0).replace(b"IDAT", b"IDAt"), "its part IDAt is damaged"),
        (png.SIGNATURE + struct.pack(">I", 0xFFFFFFFF) + b"IHDR" * 9, "it is cut off"),
        (b"", "it is no PNG file"),
    ],
)
def test_what_is_no_image(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        png.read(data)


def test_every_cut_of_a_file_is_told() -> None:
    whole = png.write(np.arange(48, dtype=np.uint8).reshape(4, 12))
    for n in range(len(whole)):
        with pytest.raises(ValueError, match="it "):
            png.read(whole[:n])


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed: pip install pillow")
def test_against_pillow() -> None:
    image_module = importlib.import_module("PIL.Image")
    rng = np.random.default_rng(4)
    smooth = np.add.outer(np.arange(31) * 5, np.arange(23) * 3).astype(np.uint8)
    for mode, channels in (("L", 1), ("RGB", 3), ("LA", 2), ("RGBA", 4), ("P", 1)):
        for base in (smooth, rng.integers(0, 256, smooth.shape, np.uint8)):
            pixels = np.stack([base + 40 * n for n in range(channels)], axis=2).astype(np.uint8)
            image = image_module.fromarray(pixels.squeeze(), "L" if mode == "P" else mode)
            image = image.convert("P") if mode == "P" else image
            out = io.BytesIO()
            image.save(out, "PNG")
            opaque = image_module.new("RGBA", image.size, "white")
            opaque.alpha_composite(image.convert("RGBA"))
            expected = np.asarray(opaque.convert("RGB")).astype(int)
            assert np.abs(png.read(out.getvalue()).astype(int) - expected).max() <= 1, mode
