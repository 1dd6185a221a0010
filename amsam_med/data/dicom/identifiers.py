"""Find and replace the parts of a DICOM file's path that identify the patient.

Names are compared without regard to case, accents and their encoding (macOS stores a letter and its accent separately),
and umlauts also as two letters. Names of one or two letters must stand alone, or beside the rest of the name; Chinese,
Japanese and Korean names of two characters may stand anywhere. Dates of birth are recognised in the usual orders of
day, month and year, identifiers by their digits and letters alone.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from amsam_med.data.dicom.header import read_header, starts_as_dicom
from amsam_med.data.dicom.reader import is_named_dicom
from amsam_med.data.quiet import quiet_decoders
from amsam_med.errors import DataError
from amsam_med.opening import open_regular

_NAMED = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_NUMBERED = ("PatientID", "OtherPatientIDs", "AccessionNumber")
_OTHER_IDS = "OtherPatientIDsSequence"
_BORN = "PatientBirthDate"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_WANTED = frozenset(int(Tag(keyword)) for keyword in (*_NAMED, *_NUMBERED, _OTHER_IDS, _BORN, *_UIDS))
_LAST_GROUP = 0x20  # of the header that is read: no wanted attribute has a higher group
_SHORTEST = 3  # characters: shorter words occur in too many names by chance, unless they stand alone
_SHORTEST_IDEOGRAPHIC = 2
_LONGEST = 256  # characters of a value; DICOM allows 64, and of names three times that
_MOST_WORDS = 60  # of a header's names: bounds the pattern that each part of the path is searched for
_IDEOGRAPHIC = "\u1100"  # this and what follows: Hangul, kana, Han
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
_STROKES = str.maketrans({"ø": "o", "æ": "ae", "ł": "l", "đ": "d", "\u0131": "i"})  # NFKD does not decompose these
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@quiet_decoders()
def without_identifiers(source: Path | IO[bytes], text: str, secret: bytes | None = None) -> str:
    """A path as text, with the parts replaced that contain the patient's name, an identifier or the date of birth.

    A folder becomes "study-" and a file "image-", followed by ten digits of a digest of the study's or the instance's
    UID, so that files of one study stay together. Paths of files that are not DICOM or cannot be read are returned
    unchanged. Only the header is read, within the limits of :mod:`amsam_med.data.dicom.header`.

    Args:
        source: The file, or a seekable stream of it.
        text: The part of its path that is to be shown.
        secret: Key of the digests if results are de-identified; the UIDs of study, series and instance are then
            replaced as well. Without it the digest is the UID's sha256.
    """
    if (header := _header(source)) is None:
        return text
    patterns = [*_of_names(_words(header)), *_of_numbers(header), *_of_birth(_value(header, _BORN))]
    patterns += [] if secret is None else _of_uids(header)
    if not patterns:
        return text
    pattern = re.compile("|".join(patterns))
    *folders, name = PurePosixPath(text).parts or ("",)
    study, image = _value(header, "StudyInstanceUID"), _value(header, "SOPInstanceUID") or name
    shown = [_digest("study", study, secret) if _reveals(pattern, folder) else folder for folder in folders]
    suffix = "".join(PurePosixPath(name).suffixes[-1:]) if PurePosixPath(name).suffix[1:].isalpha() else ""
    if _reveals(pattern, name):
        suffix = "" if _reveals(pattern, suffix) else suffix
        name = _digest("image", image, secret) + suffix
    return PurePosixPath(*shown, name).as_posix()


@quiet_decoders()
def _header(source: Path | IO[bytes]) -> Dataset | None:
    """The attributes that identify a patient; None if the file is not DICOM or cannot be read (its reader says so)."""
    try:
        if isinstance(source, Path):
            with open_regular(source) as file:
                return _read(file, is_named_dicom(source))
        return _read(source, is_named=False)
    except (OSError, DataError):
        return None


def _read(file: IO[bytes], is_named: bool) -> Dataset | None:
    if not starts_as_dicom(file) and not is_named:
        return None
    return read_header(file, _WANTED, last_group=_LAST_GROUP).dataset


def _value(header: Dataset, keyword: str) -> str:
    return next(_values(header, keyword), "")


def _values(header: Dataset, keyword: str) -> Iterator[str]:
    """The values of an attribute as text; none where they cannot be read."""
    try:
        value = header.get(keyword)
        for one in value if isinstance(value, MultiValue) else [value]:
            if one is not None and (text := str(one)[:_LONGEST]):
                yield text
                # Without a declared character set, a name is also read as UTF-8.
                if isinstance(one, PersonName) and one.original_string and not header.get("SpecificCharacterSet"):
                    yield bytes(one.original_string)[:_LONGEST].decode("utf-8", errors="replace")
    except Exception:  # pydicom raises nearly anything on a damaged value
        return


def _words(header: Dataset) -> list[list[str]]:
    """The words of each name, separately for each of its scripts (alphabetic, ideographic, phonetic)."""
    names = itertools.chain.from_iterable(_values(header, keyword) for keyword in _NAMED)
    scripts = itertools.chain.from_iterable(name.split("=") for name in names)
    return [[word for word in re.split(r"[\W_]+", unicodedata.normalize("NFC", script)) if word] for script in scripts]


def _of_names(names: Iterable[list[str]]) -> Iterator[str]:
    """Patterns for names, to be searched for in folded text."""
    words = list(dict.fromkeys(itertools.chain.from_iterable(names)))[:_MOST_WORDS]
    # Joined names as well: "An Li" has no word long enough by itself, "anli" and "lian" are.
    whole = ["".join(order) for name in names for order in (name[:2], name[1::-1], name) if len(name) > 1]
    for word in itertools.chain.from_iterable(map(_spellings, words)):
        shortest = _SHORTEST_IDEOGRAPHIC if word[0] >= _IDEOGRAPHIC else _SHORTEST
        if len(word) >= shortest:
            yield re.escape(word)
        elif len(word) == 2 or word[0] >= _IDEOGRAPHIC:
            yield rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])"
    for word in itertools.chain.from_iterable(map(_spellings, whole[:_MOST_WORDS])):
        if len(word) >= (_SHORTEST_IDEOGRAPHIC if word[0] >= _IDEOGRAPHIC else _SHORTEST):
            yield re.escape(word)


def _of_numbers(header: Dataset) -> Iterator[str]:
    numbers = [number for keyword in _NUMBERED for number in _values(header, keyword)]
    with suppress(Exception):  # as above
        numbers += [number for item in header.get(_OTHER_IDS) or [] for number in _values(item, "PatientID")]
    for number in numbers[:_MOST_WORDS]:
        plain = _folded(re.sub(r"[\W_]+", "", number))
        for word in {plain, plain.lstrip("0")}:  # people pad identifiers with zeros, or leave them out
            if len(word) >= _SHORTEST:
                yield rf"(?<!\d)0*{re.escape(word)}(?!\d)"


def _of_birth(date: str) -> Iterator[str]:
    """Patterns for a date: year, month and day in any usual order, in digits or with the month's name."""
    if not (parts := re.fullmatch(r"(\d{4})[.]?(\d\d)[.]?(\d\d)", date.strip())):
        return
    year, month, day = parts.groups()
    short = f"(?:{year[:2]})?{year[2:]}"
    orders = [(short, month, day), (day, month, short), (month, day, short)]
    for order in orders:
        yield r"(?<!\d)" + r"[\W_]{0,2}".join(order) + r"(?!\d)"
        without_zeros = [f"0?{part[1]}" if part.startswith("0") else part for part in order]
        yield r"(?<!\d)" + r"[\W_]{1,3}".join(without_zeros) + r"(?!\d)"
    if 1 <= int(month) <= len(_MONTHS):
        named, plain_day = rf"{_MONTHS[int(month) - 1]}[a-z]*", f"0?{int(day)}"
        yield rf"(?<!\d){plain_day}[\W_]{{0,2}}{named}[\W_]{{0,2}}{short}(?!\d)"
        yield rf"{named}[\W_]{{0,2}}{plain_day}[\W_]{{1,2}}{short}(?!\d)"
        yield rf"(?<!\d){short}[\W_]{{0,2}}{named}[\W_]{{0,2}}{plain_day}(?!\d)"


def _of_uids(header: Dataset) -> Iterator[str]:
    for keyword in _UIDS:
        if numbers := re.findall(r"\d+", _value(header, keyword)):
            yield rf"(?<!\d){'[._-]'.join(numbers)}(?!\d)"


def _reveals(patterns: re.Pattern[str], part: str) -> bool:
    # Searched with and without separators, which people put into names and numbers as they like.
    folded = _folded(part)
    return bool(patterns.search(folded) or patterns.search(re.sub(r"[\W_]+", "", folded)))


def _folded(text: str) -> str:
    """The text without case and accents, however the accents are encoded."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter)).translate(_STROKES)


def _spellings(word: str) -> set[str]:
    """A word without case and accents, and also with umlauts as two letters; empty spellings are left out."""
    return {spelling for spelling in (_folded(word), _folded(word.casefold().translate(_UMLAUTS))) if spelling}


def _digest(kind: str, uid: str, secret: bytes | None) -> str:
    digest = hashlib.sha256(uid.encode()) if secret is None else hmac.new(secret, uid.encode(), "sha256")
    return f"{kind}-{digest.hexdigest()[:10]}"
