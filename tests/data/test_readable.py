"""How many images may be left out because they cannot be read."""

from pathlib import Path

import pytest
from PIL import Image

from patchconvnet.data.datasets import load
from patchconvnet.data.readable import allowed
from patchconvnet.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 images, two of them broken."""
    lines = ["path,label"]
    for i in range(24):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(path)
        lines.append(f"{path},{path.parent.name}")
    for i in (3, 10):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    ("given", "total", "most"), [("0.1%", 5000, 5), ("0.1%", 999, 0), ("7", 10, 7), ("100%", 3, 3)]
)
def test_a_share_or_a_number(given: str, total: int, most: int) -> None:
    assert allowed(given, total) == most


@pytest.mark.parametrize("given", ["-1", "0.5", "101%", "few", ""])
def test_nothing_else(given: str) -> None:
    with pytest.raises(UserError, match=r"give a share of the images such as 0\.1%, or a number"):
        allowed(given, 10)


def test_none_of_a_source_is_left_out_unasked(table: Path) -> None:
    with pytest.raises(UserError, match=r"of 24 images 22 can be read, 0 may be skipped and 2 failed.*--max-bad 2"):
        load(f"csv:{table}")
    with pytest.raises(UserError, match=r"1 may be skipped and 2 failed"):
        load(f"csv:{table}", max_bad="1")
    with pytest.raises(UserError, match=r"0 may be skipped"):
        load(f"csv:{table}", max_bad="50%", strict=True)


def test_those_within_the_budget_are_named_and_counted(table: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 of 24 images .* are not readable images: .*03\.png, .*10\.png; skipped"):
        data = load(f"csv:{table}", max_bad="10%")
    with pytest.warns(UserWarning, match="2 of 24 files"):
        folder = load(f"folder:{table.parent / 'images'}", max_bad="2")
    assert data.fingerprint() == folder.fingerprint()
    counts = data.reading()
    assert counts["read"] + counts["skipped"] + counts["failed"] == counts["total"] == 24
    assert [Path(place).name for place in counts["left out"]] == ["03.png", "10.png"]
    assert counts == folder.reading() | {"left out": counts["left out"]}
    with pytest.raises(UserError, match="1 may be skipped and 2 failed"):
        load(f"folder:{table.parent / 'images'}", max_bad="1")
