"""Names of files and folders: whatever a file system takes, and nobody would type."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import PIL.Image

from tests.attack.cases import FileCase, Outcome, Rows, add
from tests.attack.files.pictures import coded

GROUP = "names"

_PICTURE = coded("PNG")

STEMS: dict[str, str | bytes] = {
    "255 bytes": "x" * 251,
    "255 bytes of three each": "病" * 83 + "xx",
    "a space": " ",
    "spaces at both ends": "  two  words ",
    "a line feed": "new\nline",
    "a carriage return": "new\rline",
    "a tab at its start": "\ttab",
    "a vertical tab and a bell": "bell\x0b\x07",
    "an escape sequence": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "a delete": "del\x7f\x9b",
    "a dash at its start": "-o",
    "two dashes at its start": "--overwrite",
    "right to left": "\u202egnp.exe",
    "Hebrew": "שלום",
    "zero width": "a\u200bb\u200d\ufeff",
    "a line separator": "a\u2028b\u2029c",
    "an emoji of several": "👩🏽‍🔬",
    "a hundred marks on a letter": "e" + "\u0301" * 100,
    "HTML": "<img src=x onerror=alert(1)>",
    "a script": "<script>alert(1)<\\script>",
    "quotes": 'quote\'s "and" more`',
    "a closed attribute": '" onmouseover="alert(1)',
    "an entity": "&lt;b&gt;&#0;",
    "a shell's substitution": "$(touch PROOF)",
    "a shell's separator": "a; touch PROOF &",
    "a template": "{{7*7}}${7*7}#{7*7}",
    "a format": "%s%n%d{0}{x!r}",
    "a colour of rich": "[red]bold[bold] [nope",
    "an expression of a configuration": "$__import__('os').system('touch PROOF')",
    "a reference of a configuration": "@bundle_root",
    "a macro of a configuration": "%inference.yaml",
    "M8 a formula": "=cmd|'C calc'!A0",
    "M8 a formula that sums": "@SUM(1+1)*cmd",
    "M8 a plus": "+1+1",
    "M8 a minus": "-1+1",
    "commas and semicolons": 'a,b;c","d',
    "a backslash": "up\\..\\..\\PROOF",
    "a colon": "C:PROOF",
    "a percent sign": "%2e%2e%2fPROOF",
    "an address": "http:x.com?a=b#c",
    "a DICOMweb address": "dicomweb:http:127.0.0.1",
    "a home": "~root",
    "a device of Windows": "CON",
    "wildcards": "*?[a]",
    "a point at its end": "end.",
    "two points": "..",
    "SQL": "'); DROP TABLE files;--",
    "M8 bytes that are no UTF-8": b"caf\xe9",
    "M8 bytes that are nothing": b"\xff\xfe\x80",
    "a lone surrogate in UTF-8": b"\xed\xa0\x80",
    "an overlong slash in UTF-8": b"\xc0\xaf",
}


def _picture(stem: str | bytes) -> Callable[[Path], object]:
    name = os.fsencode(stem) + b".png"

    def make(folder: Path) -> None:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(_PICTURE)

    return make


def _several(*names: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(pages(3) if name.endswith((".tif", ".tiff")) else _PICTURE + bytes(number))

    return make


def pages(count: int) -> bytes:
    """A TIFF of several pages."""
    frames = [PIL.Image.new("RGB", (24, 16), (40 * number, 90, 200)) for number in range(count)]
    return coded("TIFF", frames[0], save_all=True, append_images=frames[1:])


def _are_apart(count: int) -> Callable[[Rows], None]:
    def look(rows: Rows) -> None:
        masks = {row["mask_file"].casefold() for row in rows}
        assert len(rows) == len(masks) == count, f"{len(rows)} rows, {len(masks)} masks of {count} pictures"

    return look


def _named() -> None:
    for name, stem in STEMS.items():
        outcome = Outcome.ANY if stem == ".." else Outcome.DONE
        add(FileCase(GROUP, name, _picture(stem), outcome))
    add(FileCase(GROUP, "nothing but a suffix", _picture(""), Outcome.ANY))
    add(FileCase(GROUP, "a hidden picture", _picture(".hidden"), Outcome.NOTHING))
    add(FileCase(GROUP, "a name in capitals", _several("A.PNG"), Outcome.DONE))
    add(FileCase(GROUP, "two suffixes", _several("a.png.exe"), Outcome.NOTHING))
    add(FileCase(GROUP, "names like our own results", _several("results.csv.png", "run.json.png", "a_segmentation.png"),
                 Outcome.DONE))  # fmt: skip


def _alike() -> None:
    for name, names, count in (
        ("C3 a file of pages beside a picture of a page's name", ("scan.tif", "scan_0001.png"), 4),
        ("C3 the same, in the other order", ("aa_0002.png", "aa.tif"), 4),
        ("C3 two files of pages beside two pictures", ("s.tif", "s.tiff", "s_0001.png", "s.tiff_0001.png"), 8),
        ("C3 a page's name in capitals", ("scan.tif", "SCAN_0003.PNG"), 4),
        ("one stem", ("a.png", "a.jpg", "a.bmp"), 3),
        ("one stem, and the name that the second would get", ("a.bmp", "a.png", "a.png.png", "a.png-2.png"), 4),
        ("names that differ in case alone", ("Name.png", "name.png", "NAME.png"), 3),
        ("names that fold to one", ("straße.png", "STRASSE.png"), 2),
        ("names that compose to one", ("u\u0308.png", "ü.png"), 2),
        ("names that are cut to one", ("x" * 240 + "a.png", "x" * 240 + "b.png"), 2),
        ("a folder and a picture of one name", ("a/b.png", "a.png", "a_b.png"), 3),
        ("spaces and underscores", ("a b.png", "a_b.png", "a  b.png"), 3),
    ):
        add(FileCase(GROUP, name, _several(*names), Outcome.DONE, look=_are_apart(count)))


def _deep() -> None:
    def folders_of(part: str, depth: int) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            here = os.open(folder, os.O_RDONLY)
            try:
                for _ in range(depth):
                    os.mkdir(part, dir_fd=here)
                    below = os.open(part, os.O_RDONLY, dir_fd=here)
                    os.close(here)
                    here = below
                file = os.open("a.png", os.O_CREAT | os.O_WRONLY, dir_fd=here)
                os.write(file, _PICTURE)
                os.close(file)
            finally:
                os.close(here)

        return make

    add(FileCase(GROUP, "100 folders deep", folders_of("d", 100), Outcome.DONE))
    add(FileCase(GROUP, "H5 1,200 folders deep", folders_of("d", 1200), Outcome.EITHER))
    add(FileCase(GROUP, "H5 deeper than a path may be", folders_of("d" * 200, 40), Outcome.ANY))
    add(FileCase(GROUP, "a folder of a formula", _several("=1+1/a.png"), Outcome.DONE))
    add(FileCase(GROUP, "a folder called like a picture", lambda folder: (folder / "a.png").mkdir(), Outcome.ANY))
    add(FileCase(GROUP, "a folder called like results", _several("masks/a.png", "overlays/b.jpg.png"), Outcome.DONE))


_named()
_alike()
_deep()
