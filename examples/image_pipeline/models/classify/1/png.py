"""A reader and a writer of PNG files in numpy, for images of 8 bits that are not interlaced.

The reader takes the bytes of anybody: sizes are checked before anything is inflated.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 4_000_000
# Values of a pixel by colour type: grey, RGB, palette, grey and alpha, RGB and alpha.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def read(data: bytes) -> np.ndarray:
    """Return an image as uint8 (height, width, 3), over white where it is transparent.

    Raises
    ------
    ValueError
        It is no such image, or too large.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG file")
    head, palette, alpha, packed = b"", b"", b"", []
    for kind, content in _chunks(data[len(SIGNATURE) :]):
        if kind == b"IHDR":
            head = content
        elif kind == b"PLTE":
            palette = content
        elif kind == b"tRNS":
            alpha = content
        elif kind == b"IDAT":
            packed.append(content)
    if len(head) != 13:
        raise ValueError("it has no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    if depth != 8 or colour not in _CHANNELS or interlaced:
        raise ValueError(f"only 8 bits a value, not interlaced, are read (it has {depth} bits)")
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, the limit is {MAX_PIXELS}")
    channels = _CHANNELS[colour]
    pixels = _unfiltered(_inflated(b"".join(packed), height * (1 + width * channels)), width, height, channels)
    if colour == 3:
        pixels = _looked_up(pixels[:, :, 0], palette, alpha)
    return _over_white(pixels)


def _chunks(data: bytes):
    at = 0
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size > len(data) - at - 12:
            break
        content = data[at + 8 : at + 8 + size]
        if zlib.crc32(kind + content) != struct.unpack_from(">I", data, at + 8 + size)[0]:
            raise ValueError(f"its part {kind.decode('latin-1')} is damaged")
        if kind == b"IEND":
            return
        yield kind, content
        at += 12 + size
    raise ValueError("it is cut off")


def _inflated(packed: bytes, size: int) -> bytes:
    try:
        data = zlib.decompressobj().decompress(packed, size)
    except zlib.error as error:
        raise ValueError(f"its pixels can not be inflated: {error}") from None
    if len(data) != size:
        raise ValueError("it has too few pixels")
    return data


def _unfiltered(data: bytes, width: int, height: int, channels: int) -> np.ndarray:
    rows = np.frombuffer(data, np.uint8).reshape(height, 1 + width * channels)
    made = np.zeros((height + 1, width + 1, channels), np.uint8)
    for y in range(height):
        kind, row = int(rows[y, 0]), rows[y, 1:].reshape(width, channels)
        above, out = made[y], made[y + 1]
        if kind == 0:
            out[1:] = row
        elif kind == 1:
            out[1:] = np.add.accumulate(row, axis=0, dtype=np.uint8)
        elif kind == 2:
            out[1:] = row + above[1:]
        elif kind in (3, 4):
            _by_neighbours(kind, row, above.astype(np.int32), out)
        else:
            raise ValueError(f"it has an unknown filter {kind}")
    return made[1:, 1:]


def _by_neighbours(kind: int, row: np.ndarray, above: np.ndarray, out: np.ndarray) -> None:
    """Average and Paeth: each pixel needs the one before it."""
    left = np.zeros(row.shape[1], np.int32)
    for x in range(len(row)):
        up, corner = above[x + 1], above[x]
        if kind == 3:
            guess = (left + up) // 2
        else:
            a, b, c = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
            guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        left = (row[x] + guess) & 0xFF
        out[x + 1] = left


def _looked_up(numbers: np.ndarray, palette: bytes, alpha: bytes) -> np.ndarray:
    colours = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    if int(numbers.max()) >= len(colours):
        raise ValueError("it has a colour that its palette does not have")
    opaque = np.full((len(colours), 1), 255, np.uint8)
    known = alpha[: len(colours)]
    opaque[: len(known), 0] = np.frombuffer(known, np.uint8)
    return np.concatenate([colours, opaque], axis=1)[numbers]


def _over_white(pixels: np.ndarray) -> np.ndarray:
    channels = pixels.shape[2]
    colour = pixels[:, :, :3] if channels >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    if channels in (1, 3):
        return colour
    share = pixels[:, :, -1:].astype(np.float32) / 255
    return (colour * share + 255 * (1 - share)).round().astype(np.uint8)


def write(image: np.ndarray) -> bytes:
    """Return a grey (height, width) or RGB (height, width, 3) image of uint8 as a PNG file."""
    height, width = image.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
