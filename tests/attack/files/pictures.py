"""PNG, JPEG, TIFF, BMP, WebP and GIF: cut, damaged, mislabelled, odd, and promising more than anybody can hold."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from tests.attack.cases import FileCase, Outcome, Rows, add

GROUP = "pictures"
CUTS = {
    "after 12 bytes": 12,
    "after an eighth": 0.125,
    "in the middle": 0.5,
    "before its last tenth": 0.9,
    "by a byte": -1,
}
"""Where files of all formats are cut: bytes, or a share of the file."""

_PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
_SIDE = 60_000


def coded(format_name: str, picture: PIL.Image.Image | None = None, **options: Any) -> bytes:
    """A picture in a format of Pillow's; noise by default."""
    stream = io.BytesIO()
    (picture or PIL.Image.fromarray(_PIXELS)).save(stream, format_name, **options)
    return stream.getvalue()


def cut(content: bytes, place: float) -> bytes:
    """The beginning of a file."""
    return content[: round(place * len(content)) if isinstance(place, float) else int(place)]


Content: TypeAlias = bytes | Callable[[], bytes]
"""Of a file; a function where making it takes long."""


def file(name: str, content: Content, file_name: str, outcome: Outcome = Outcome.ERROR, **more: Any) -> None:
    """Write down a case that is a single file of known content."""

    def make(folder: Path) -> None:
        (folder / file_name).write_bytes(content() if callable(content) else content)

    add(FileCase(more.pop("group", GROUP), name, make, outcome, **more))


def png_chunk(kind: bytes, content: bytes, promised: int | None = None) -> bytes:
    """A chunk of a PNG, with its checksum."""
    length = len(content) if promised is None else promised
    return struct.pack(">I", length) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, before: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of packed rows; ``before`` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    )


