"""Splitting DICOM bytes into elements (PS3.5 section 7, PS3.10 section 7), with every length held against the bytes there
are.

A plan file is a few hundred small elements and two long ones per control point. Only positions are stored, nothing is copied
or converted, sequences of defined length are split when asked for: reading a plan costs a third of a general toolkit.
Explicit and implicit VR, both endians, defined and undefined lengths, UN sequences. Not responsible for values (`raw`) nor
for any other use of DICOM; files are written with pydicom.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from struct import Struct

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_DEPTH_MAX = 24  # assumed: plans nest five deep; guards the stack
_TAG_LENGTH = {True: Struct("<HHL"), False: Struct(">HHL")}
_TAG_VR = {True: Struct("<HH2sH"), False: Struct(">HH2sH")}
_LENGTH = {True: Struct("<L"), False: Struct(">L")}


class Damaged(Exception):
    """The bytes are not what their lengths declare. `args`: (what, value, limit)."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a stretch of bytes is encoded."""

    implicit: bool
    little: bool


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element's value lies. `vr` is "" when implicit; `items` holds sequences of undefined length, split already."""

    vr: str
    start: int
    length: int
    items: tuple[Elements, ...] | None = None


class Elements:
    """The elements of a dataset or item, by tag, over the bytes of the whole file."""

    __slots__ = ("coding", "data", "table")

    def __init__(self, data: bytes, coding: Coding, table: dict[int, Element]):
        self.data = data
        self.coding = coding
        self.table = table

    def value(self, element: Element) -> bytes:
        """The bytes of an element's value."""
        return self.data[element.start : element.start + element.length]

    def sequence(self, element: Element) -> tuple[Elements, ...]:
        """Items of a sequence element.

        Raises:
            Damaged: the items are not what they declare.
        """
        if element.items is not None:
            return element.items
        # Sequences sent as UN are implicit little endian inside (PS3.5 section 6.2.2).
        coding = Coding(True, True) if element.vr == "UN" else self.coding
        return _items(self.data, element.start, element.start + element.length, coding, 1, undefined=False)[0]


def split_file(data: bytes, inflated_max: int) -> tuple[Elements, Elements]:
    """(file meta elements, data set) of a PS3.10 file.

    Args:
        data: the whole file, with the DICM prefix (not checked here).
        inflated_max: a deflated data set may not grow beyond this many bytes.

    Raises:
        Damaged: cut short, wrong lengths, unknown transfer syntax.
    """
    explicit = Coding(False, True)
    end = _meta_end(data)
    meta = Elements(data, explicit, _split(data, 132, end, explicit, 0)[0])
    element = meta.table.get(0x00020010)
    syntax = meta.value(element).decode("ascii", "replace").strip(" \0") if element else ""
    if syntax == DEFLATED:
        data, end = _inflate(data[end:], inflated_max), 0
    codings = {IMPLICIT_LITTLE: Coding(True, True), EXPLICIT_BIG: Coding(False, False)}
    if syntax not in codings and syntax not in (EXPLICIT_LITTLE, DEFLATED) and not syntax.startswith("1.2.840.10008.1.2.4."):
        raise Damaged("the transfer syntax is unknown", syntax or "absent", "uncompressed or deflated DICOM")
    coding = codings.get(syntax, explicit)
    return meta, Elements(data, coding, _split(data, end, len(data), coding, 0)[0])


def _meta_end(data: bytes) -> int:
    """Offset of the first element after group 2, which is always explicit little endian."""
    at, size = 132, len(data)
    while at + 8 <= size and data[at : at + 2] == b"\x02\x00":
        _, _, vr, length = _TAG_VR[True].unpack_from(data, at)
        at += 8
        if vr in _LONG_VRS:
            if at + 4 > size:
                break
            length = _LENGTH[True].unpack_from(data, at)[0]
            at += 4
        at += length
    if at > size:
        raise Damaged("the file is cut short", f"{size} bytes", f"{at} bytes declared by the file meta information")
    return at


