"""The only code that reads the header of a DICOM file: the wanted attributes, within limits.

pydicom makes an object of every item of every sequence that it passes, and unpacks a deflated file as a whole; so 3 MB
can become 6 GB. Here the header is scanned first: unwanted elements are skipped, wanted ones are counted, as deep as
pydicom will parse them, and only then passed to pydicom. Time and memory are proportional to the limits below, whatever
the file promises. Nothing is read beyond the beginning of the pixel data.

The scan follows pydicom's rules for odd files (https://pydicom.github.io, ``filereader.py``): an invalid value
representation means implicit encoding, UN of undefined length is a sequence, items may change to implicit encoding. If
it followed other rules, pydicom could find elements that were not counted.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple, Protocol, cast

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from amsam_med.errors import AmsamError, DataError

PIECE_LIMIT = 300_000
"""The most elements and items that are skipped or read; each one read becomes an object of half a kilobyte."""
DEPTH_LIMIT = 64
"""The deepest nesting of sequences."""
VALUE_LIMIT = 2 << 20
"""The largest value outside sequences that is read, in bytes; larger ones are skipped."""
HEADER_LIMIT = 64 << 20
"""The most bytes of a header that are read, without skipped ones; nested sequences count at each level."""
INFLATED_LIMIT = 256 << 20
"""The end of a header in a deflated file, in unpacked bytes, at most."""

_PREAMBLE = 128  # bytes before "DICM"
_META_LIMIT = 1 << 16  # bytes of group 2
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset(map(int, map(Tag, ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))))
_TRANSFER_SYNTAX, _CHARACTER_SET = int(Tag("TransferSyntaxUID")), int(Tag("SpecificCharacterSet"))
_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_PREVIEW = int(Tag("IconImageSequence"))
_BLOCK = 1 << 16
_UNREADABLE = "a DICOM header that cannot be read; damaged, or no DICOM. Copy or export it again"


class PixelLocation(NamedTuple):
    """Location of the pixel data in a file.

    Attributes:
        tag: PixelData, FloatPixelData or DoubleFloatPixelData.
        vr: Value representation; "OW" where the encoding is implicit.
        start: Offset of the value in bytes; in a deflated file, in its unpacked content.
        length: Of the value, as the header says; None if it is undefined.
    """

    tag: int
    vr: str
    start: int
    length: int | None


class DicomHeader(NamedTuple):
    """The result of reading a header.

    Attributes:
        dataset: The attributes; no private ones.
        syntax: Transfer syntax.
        pixels: Location of the pixel data; None if the file ends before them.
    """

    dataset: Dataset
    syntax: UID
    pixels: PixelLocation | None


def starts_as_dicom(file: IO[bytes]) -> bool:
    """Whether ``file`` begins with DICOM's preamble and prefix."""
    file.seek(_PREAMBLE)
    is_it = file.read(4) == b"DICM"
    file.seek(0)
    return is_it


def read_syntax(file: IO[bytes]) -> UID:
    """The transfer syntax of a file; the file is then at the beginning of its attributes.

    Args:
        file: The file, seekable.

    Raises:
        DataError: The file meta information is damaged.
    """
    with without_quotes(_UNREADABLE):
        return _meta(file)[1]


def read_header(
    file: IO[bytes],
    wanted: Collection[int] | None = None,
    first_items: Collection[int] = (),
    last_group: int = 0xFFFF,
) -> DicomHeader:
    """Read the attributes that come before the pixels.

    Args:
        file: The file, seekable.
        wanted: Tags of the outermost level to read, including everything nested in them; None for all but private
            attributes and preview images.
        first_items: Tags of sequences of which only the first item is read.
        last_group: Reading stops at attributes of higher groups.

    Returns:
        The attributes; empty if there are none.

    Raises:
        DataError: The header is damaged, or beyond the limits of this module. The text quotes nothing of the file.
    """
    with without_quotes(_UNREADABLE):
        meta, syntax = _meta(file)
        if syntax == DeflatedExplicitVRLittleEndian:
            file = cast(IO[bytes], _Inflated(file))
        walk = _Walk(file, is_little=syntax != ExplicitVRBigEndian)
        content, is_implicit, pixels = walk.header(syntax == ImplicitVRLittleEndian, wanted, first_items, last_group)
        dataset = _parsed(content, is_implicit, syntax != ExplicitVRBigEndian)
        if wanted is None:
            _drop_private(dataset)
            dataset.file_meta = FileMetaDataset(_parsed(meta, is_implicit=False, is_little=True))
        return DicomHeader(dataset, syntax, pixels)


