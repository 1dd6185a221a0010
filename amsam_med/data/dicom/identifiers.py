"""Whether the path of a DICOM file tells whose image it is, and the path without that.

Names are compared without regard to case, accents and how those are encoded (macOS writes a letter and its accent
apart), and umlauts also as two letters. Names of one or two letters must stand alone, or beside the rest of the name;
Chinese, Japanese and Korean ones of two characters may stand anywhere. Dates of birth are known in the orders that
people write them in, numbers by their digits and letters alone.
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
_LAST_GROUP = 0x20
_SHORTEST = 3  # characters: shorter words stand in too many names by chance, unless they stand alone
_SHORTEST_IDEOGRAPHIC = 2
_LONGEST = 256  # characters of a value; DICOM allows 64, and of names three times that
_MOST_WORDS = 60
_IDEOGRAPHIC = "\u1100"  # this and what follows: Hangul, kana, Han
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
_STROKES = str.maketrans({"ø": "o", "æ": "ae", "ł": "l", "đ": "d", "\u0131": "i"})  # letters that no accent comes off
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@quiet_decoders()
def without_identifiers(source: Path | IO[bytes], text: str, secret: bytes | None = None) -> str:
    """A path as text, its parts replaced that hold the patient's name, an identifier or the date of birth.

    A folder becomes "study-" and a file "image-" with ten digits of a digest of the study's or the instance's UID, so
    that files of one study stay together. Other files than DICOM, and DICOM files that cannot be read, are left alone.
    Only the header is read, within the limits of :mod:`amsam_med.data.dicom.header`.

    Args:
        source: The file, or what is open of it, seekable.
        text: What is to be shown of its path.
        secret: Where results are de-identified, what keys the digests; then the UIDs of the study, the series and the
            instance are identifiers, too. Without it the digest is the UID's sha256.
    """
    if (header := _header(source)) is None:
        return text
    telling = [*_of_names(_words(header)), *_of_numbers(header), *_of_birth(_value(header, _BORN))]
    telling += [] if secret is None else _of_uids(header)
    if not telling:
        return text
    pattern = re.compile("|".join(telling))
    *folders, name = PurePosixPath(text).parts or ("",)
    study, image = _value(header, "StudyInstanceUID"), _value(header, "SOPInstanceUID") or name
    shown = [_digest("study", study, secret) if _tells(pattern, folder) else folder for folder in folders]
    suffix = "".join(PurePosixPath(name).suffixes[-1:]) if PurePosixPath(name).suffix[1:].isalpha() else ""
    if _tells(pattern, name):
        suffix = "" if _tells(pattern, suffix) else suffix
        name = _digest("image", image, secret) + suffix
    return PurePosixPath(*shown, name).as_posix()


@quiet_decoders()
def _header(source: Path | IO[bytes]) -> Dataset | None:
    """What may tell of a patient; None for what is no DICOM, or cannot be read: its reader will say so."""
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
                if isinstance(one, PersonName) and one.original_string and not header.get("SpecificCharacterSet"):
                    yield bytes(one.original_string)[:_LONGEST].decode("utf-8", errors="replace")
    except Exception:  # pydicom raises nearly anything on a damaged value
        return


def _words(header: Dataset) -> list[list[str]]:
    """The words of each name, in each of its scripts."""
    names = itertools.chain.from_iterable(_values(header, keyword) for keyword in _NAMED)
    scripts = itertools.chain.from_iterable(name.split("=") for name in names)
    return [[word for word in re.split(r"[\W_]+", unicodedata.normalize("NFC", script)) if word] for script in scripts]


def _of_names(names: Iterable[list[str]]) -> Iterator[str]:
    """Patterns for folded text."""
    words = list(dict.fromkeys(itertools.chain.from_iterable(names)))[:_MOST_WORDS]
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
        for word in {plain, plain.lstrip("0")}:
            if len(word) >= _SHORTEST:
                yield rf"(?<!\d)0*{re.escape(word)}(?!\d)"


def _of_birth(date: str) -> Iterator[str]:
    """Patterns for a date, as year, month, day in any usual order, in digits or with the month's name."""
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


def _tells(telling: re.Pattern[str], part: str) -> bool:
    folded = _folded(part)
    return bool(telling.search(folded) or telling.search(re.sub(r"[\W_]+", "", folded)))


def _folded(text: str) -> str:
    """Without case and accents, however the latter are encoded."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter)).translate(_STROKES)


def _spellings(word: str) -> set[str]:
    """A word without case and accents, and with umlauts as two letters; nothing of what has no letters left."""
    return {spelling for spelling in (_folded(word), _folded(word.casefold().translate(_UMLAUTS))) if spelling}


def _digest(kind: str, uid: str, secret: bytes | None) -> str:
    digest = hashlib.sha256(uid.encode()) if secret is None else hmac.new(secret, uid.encode(), "sha256")
    return f"{kind}-{digest.hexdigest()[:10]}"