def _inflate(packed: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(packed, limit)
    except zlib.error as error:
        raise Damaged("the deflated data set is broken", str(error), "") from None
    if inflater.unconsumed_tail:
        raise Damaged("the deflated data set is too large", f"more than {limit} bytes", f"{limit} bytes")
    if not inflater.eof:
        raise Damaged("the file is cut short", f"{len(packed)} deflated bytes", "end of the deflated stream")
    return data


def _split(data: bytes, at: int, end: int, coding: Coding, depth: int) -> tuple[dict[int, Element], int]:
    """Elements from `at` up to `end` or to an item delimiter, and where they end."""
    if depth > _DEPTH_MAX:
        raise Damaged("sequences are nested too deep", f"more than {_DEPTH_MAX}", str(_DEPTH_MAX))
    table: dict[int, Element] = {}
    implicit, little = coding.implicit, coding.little
    unpack_implicit, unpack_explicit = _TAG_LENGTH[little].unpack_from, _TAG_VR[little].unpack_from
    while at < end:
        if end - at < 8:
            if not any(data[at:end]):
                return table, end  # padding
            raise Damaged("the file is cut short", f"{end - at} bytes where an element begins", "8 bytes")
        if implicit:
            group, number, length = unpack_implicit(data, at)
            vr = b""
            at += 8
        else:
            group, number, vr, length = unpack_explicit(data, at)
            if group == 0xFFFE:  # delimiters carry no VR
                vr, length = b"", unpack_implicit(data, at)[2]
            at += 8
            if vr in _LONG_VRS:
                if end - at < 4:
                    raise Damaged("the file is cut short", f"{end - at} bytes where a length begins", "4 bytes")
                length = _LENGTH[little].unpack_from(data, at)[0]
                at += 4
            elif vr and not (vr.isalpha() and vr.isupper()):
                if group == 0 and number == 0 and not any(data[at - 8 : end]):
                    return table, end  # padding
                raise Damaged(
                    "not an element", f"value representation {vr!r} of ({group:04X},{number:04X})", "two capital letters"
                )
        tag = group << 16 | number
        if tag == _ITEM_END:
            return table, at
        if length == _UNDEFINED:
            inner = Coding(True, True) if vr == b"UN" else coding
            if vr in (b"OB", b"OW"):  # encapsulated pixels: other objects than plans
                at = _skip_fragments(data, at, end, little)
                continue
            items, at = _items(data, at, end, inner, depth + 1, undefined=True)
            table[tag] = Element("SQ", at, 0, items)
            continue
        if length > end - at:
            raise Damaged(
                "the file is cut short", f"({group:04X},{number:04X}) has {end - at} bytes left", f"{length} bytes declared"
            )
        table[tag] = Element(vr.decode("ascii"), at, length)
        at += length
    return table, at


def _items(data: bytes, at: int, end: int, coding: Coding, depth: int, *, undefined: bool) -> tuple[tuple[Elements, ...], int]:
    """Items of a sequence, and where it ends. Undefined sequences end with a delimiter, others at `end`."""
    items: list[Elements] = []
    unpack = _TAG_LENGTH[coding.little].unpack_from
    while at < end:
        if end - at < 8:
            raise Damaged("the file is cut short", f"{end - at} bytes where an item begins", "8 bytes")
        group, number, length = unpack(data, at)
        tag = group << 16 | number
        at += 8
        if tag == _SEQUENCE_END and undefined:
            return tuple(items), at
        if tag != _ITEM:
            raise Damaged("a sequence holds something else than items", f"({group:04X},{number:04X})", "(FFFE,E000)")
        if length == _UNDEFINED:
            table, at = _split(data, at, end, coding, depth)
        else:
            if length > end - at:
                raise Damaged("the file is cut short", f"an item has {end - at} bytes left", f"{length} bytes declared")
            table, _ = _split(data, at, at + length, coding, depth)
            at += length
        items.append(Elements(data, coding, table))
    if undefined:
        raise Damaged("the file is cut short", "a sequence has no end", "sequence delimiter")
    return tuple(items), at


def _skip_fragments(data: bytes, at: int, end: int, little: bool) -> int:
    unpack = _TAG_LENGTH[little].unpack_from
    while end - at >= 8:
        group, number, length = unpack(data, at)
        at += 8
        if (group << 16 | number) == _SEQUENCE_END:
            return at
        at += length
    raise Damaged("the file is cut short", "encapsulated data have no end", "sequence delimiter")
