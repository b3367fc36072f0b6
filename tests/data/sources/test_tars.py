"""Tar files: of webdataset's own writer, on the disk and from a server that breaks off; cut ones; those we write."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forms import Files
from PIL import Image
from serving import Served
from test_sources import assert_same, refuses

from patchconvnet.data.datasets import load
from patchconvnet.data.sources.shards import write_shards

wds = pytest.importorskip("webdataset", reason="webdataset is not installed")


def write_tars(out: Path, files: Files) -> None:
    out.mkdir()
    for number in range(3):
        with wds.TarWriter(str(out / f"pets-{number:03}.tar")) as archive:
            for path, name in files[number::3]:
                archive.write(
                    {"__key__": f"{name}/{path.stem}", path.suffix[1:]: path.read_bytes(), "cls": name.encode()}
                )


def test_tars_of_webdataset_give_the_data_set_of_the_folder(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", shuffled)
    expected = load(f"folder:{folder}", validation=6, test=0.2, seed=5)
    for place in (f"{tmp_path}/tars/pets-{{000..002}}.tar", f"{tmp_path}/tars"):
        assert_same(load(f"wds:{place}", validation=6, test=0.2, seed=5), expected)


def test_tars_of_a_server_that_breaks_off_and_comes_back(
    folder: Path, shuffled: Files, tmp_path: Path, served: Served
) -> None:
    write_tars(tmp_path / "tars", shuffled)
    served.handler.most, served.handler.down = 30_000, 2
    name = f"wds:{served.url}/tars/pets-{{000..002}}.tar"
    found = load(name, root=tmp_path / "cache")
    assert_same(found, load(f"folder:{folder}"))
    assert any(asked == "bytes=30000-" for _, asked in served.handler.asked)  # it went on where it had stopped
    count = len(served.handler.asked)
    load(name, root=tmp_path / "cache")
    assert len(served.handler.asked) == count  # all was there


def test_a_server_that_stays_away_is_named_in_the_end(tmp_path: Path, served: Served) -> None:
    served.stop()
    name = f"wds:{served.url}/a.tar?patience=0.2"
    refuses(name, f"{served.url}/a.tar cannot be fetched: nothing for 0.2 seconds", "refused", root=tmp_path / "cache")
    served.start()
    refuses(name, "404", root=tmp_path / "cache")
    refuses(f"wds:{served.url}/a.tar?patience=long", "patience is 'long'", root=tmp_path / "cache")


def test_cut_and_damaged_ones_are_named(shuffled: Files, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", shuffled)
    path = tmp_path / "tars" / "pets-001.tar"
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) // 2 // 512 * 512, 700):
        path.write_bytes(whole[:length])
        refuses(f"wds:{tmp_path}/tars", "pets-001.tar is cut off")
    path.write_bytes(b"no tar file" * 100)
    refuses(f"wds:{tmp_path}/tars", "pets-001.tar is cut off, damaged or no tar file")
    refuses(f"wds:{tmp_path}/none-{{0..3}}.tar", "there is no tar file", "none-0.tar")
    refuses(f"wds:{tmp_path}/tars?verify=perhaps", "it can be yes or no")


def test_a_sample_without_its_image_is_named(shuffled: Files, tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as archive:
        for i, (path, name) in enumerate(shuffled):
            sample = {"__key__": f"{i:03}", "cls": name.encode()}
            archive.write(sample | ({path.suffix[1:]: path.read_bytes()} if i != 4 else {}))
    refuses(f"wds:{tmp_path}/a.tar", "1 of 34 images", "a.tar::004")


def test_shards_give_the_data_set_of_the_folder(folder: Path, shuffled: Files, tmp_path: Path) -> None:
    write_shards(f"folder:{folder}", tmp_path / "shards", images_per_shard=10)
    expected = load(f"folder:{folder}", validation=6, test=0.2, seed=5)
    assert_same(load(f"wds:{tmp_path / 'shards'}", validation=6, test=0.2, seed=5), expected)
    for i, (path, name) in enumerate(sorted(shuffled)):
        copy = tmp_path / "tree" / ("train", "train", "val", "test")[i % 4] / name / "young.ones" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    write_shards(f"folder:{tmp_path / 'tree'}", tmp_path / "own")
    assert_same(load(f"wds:{tmp_path / 'own'}"), load(f"folder:{tmp_path / 'tree'}"))


def test_shards_are_resized_once_and_checked(folder: Path, tmp_path: Path) -> None:
    write_shards(f"folder:{folder}", tmp_path / "small", resize=12, images_per_shard=20)
    every = load(f"wds:{tmp_path / 'small'}?verify=yes").require("all")
    assert {min(every.image(i).size) for i in range(len(every))} == {12}
    refuses(f"wds:{tmp_path / 'small' / 'all-00007.tar'}", "there is no tar file")
    path = tmp_path / "small" / "all-00001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    refuses(f"wds:{tmp_path / 'small'}?verify=yes", "all-00001.tar", "another size or checksum")
    path.write_bytes(content[:-512])
    refuses(f"wds:{tmp_path / 'small'}", "all-00001.tar", "another size or checksum")
    refuses_to_write(folder, tmp_path / "small", "other images or of other options", resize=13)
    refuses_to_write(folder, tmp_path, "not an empty folder")
    refuses_to_write(folder, tmp_path / "x", "workers is 0", workers=0)
    refuses_to_write(folder, tmp_path / "x", "resize is 0", resize=0)


def refuses_to_write(folder: Path, out: Path, said: str, **options: int) -> None:
    with pytest.raises(ValueError, match=said):
        write_shards(f"folder:{folder}", out, **options)


@pytest.mark.slow
def test_a_killed_writing_goes_on(tmp_path: Path) -> None:
    for i in range(240):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((200, 200), 80).save(path)
    command = [
        sys.executable, "-m", "patchconvnet", "shard", "--data", f"folder:{tmp_path / 'images'}",
        "--out", str(tmp_path / "shards"), "--images-per-shard", "2", "--resize", "150",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "shards").glob("*.tar"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    assert 5 <= len(shards) < 120
    refuses(f"wds:{tmp_path / 'shards'}", "is not finished; run the same patchconvnet shard again")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "240 images in 120 tar files" in done.stdout
    kept = [path for path, written in shards.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(shards) - 2  # but those whose record was not written yet
    data = load(f"wds:{tmp_path / 'shards'}?verify=yes")
    expected = load(f"folder:{tmp_path / 'images'}")
    assert data.fingerprint()["all images"] == expected.fingerprint()["all images"]


def test_two_writings_into_one_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    holding = (
        "import pathlib, sys, time; from patchconvnet.files import locked_folder\n"
        "with locked_folder(pathlib.Path(sys.argv[1]), 'writing of shards'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    out = tmp_path / "shards"
    first = subprocess.Popen([sys.executable, "-c", holding, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refuses_to_write(folder, out, rf"another writing of shards \(process {first.pid} on .*is writing into")
        assert sorted(file.name for file in out.iterdir()) == ["lock"]
    finally:
        first.kill()
        first.communicate()
    assert write_shards(f"folder:{folder}", out).images == 34


def test_bad_images_are_left_out_of_shards_within_the_budget(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for path in folder.rglob("*.*"):
        copy = images / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (images / "cat" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 35 files .*bad\.jpg"):
        write_shards(f"folder:{images}", tmp_path / "shards", max_bad="0")
    with pytest.warns(UserWarning, match=r"bad\.jpg"):
        assert write_shards(f"folder:{images}", tmp_path / "shards", max_bad="3%").images == 34
    reading = json.loads((tmp_path / "shards" / "index.json").read_text())["reading"]
    assert reading["read"] + reading["skipped"] + reading["failed"] == reading["total"] == 35
    assert reading["left out"] == [str(images / "cat" / "bad.jpg")]
