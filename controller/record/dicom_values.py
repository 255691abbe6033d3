"""Values as DICOM wants them: decimal strings, dates, identifiers, texts cut to length, and large arrays as raw elements.

Arrays of spots are put into a dataset as the bytes that go to the file; pydicom turns them into numbers only for who asks,
which makes writing tens of thousands of values a matter of copying. Not responsible for what the values mean: see
`dicom_record`.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import format_number_as_ds

EXPLICIT_MAX_BYTES = 0xFFFE  # a value of FL or IS longer than this cannot be written with an explicit VR
PRIVATE_CREATOR = "IONGANTRY 1.0"
PRIVATE_GROUP = 0x3009
CODING_SCHEME = "99IONGANTRY"

_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


def decimal(value: float) -> str:
    """A DS of at most 16 characters."""
    return format_number_as_ds(float(value))


def text(value: str, length: int) -> str:
    """A one-line string that fits: backslashes and control characters become spaces."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in value)[:length].strip()


def date_or_empty(value: str) -> str:
    """A DA that was valid, or nothing: other people's plans carry others."""
    return value if _DATE.fullmatch(value) else ""


def time_or_empty(value: str) -> str:
    """A TM that was valid, or nothing."""
    return value if _TIME.fullmatch(value) else ""


def uid_or(value: str, *entropy: object) -> str:
    """A UID that is valid, or a new one made from `entropy`."""
    return value if len(value) <= 64 and _UID.fullmatch(value) else make_uid(*entropy)


def make_uid(*entropy: object) -> str:
    """A UID under 2.25 that depends on nothing but its arguments: equal runs give equal files."""
    digest = hashlib.sha256("\x1f".join(str(e) for e in entropy).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def date_of(moment: datetime) -> str:
    """DA."""
    return moment.strftime("%Y%m%d")


def time_of(moment: datetime) -> str:
    """TM to the microsecond."""
    return moment.strftime("%H%M%S.%f")


def moment_of(moment: datetime) -> str:
    """DT to the microsecond, with its offset from UTC."""
    return moment.strftime("%Y%m%d%H%M%S.%f%z")


def code_item(value: str, meaning: str) -> Dataset:
    """A code of this program's own scheme."""
    item = Dataset()
    item.CodeValue = text(value, 16) or "UNKNOWN"
    item.CodingSchemeDesignator = CODING_SCHEME
    item.CodingSchemeVersion = "1"
    item.CodeMeaning = text(meaning, 64) or item.CodeValue
    return item


def put_floats(item: Dataset, keyword: str, values: NDArray[Any], *, implicit: bool) -> None:
    """An FL element from an array."""
    _put_raw(item, keyword, values.astype("<f4").tobytes(), implicit)


def put_integers(item: Dataset, keyword: str, values: Iterable[int], *, implicit: bool) -> None:
    """An IS element from integers."""
    joined = "\\".join(map(str, values)).encode("ascii")
    _put_raw(item, keyword, joined + b" " * (len(joined) % 2), implicit)


def _put_raw(item: Dataset, keyword: str, data: bytes, implicit: bool) -> None:
    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    tag: BaseTag = Tag(number)
    item.set_original_encoding(implicit, True, default_encoding)  # lets pydicom write raw elements as they are
    vr = None if implicit else dictionary_VR(tag)
    item[tag] = RawDataElement(tag, vr, len(data), data, 0, implicit, True)


def put_private(item: Dataset, element: int, vr: str, value: Any) -> None:
    """An element of this program's private block."""
    item.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True).add_new(element, vr, value)


def fits_explicit(pieces: int, index_digits: int) -> bool:
    """Whether a layer of so many pieces can be written with explicit VRs: positions are two FL, indices a text."""
    return 8 * pieces <= EXPLICIT_MAX_BYTES and (index_digits + 1) * pieces <= EXPLICIT_MAX_BYTES


def interleave(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """x0, y0, x1, y1, ...: shape (2n,)."""
    return np.stack([x, y], axis=1).ravel()
