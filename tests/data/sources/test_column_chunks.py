"""Images read by themselves from what pyarrow and `datasets` write, in all forms of pages."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchconvnet.data.sources.column_chunks import PIECE, places_in, unpack

RANDOM = np.random.default_rng(0)


def contents(sizes: list[int]) -> list[bytes]:
    """Bytes that can't be compressed, as those of JPEG and PNG."""
    return [RANDOM.integers(0, 256, size, np.uint8).tobytes() for size in sizes]


SEVERAL = contents([20_000, 1, 70_000, 300_000, *RANDOM.integers(1000, 90_000, 40).tolist()])
SOME_AGAIN = [*SEVERAL[:10], SEVERAL[3], None, b"", *SEVERAL[:5], None, *SEVERAL[10:], SEVERAL[0]]
COMPRESSIBLE = [bytes(RANDOM.integers(0, 4, 30_000, np.uint8)) for _ in range(20)]  # as of BMP files


def chunk_of(path: Path) -> tuple[bytes, str]:
    """The bytes of the first column of the first row group."""
    about = pq.read_metadata(path).row_group(0).column(0)
    begin = min(about.data_page_offset, about.dictionary_page_offset or about.data_page_offset)
    return path.read_bytes()[begin : begin + about.total_compressed_size], about.compression


def written(path: Path, values: list[bytes | None], **options: Any) -> tuple[bytes, str]:
    pq.write_table(
        pa.table({"image": pa.array([None if v is None else {"bytes": v} for v in values])}), path, **options
    )
    return chunk_of(path)


@pytest.mark.parametrize("values", [SEVERAL, SOME_AGAIN, COMPRESSIBLE, [SEVERAL[0]], [SEVERAL[3], *SEVERAL[5:15]] * 3])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli"])
def test_every_image_is_where_its_place_says(
    values: list[bytes | None], version: str, dictionary: bool, compression: str, tmp_path: Path
) -> None:
    chunk, codec = written(
        tmp_path / "a.parquet", values, compression=compression, data_page_version=version, use_dictionary=dictionary,
        data_page_size=100_000, write_batch_size=4,
    )  # fmt: skip
    places = places_in(chunk, codec, values)
    if len(values) > 1 and compression in ("none", "snappy") and values is not COMPRESSIBLE:
        assert places is not None
    if values is SEVERAL and not dictionary:  # whose pages are small
        assert places is not None
    for place, value in zip(places or (), values, strict=False):
        part = chunk[place.begin : place.begin + place.length]
        assert unpack(part, codec, place) == (value or b"")
        if codec == "SNAPPY" and values is SEVERAL:
            assert place.length < place.size + 2 * PIECE
        if codec == "UNCOMPRESSED":
            assert place.length == place.size


def test_what_datasets_writes_has_places(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": value, "path": None} for value in SEVERAL]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    rows.to_parquet(tmp_path / "a.parquet")
    chunk, codec = chunk_of(tmp_path / "a.parquet")
    places = places_in(chunk, codec, SEVERAL)
    assert places is not None
    assert sum(place.length for place in places) < sum(map(len, SEVERAL)) + 2 * PIECE * len(SEVERAL)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_what_is_not_as_it_should_be_has_no_places(compression: str, tmp_path: Path) -> None:
    chunk, codec = written(
        tmp_path / "a.parquet", SEVERAL, compression=compression, use_dictionary=False, data_page_size=100_000,
        write_batch_size=4,
    )  # fmt: skip
    assert places_in(chunk, codec, SEVERAL)
    for other in ("LZ4", "SNAPPY", "ZSTD", "UNCOMPRESSED"):
        assert other == codec or places_in(chunk, other, SEVERAL) is None
    assert places_in(chunk, codec, [*SEVERAL, contents([500])[0]]) is None
    assert places_in(chunk[: len(chunk) // 2], codec, SEVERAL) is None
    for _ in range(300):  # whatever is wrong, no place is wrong
        at, found = int(RANDOM.integers(0, len(chunk))), bytearray(chunk)
        found[at if RANDOM.random() < 0.5 else at % 300] ^= int(RANDOM.integers(1, 256))
        for place, value in zip(places_in(bytes(found), codec, SEVERAL) or (), SEVERAL, strict=False):
            assert unpack(bytes(found)[place.begin : place.begin + place.length], codec, place) == value