@contextmanager
def without_quotes(what: str) -> Iterator[None]:
    """Replace exceptions by a DataError without pydicom's text, which may quote the file and so a patient's data."""
    try:
        yield
    except (AmsamError, MemoryError):
        raise
    except Exception:  # pydicom raises nearly anything on damaged bytes
        raise DataError(what) from None


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int, /) -> int: ...
    def tell(self) -> int: ...


class _Inflated:
    """A stream of the unpacked rest of a deflated file; it only moves forwards and unpacks one block at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._place = 0
        self._last = self._ahead = b""

    def read(self, size: int) -> bytes:
        pieces, missing = [], size
        while missing and (piece := self._some(missing)):
            pieces.append(piece)
            missing -= len(piece)
        self._place += size - missing
        self._last = b"".join(pieces)
        return self._last

    def seek(self, offset: int, whence: int) -> int:
        """Skip forwards, or back within the block that was read last."""
        assert whence == io.SEEK_CUR
        assert -offset <= len(self._last)
        if offset < 0:
            self._ahead = self._last[offset:] + self._ahead
            self._place += offset
        while offset > 0 and (piece := self._some(offset)):
            offset -= len(piece)
            self._place += len(piece)
        return self._place

    def tell(self) -> int:
        return self._place

    def _some(self, most: int) -> bytes:
        if not self._ahead:
            if self._place > INFLATED_LIMIT:
                raise DataError("a deflated DICOM header that does not end; it is damaged, or no image")
            packed: bytes | None = None
            while not self._ahead and not self._inflater.eof and packed != b"":
                packed = self._inflater.unconsumed_tail or self._file.read(_BLOCK)
                self._ahead = self._inflater.decompress(packed, _BLOCK)
        some, self._ahead = self._ahead[:most], self._ahead[most:]
        return some


class _Budget:
    """The remainder of the limits, shared by a header and all sequences nested in it."""

    def __init__(self) -> None:
        self.pieces, self.bytes = PIECE_LIMIT, HEADER_LIMIT

    def take_piece(self) -> None:
        self.pieces -= 1
        if self.pieces < 0:
            raise DataError(f"a DICOM header of more than {PIECE_LIMIT:,} elements; it is damaged, or no image")

    def take_bytes(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise DataError(f"a DICOM header of more than {HEADER_LIMIT:,} bytes; it is damaged, or no image")


class _Element(NamedTuple):
    head: bytes
    tag: int
    vr: str  # empty where the encoding is implicit
    length: int | None  # None: undefined


class _Walk:
    """A scan through a header, element by element."""

    def __init__(self, file: _Readable, is_little: bool, budget: _Budget | None = None) -> None:
        self._file = file
        order = "<" if is_little else ">"
        self._is_little = is_little
        self._implicit, self._explicit = struct.Struct(f"{order}HHL"), struct.Struct(f"{order}HH2sH")
        self._long = struct.Struct(f"{order}L")
        self._end_mark = struct.pack(f"{order}HH", _SEQUENCE_END >> 16, _SEQUENCE_END & 0xFFFF)
        self._budget = budget or _Budget()
        self._copy: list[bytes] | None = None  # collects the bytes of a wanted element while it is scanned

    def header(
        self, is_implicit: bool, wanted: Collection[int] | None, first_items: Collection[int], last_group: int
    ) -> tuple[bytes, bool, PixelLocation | None]:
        """The bytes of the wanted elements, whether their encoding is implicit, and the location of the pixels."""
        content: list[bytes] = []
        head = self._read(8)
        is_implicit = _is_implicit(head, is_implicit)
        while (element := self._element(head, is_implicit)) is not None and element.tag != _ITEM_END:
            if element.tag in _PIXELS:
                place = PixelLocation(element.tag, element.vr or "OW", self._file.tell(), element.length)
                return b"".join(content), is_implicit, place
            if element.tag >> 16 > last_group:
                break
            if element.tag in first_items:
                content += self._first_item(element, is_implicit)
            elif _is_wanted(element.tag, wanted):
                content += self._whole(element, is_implicit)
            else:
                self._pass(element, is_implicit, depth=0, is_deep=False)
            head = self._read(8)
        return b"".join(content), is_implicit, None

    def sequence(self, is_implicit: bool, depth: int, is_deep: bool, end: int | None, head: bytes = b"") -> None:
        """Scan the items of a sequence up to its delimiter, or up to ``end``."""
        if depth > DEPTH_LIMIT:
            raise DataError(f"a DICOM header of more than {DEPTH_LIMIT} sequences within each other; it is damaged")
        while end is None or self._file.tell() < end:
            head = head or self._read(8)
            if len(head) < 8:
                return
            group, number, length = self._implicit.unpack(head)
            if group << 16 | number == _SEQUENCE_END:
                return
            self._budget.take_piece()
            self._item(length, is_implicit, depth, is_deep)
            head = b""

    def _item(self, length: int, is_implicit: bool, depth: int, is_deep: bool) -> None:
        if length != _UNDEFINED and not is_deep:
            self._skip(length)  # an unwanted item costs nothing, whatever is in it
            return
        start = self._file.tell()
        is_first = True
        while length == _UNDEFINED or self._file.tell() - start < length:
            head = self._read(8)
            is_implicit = is_implicit or (is_first and _is_implicit(head, is_implicit))
            is_first = False
            element = self._element(head, is_implicit)
            if element is None or element.tag == _ITEM_END:
                return
            self._pass(element, is_implicit, depth, is_deep)

    def _element(self, head: bytes, is_implicit: bool) -> _Element | None:
        """The element that begins with ``head`` (8 bytes); None at the end of the file."""
        if len(head) < 8:
            return None
        self._budget.take_piece()
        group, number, vr, length = self._explicit.unpack(head)
        if is_implicit or not b"AA" <= vr <= b"ZZ":
            vr = b""
            length = self._implicit.unpack(head)[2]
        elif vr in _LONG:
            more = self._read(4)
            if len(more) < 4:
                return None
            head, length = head + more, self._long.unpack(more)[0]
        return _Element(head, group << 16 | number, vr.decode("latin1"), None if length == _UNDEFINED else length)

    def _pass(self, element: _Element, is_implicit: bool, depth: int, is_deep: bool) -> None:
        """Move behind the value of an element, counting what is nested in it if ``is_deep``."""
        if element.length is None:
            self._pass_undefined(element, is_implicit, depth, is_deep)
        elif is_deep and _representation(element.tag, element.vr) == "SQ":
            self._count(self._read(element.length), is_implicit, depth + 1)
        else:
            self._skip(element.length)

    def _pass_undefined(self, element: _Element, is_implicit: bool, depth: int, is_deep: bool) -> None:
        head, vr = b"", _representation(element.tag, element.vr)
        if element.vr != "UN" and vr != "SQ":
            head = self._read(8)
            if vr or not self._is_tag(head, _ITEM):
                if is_deep:  # where it ends is a guess, and pydicom's might be another
                    raise DataError("a DICOM header with compressed pixels within a sequence. Export it again")
                self._pass_fragments(head)
                return
        self.sequence(is_implicit, depth + 1, is_deep, end=None, head=head)

    def _pass_fragments(self, head: bytes) -> None:
        """Move behind the delimiter of a value that is not a sequence."""
        while self._is_tag(head, _ITEM):
            self._budget.take_piece()
            self._skip(self._implicit.unpack(head)[2])
            head = self._read(8)
        while (at := head.find(self._end_mark)) < 0:
            if not (block := self._read(_BLOCK)):
                return
            head = head[-3:] + block  # the four bytes of the delimiter may lie across two blocks
        self._skip(at + 8 - len(head))

    def _is_tag(self, head: bytes, tag: int) -> bool:
        return len(head) == 8 and self._implicit.unpack(head)[:2] == (tag >> 16, tag & 0xFFFF)

    def _count(self, value: bytes, is_implicit: bool, depth: int) -> None:
        """Count the elements in the value of a sequence."""
        self._budget.take_bytes(len(value))
        inner = _Walk(io.BytesIO(value), self._is_little, self._budget)
        inner.sequence(is_implicit, depth, is_deep=True, end=len(value))

    def _whole(self, element: _Element, is_implicit: bool) -> list[bytes]:
        """An element with its value; nothing if the value is too large."""
        is_flat = _representation(element.tag, element.vr) not in ("SQ", "UN" if element.length is None else "SQ")
        if is_flat and (element.length is None or element.length > VALUE_LIMIT):
            self._pass(element, is_implicit, depth=0, is_deep=False)
            return []
        self._copy = [element.head]
        self._pass(element, is_implicit, depth=0, is_deep=True)
        copy, self._copy = self._copy, None
        return copy

    def _first_item(self, element: _Element, is_implicit: bool) -> list[bytes]:
        """A sequence reduced to its first item, as bytes.

        An enhanced file has an item per frame, and the reader uses the first one only.
        """
        end = None if element.length is None else self._file.tell() + element.length
        head = self._read(8)
        if len(head) < 8:
            return []
        group, number, length = self._implicit.unpack(head)
        if group << 16 | number == _SEQUENCE_END and end is None:
            return []
        self._copy = [head]
        self._item(length, is_implicit, depth=1, is_deep=True)
        item, self._copy = self._copy, None
        if end is None:
            self.sequence(is_implicit, depth=1, is_deep=False, end=None)
        else:
            self._skip(max(end - self._file.tell(), 0))
        start = element.head[:4] + (b"SQ\0\0" if element.vr else b"") + b"\xff" * 4
        return [start, *item, self._end_mark + b"\0" * 4]

    def _read(self, size: int) -> bytes:
        if self._copy is None:
            return self._file.read(size)
        self._budget.take_bytes(size)
        block = self._file.read(size)
        self._copy.append(block)
        return block

    def _skip(self, size: int) -> None:
        if self._copy is None:
            self._file.seek(size, io.SEEK_CUR)
        else:
            self._read(size)


def _is_implicit(head: bytes, is_assumed: bool) -> bool:
    """Whether an element has no value representation (two capital letters after its tag)."""
    return is_assumed if len(head) < 6 else not (0x40 < head[4] < 0x5B and 0x40 < head[5] < 0x5B)


def _is_wanted(tag: int, wanted: Collection[int] | None) -> bool:
    if wanted is None:
        return not tag >> 16 & 1 and tag != _PREVIEW  # groups of private attributes have odd numbers
    return tag in wanted or tag == _CHARACTER_SET  # without it, names cannot be decoded


def _representation(tag: int, vr: str) -> str:
    """The value representation that pydicom will use for an element; empty if it is not known."""
    if vr not in ("", "UN"):
        return vr
    try:
        return dictionary_VR(tag)
    except KeyError:
        return vr


def _meta(file: IO[bytes]) -> tuple[bytes, UID]:
    """Group 2 and the transfer syntax, given or guessed; the file is then at the beginning of its attributes."""
    file.seek(_PREAMBLE)
    start = _PREAMBLE + 4 if file.read(4) == b"DICM" else 0
    file.seek(start)
    content, given = bytearray(), b""
    while len(head := file.read(8)) == 8 and head[:2] == b"\x02\0" and len(content) < _META_LIMIT:
        length = int.from_bytes(head[6:], "little")
        if head[4:6] in _LONG:
            more = file.read(4)
            head, length = head + more, int.from_bytes(more, "little")
        value = file.read(min(length, _META_LIMIT))
        content += head + value
        if int.from_bytes(head[2:4], "little") == _TRANSFER_SYNTAX & 0xFFFF:
            given = value
    file.seek(start + len(content))
    if name := given.decode("ascii", errors="replace").strip("\0 "):
        return bytes(content), UID(name)
    # Old files have no group 2. With explicit encoding, two letters follow the first tag.
    first = head[:6]
    if not first[4:].isalpha():
        return bytes(content), ImplicitVRLittleEndian
    return bytes(content), ExplicitVRLittleEndian if first[1] == 0 else ExplicitVRBigEndian


def _parsed(content: bytes, is_implicit: bool, is_little: bool) -> Dataset:
    # pydicom guesses the encoding from the first element, which may be an odd one; so a plain one is put before it.
    order = "<" if is_little else ">"
    encoding = struct.pack("<L", 4) if is_implicit else b"UL" + struct.pack(f"{order}H", 4)
    first = struct.pack(f"{order}HH", 1, 1) + encoding + bytes(4)
    dataset = read_dataset(io.BytesIO(first + content), is_implicit, is_little)
    del dataset[1, 1]
    return dataset


def _drop_private(dataset: Dataset) -> None:
    """Remove private attributes at every depth before pydicom parses them: the scan did not count what they contain."""
    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
        elif _representation(tag, dataset.get_item(tag).VR or "") == "SQ":
            for item in dataset[tag].value:
                _drop_private(item)