@cache
def zeros_packed(length: int) -> bytes:
    """That many zero bytes, packed by zlib."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(length >> 20)) + packer.flush()


def tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one page: (type, count, value) by tag; ``data`` begins at byte 8."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHLL", tag, *entry) for tag, entry in sorted(entries.items()))
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + directory + struct.pack("<L", following)


def _grey_tiff(width: int, height: int, data: bytes, **changes: tuple[int, int, int]) -> bytes:
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, len(data)),
        **{int(tag.removeprefix("tag")): entry for tag, entry in changes.items()},
    }
    return tiff(entries, data)


def _with_tiff_sides(content: bytes) -> bytes:
    made = bytearray(content)
    for tag in (256, 257):
        at = made.index(struct.pack("<HHL", tag, 4, 1))
        made[at + 8 : at + 12] = struct.pack("<L", _SIDE)
    return bytes(made)


def _with_jpeg_sides(content: bytes, height: int, width: int) -> bytes:
    made = bytearray(content)
    frame = made.index(b"\xff\xc0")
    made[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(made)


def _damaged_within(content: bytes, share: float, count: int) -> bytes:
    """Some bytes of noise at a place."""
    made, at = bytearray(content), round(share * len(content))
    made[at : at + count] = bytes(byte % 200 for byte in range(7, 7 + count))
    return bytes(made)


def _truncations() -> None:
    formats = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP", "gif": "GIF"}
    for suffix, format_name in formats.items():
        whole = coded(format_name)
        for place, share in CUTS.items():
            outcome = Outcome.EITHER if place in ("by a byte", "before its last tenth") else Outcome.ERROR
            file(f"{format_name} cut {place}", cut(whole, share), f"a.{suffix}", outcome)


def _wrong_magic() -> None:
    words = {
        "nothing": b"",
        "one byte": b"\x89",
        "zeros": bytes(5000),
        "words": b"no picture, but words\n" * 100,
        "noise": np.random.default_rng(1).bytes(5000),
        "HTML": b"<html><script>alert(1)</script></html>",
        "an SVG with a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "a PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(PROOF) (w) file closefile\n",
        "a shell script": b"#!/bin/sh\ntouch PROOF\n",
        "an ELF header": b"\x7fELF\x02\x01\x01" + bytes(500),
        "a pickle": b"cos\nsystem\n(S'touch PROOF'\ntR.",
        "a magic PNG and no more": b"\x89PNG\r\n\x1a\n",
        "a magic JPEG and no more": b"\xff\xd8\xff\xe0",
        "a magic WebP and no more": b"RIFF\xff\xff\xff\x7fWEBPVP8X",
    }
    for name, content in words.items():
        file(f"{name} called PNG", content, "a.png")
        if name in ("nothing", "zeros", "noise", "words"):
            file(f"{name} called JPEG", content, "a.jpg")
            file(f"{name} called TIFF", content, "a.tif")
    file("JPEG called PNG", coded("JPEG"), "a.png", Outcome.DONE)
    file("PNG called TIFF", coded("PNG"), "a.tiff", Outcome.DONE)
    file("GIF called JPEG", coded("GIF"), "a.jpeg", Outcome.DONE)
    file("PNG called DICOM", coded("PNG"), "a.dcm")
    for format_name in ("PPM", "TGA", "ICO", "PCX", "SGI"):
        file(f"{format_name}, a format that is not promised, called PNG", coded(format_name), "a.png")


def _huge_headers() -> None:
    promised = ", at most 85,000,000 are decoded"
    file("PNG header of 60,000 squared", png(_SIDE, _SIDE, b"x"), "a.png", says=promised)
    file("JPEG header of 60,000 squared", _with_jpeg_sides(coded("JPEG"), _SIDE, _SIDE), "a.jpg", says=promised)
    file("TIFF header of 60,000 squared", _with_tiff_sides(coded("TIFF")), "a.tif", says=promised)
    gif, bmp = bytearray(coded("GIF")), bytearray(coded("BMP"))
    gif[6:10] = struct.pack("<HH", _SIDE, _SIDE)
    bmp[18:26] = struct.pack("<LL", _SIDE, _SIDE)
    file("GIF header of 60,000 squared", bytes(gif), "a.gif", says=promised)
    file("BMP header of 60,000 squared", bytes(bmp), "a.bmp", says=promised)
    bmp[18:26] = struct.pack("<ll", -5, -(2**31))
    file("BMP header of negative sides", bytes(bmp), "a.bmp")
    bits = (_SIDE % 16384) | (_SIDE % 16384) << 14
    webp = b"RIFF" + struct.pack("<L", 40) + b"WEBPVP8L" + struct.pack("<LBL", 27, 0x2F, bits) + bytes(23)
    file("WebP header of 10,848 squared", webp, "a.webp")
    file("PNG of 2^31 - 1 squared", png(2**31 - 1, 2**31 - 1, b"x"), "a.png")
    file("PNG of no rows", png(5, 0, zlib.compress(b"")), "a.png")
    file("PNG chunk that promises 2 GB", png(4, 4, b"", png_chunk(b"tEXt", b"a\0b", 2**31 - 1)), "a.png")
    file("TIFF tag of 2^32 - 1 values", _grey_tiff(8, 8, bytes(64), tag258=(3, 2**32 - 1, 8)), "a.tif", Outcome.EITHER)
    file(
        "TIFF strips of 2^32 - 1 bytes", _grey_tiff(8, 8, bytes(64), tag279=(4, 1, 2**32 - 1)), "a.tif", Outcome.EITHER
    )
    file("TIFF strip far behind the end", _grey_tiff(8, 8, bytes(64), tag273=(4, 1, 2**32 - 9)), "a.tif")
    file("TIFF of 65,535 channels", _grey_tiff(8, 8, bytes(64), tag277=(3, 1, 65535)), "a.tif")
    file("TIFF of 60,000 bits", _grey_tiff(8, 8, bytes(64), tag258=(3, 1, 60_000)), "a.tif")
    file("TIFF of a compression that nobody knows", _grey_tiff(8, 8, bytes(64), tag259=(3, 1, 34_999)), "a.tif")
    file("TIFF of no rows a strip", _grey_tiff(8, 8, bytes(64), tag278=(4, 1, 0)), "a.tif", Outcome.EITHER)


def _bombs() -> None:
    side, empty = 30_000, zlib.compress(bytes(9 * 28))
    file(
        "PNG bomb of 900 megapixels in 110 kB",
        lambda: png(side, side, zeros_packed(113 << 20), bits=1, colour=0),
        "a.png",
    )
    file("PNG with a text of 200 MB packed", lambda: png(9, 9, empty, _packed_chunk(b"zTXt")), "a.png", Outcome.EITHER)
    file(
        "PNG with a profile of 200 MB packed", lambda: png(9, 9, empty, _packed_chunk(b"iCCP")), "a.png", Outcome.EITHER
    )
    longer = "PNG with 200 MB packed after its last row"
    file(longer, lambda: png(9, 9, empty + zeros_packed(200 << 20)), "a.png", Outcome.EITHER)
    many = png_chunk(b"tEXt", b"a\0b") * 50_000
    file("PNG with 50,000 texts", png(9, 9, empty, many), "a.png", Outcome.EITHER)
    file("TIFF bomb, deflated", lambda: _deflated_tiff(side), "a.tif")
    small = "TIFF of 64 pixels a side whose strip unpacks to 200 MB"
    file(small, lambda: _deflated_tiff(64), "a.tif", Outcome.EITHER)
    file("WebP bomb of 192 megapixels", _large_webp, "a.webp", is_quick=False)
    pages = b"".join(struct.pack("<HL", 0, 8 + 6 * (page + 1)) for page in range(200_000))
    file("TIFF of 200,000 empty pages", b"II*\0" + struct.pack("<L", 8) + pages, "a.tif")
    ring = bytearray(coded("TIFF"))
    start = struct.unpack_from("<L", ring, 4)[0]
    at = start + 2 + 12 * struct.unpack_from("<H", ring, start)[0]
    ring[at : at + 4] = ring[4:8]
    file("TIFF whose pages form a ring", bytes(ring), "a.tif", Outcome.EITHER)
    progressive = coded("JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    file(
        "JPEG of 1,000 scans", progressive[:-2] + progressive[last:-2] * 1000 + progressive[-2:], "a.jpg", says="scans"
    )
    length = 1_000_000
    tags = b"".join(struct.pack("<HHLL", 0x9000 + tag % 4096, 1, length, 240_010) for tag in range(20_000))
    exif = b"II*\0" + struct.pack("<LH", 8, 20_000) + tags + bytes(length)
    file("EXIF that reads a megabyte 20,000 times", coded("PNG", exif=exif), "a.png", says="EXIF")
    moving = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file("GIF that moves", coded("GIF", moving[0], save_all=True, append_images=moving[1:]), "a.gif", says="animated")
    file("PNG that moves", coded("PNG", moving[0], save_all=True, append_images=moving[1:]), "a.png", Outcome.EITHER)
    file("WebP that moves", coded("WEBP", moving[0], save_all=True, append_images=moving[1:]), "a.webp", Outcome.EITHER)


def _packed_chunk(kind: bytes) -> bytes:
    return png_chunk(kind, b"a\0\0" + zeros_packed(200 << 20))


def _deflated_tiff(side: int) -> bytes:
    return _grey_tiff(side, side, zeros_packed(200 << 20), tag259=(3, 1, 8))


def _large_webp() -> bytes:
    return coded("WEBP", PIL.Image.new("RGB", (16_000, 12_000)), lossless=True, method=0)


def _odd() -> None:
    grey = PIL.Image.fromarray(_PIXELS[..., 0])
    pictures = {
        "16-bit PNG": ("PNG", PIL.Image.fromarray(_PIXELS[..., 0].astype(np.uint16) << 8), {}),
        "1-bit PNG": ("PNG", grey.convert("1"), {}),
        "PNG with a palette and a transparent colour": ("PNG", grey.convert("P"), {"transparency": 3}),
        "PNG of grey and alpha": ("PNG", grey.convert("LA"), {}),
        "CMYK JPEG": ("JPEG", PIL.Image.fromarray(_PIXELS).convert("CMYK"), {}),
        "CMYK TIFF": ("TIFF", PIL.Image.fromarray(_PIXELS).convert("CMYK"), {}),
        "LAB TIFF": ("TIFF", PIL.Image.fromarray(_PIXELS).convert("LAB"), {}),
        "progressive JPEG": ("JPEG", None, {"progressive": True}),
        "JPEG with a comment of HTML": ("JPEG", None, {"comment": b"<script>alert(1)</script>"}),
        "TIFF with LZW": ("TIFF", None, {"compression": "tiff_lzw"}),
        "TIFF with JPEG inside": ("TIFF", None, {"compression": "jpeg"}),
        "float TIFF": ("TIFF", PIL.Image.fromarray(_PIXELS[..., 0].astype(np.float32)), {}),
        "big TIFF": ("TIFF", None, {"big_tiff": True}),
        "one pixel": ("PNG", PIL.Image.new("RGB", (1, 1)), {}),
        "PNG of 30,000 by 4 pixels": ("PNG", PIL.Image.new("RGB", (30_000, 4), "white"), {}),
        "PNG of 4 by 30,000 pixels": ("PNG", PIL.Image.new("RGB", (4, 30_000), "white"), {}),
    }
    for name, (format_name, picture, options) in pictures.items():
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(format_name, "png")
        outcome = Outcome.EITHER if "float" in name or "LAB" in name else Outcome.DONE
        file(name, coded(format_name, picture, **options), f"a.{suffix}", outcome)
    exif = PIL.Image.Exif()
    exif[0x0112] = 4711
    file("EXIF of an orientation that there is not", coded("JPEG", exif=exif), "a.jpg", Outcome.DONE)
    file("EXIF of noise", coded("JPEG", exif=b"Exif\0\0" + bytes(range(256)) * 20), "a.jpg", Outcome.EITHER)
    file("PNG with a wrong checksum", coded("PNG")[:29] + b"\0\0\0\0" + coded("PNG")[33:], "a.png")
    file("PNG damaged within", _damaged_within(coded("PNG"), 0.5, 40), "a.png")
    file("bytes after the end of a PNG", coded("PNG") + b"PK\x03\x04" + bytes(500), "a.png", Outcome.DONE)
    doubled = coded("PNG")
    file("PNG with two headers", doubled[:33] + doubled[8:33] + doubled[33:], "a.png", Outcome.EITHER)

    smooth = PIL.Image.linear_gradient("L").convert("RGB")
    whole = coded("JPEG", smooth, quality=95)
    for name, damaged in {
        "M9 JPEG damaged within": _damaged_within(whole, 0.6, 60),
        "M9 JPEG whose second half is gone and whose end is there": whole[: len(whole) // 2] + b"\xff\xd9",
    }.items():
        add(FileCase(GROUP, name, _beside(whole, damaged), Outcome.EITHER, look=_is_doubted))


def _beside(whole: bytes, damaged: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "damaged.jpg").write_bytes(damaged)
        (folder / "whole.jpg").write_bytes(whole)

    return make


def _is_doubted(rows: Rows) -> None:
    """The damaged one of two pictures has an error, or a flag that the whole one has not."""
    damaged, whole = rows
    more = set(damaged["flags"].split(";")) - set(whole["flags"].split(";"))
    assert damaged["error"] or more, "a damaged picture passes without a word"


_truncations()
_wrong_magic()
_huge_headers()
_bombs()
_odd()
