"""Where each image is in a column chunk, which is what a row group of a Parquet file has of one column.

With that an image is read without the others of its row group, which the format does not foresee. A chunk is a sequence
of pages, each compressed as a whole. JPEG and PNG can't be compressed further: `datasets` leaves such pages as they are
by now, where each image is simply there; and Snappy, the usual compression, packs 64 KiB at a time, each by itself, so
that an image is had from those pieces that it lies in. With any other compression it is had from its page, if that is
small.

Nothing is taken on trust: each place is tried while the whole chunk is there, and a chunk of which one image would not
be the same has no places.

Sources: the format's parquet.thrift and Encodings.md (https://github.com/apache/parquet-format), Thrift's compact
protocol, and Snappy's format_description.txt (https://github.com/google/snappy).
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

NONE, SNAPPY = "UNCOMPRESSED", "SNAPPY"
CODECS = (NONE, SNAPPY, "ZSTD", "GZIP", "BROTLI")
PIECE = 1 << 16  # bytes that Snappy packs by themselves
MOST_OF_CHUNK = 0.5  # that is read for one value
FEWEST_BYTES = 64  # of an element of Snappy's, on average; a page of shorter ones takes long to look through
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2 = 0, 2, 3  # kinds of pages that hold values
# fields of Thrift's records: of a page's header, and of what it says about a data page of the second version
KIND, UNPACKED, PACKED, ABOUT_PAGE_2 = 1, 2, 3, 8
DEFINITIONS, REPETITIONS, IS_COMPRESSED = 5, 6, 7


class Place(NamedTuple):
    """Where an image is.

    Attributes:
        begin, length: the bytes that have to be read: in the file, or in the chunk.
        unpacked: how many bytes these become; 0 where they are not compressed.
        skip, size: which of those are the image; a size of 0 where there is none.
    """

    begin: int
    length: int
    unpacked: int
    skip: int
    size: int


def places_in(chunk: bytes, codec: str, values: Sequence[bytes | None]) -> list[Place] | None:
    """Where the values of a chunk are in it.

    Args:
        chunk: all of its bytes.
        codec: how its pages are compressed, as pyarrow calls it.
        values: of its rows, in their order.

    Returns:
        One place a value; None where not every value can be had by itself, or for not much less than the whole chunk.
    """
    if codec not in CODECS:
        return None
    try:
        pages = list(_pages(chunk, codec))
        places = _found(pages, values)
        if sum(place.length for place in places) > MOST_OF_CHUNK * len(chunk) * len(places):
            return None
        if all(unpack(chunk[p.begin : p.begin + p.length], codec, p) == (v or b"") for p, v in zip(places, values)):  # noqa: B905
            return places
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError):  # of another form than is known here
        pass
    return None


def unpack(part: bytes, codec: str, place: Place) -> bytes:
    """A value from the bytes that its place names.

    Raises:
        OSError, ValueError: they are not what was there.
    """
    import pyarrow

    if place.unpacked:
        if codec == SNAPPY:
            part = _as_number(place.unpacked) + part
        part = pyarrow.Codec(codec.lower()).decompress(part, decompressed_size=place.unpacked, asbytes=True)
    return part[place.skip : place.skip + place.size]


class _Page(NamedTuple):
    """The values of a page, unpacked, and where they are.

    Attributes:
        values: each has its length, four bytes, before it.
        pieces: where what can be unpacked by itself begins, in the values and in the chunk; the last is their end. None
            where they are not compressed.
        begin: where they begin in the chunk.
    """

    values: bytes
    pieces: list[tuple[int, int]] | None
    begin: int

    def place(self, at: int, size: int) -> Place:
        if self.pieces is None:
            return Place(self.begin + at, size, 0, 0, size)
        first = bisect.bisect_right(self.pieces, at, key=lambda piece: piece[0]) - 1
        last = bisect.bisect_left(self.pieces, at + size, key=lambda piece: piece[0])
        (low, begin), (high, end) = self.pieces[first], self.pieces[last]
        return Place(begin, end - begin, high - low, at - low, size)


def _found(pages: list[_Page], values: Sequence[bytes | None]) -> list[Place]:
    """Values follow one another; one that was there already may be written once only, in the page of a dictionary."""
    number = cursor = 0
    seen: dict[bytes, Place] = {}
    places = []
    for value in values:
        if not value:
            places.append(Place(0, 0, 0, 0, 0))
            continue
        written = len(value).to_bytes(4, "little") + value
        at = cursor if pages[number].values.startswith(written, cursor) else -1
        if at < 0 and value in seen:
            places.append(seen[value])
            continue
        while at < 0:  # beyond what says which rows have a value, or in another page
            at = pages[number].values.find(written, cursor)
            if at < 0:
                number, cursor = number + 1, 0  # an IndexError after the last
        cursor = at + len(written)
        seen[value] = pages[number].place(at + 4, len(value))
        places.append(seen[value])
    return places


def _pages(chunk: bytes, codec: str) -> Iterator[_Page]:
    import pyarrow

    at = 0
    while at < len(chunk):
        header, begin = _record(chunk, at)
        at = begin + header[PACKED]
        if header[KIND] not in (DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2):
            continue
        levels = 0  # which rows have a value; those of the second version are before the values, and not compressed
        about = header.get(ABOUT_PAGE_2, {})
        if about:
            levels = about[DEFINITIONS] + about[REPETITIONS]
        packed, unpacked = chunk[begin + levels : at], header[UNPACKED] - levels
        begin += levels
        if codec == NONE or not about.get(IS_COMPRESSED, True):
            yield _Page(packed, None, begin)
            continue
        values = pyarrow.Codec(codec.lower()).decompress(packed, decompressed_size=unpacked, asbytes=True)
        pieces = _pieces(packed) if codec == SNAPPY else [(0, 0), (unpacked, len(packed))]
        yield _Page(values, [(inside, begin + outside) for inside, outside in pieces], begin)


def _pieces(packed: bytes) -> list[tuple[int, int]]:
    """Where Snappy's pieces begin, unpacked and packed; the last is the end.

    Raises:
        ValueError: they do not begin where they usually do, or are made of more than is worth looking through.
    """
    total, at = _number(packed, 0)
    unpacked, left = 0, len(packed) // FEWEST_BYTES + 1000
    pieces = [(0, at)]
    while at < len(packed):
        tag = packed[at]
        kind, high = tag & 3, tag >> 2
        if kind == 0:  # bytes as they are
            more = max(high - 59, 0)
            length = (int.from_bytes(packed[at + 1 : at + 1 + more], "little") if more else high) + 1
            at += 1 + more + length
        else:  # a copy of bytes before; by 11, 16 or 32 bits
            length = (high & 7) + 4 if kind == 1 else high + 1
            at += (2, 3, 5)[kind - 1]
        unpacked, left = unpacked + length, left - 1
        if unpacked - pieces[-1][0] >= PIECE or unpacked == total:
            pieces.append((unpacked, at))
        if left < 0:
            raise ValueError
    if unpacked != total or any(inside % PIECE for inside, _ in pieces[:-1]):
        raise ValueError
    return pieces


def _record(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A record as Thrift's compact protocol writes it, by the numbers of its fields, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _signed(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false are kinds
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _signed(data, at)
    if kind == 7:
        return data[at : at + 8], at + 8
    if kind == 8:
        length, at = _number(data, at)
        return data[at : at + length], at + length
    if kind in (9, 10):
        head, at = data[at], at + 1
        length = head >> 4
        if length == 15:
            length, at = _number(data, at)
        found = []
        for _ in range(length):
            value, at = (data[at], at + 1) if head & 15 in (1, 2) else _value(data, at, head & 15)
            found.append(value)
        return found, at
    if kind == 12:
        return _record(data, at)
    raise ValueError


def _signed(data: bytes, at: int) -> tuple[int, int]:
    number, at = _number(data, at)
    return (number >> 1) ^ -(number & 1), at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        byte = data[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at


def _as_number(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
