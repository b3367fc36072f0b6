"""Data sets of the hub that are read without being kept: a server of our own answers as the hub does, and counts."""

import json
import pickle
import shutil
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from forms import Files
from hub import Hub, point_at
from PIL import Image
from safetensors.torch import load_file
from test_sources import assert_same, refuses

from patchconvnet.cli import main
from patchconvnet.data.augmentation import AugmentationConfig
from patchconvnet.data.datasets import load, open_listing
from patchconvnet.data.labelled_images import Blocks, ImageRecords, in_batches, reading_order
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.sources import fetching, row_groups
from patchconvnet.data.sources.row_groups import RowGroupStore
from patchconvnet.models import Metadata
from patchconvnet.training import sources
from patchconvnet.training.launch import Hardware
from patchconvnet.training.loop import train
from patchconvnet.training.recipe import DataOptions, ModelOptions, MonitorOptions, Recipe

CLASSES = ("cat", "dog", "eel")
COUNT, ROWS = 100, 20  # images, and those of a row group
GROUPS = COUNT // ROWS
LARGE = 200_000  # bytes: less than a row group, and more than all else of a file that is read
NAME = "hf:me/pets?keep=no"


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of classes."""
    folder = tmp_path_factory.mktemp("row_groups") / "pets"
    random = np.random.default_rng(0)
    for i in range(COUNT):
        path = folder / CLASSES[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (60, 70, 3), np.uint8)).save(path)
    return folder


def files_of(folder: Path) -> Files:
    """In no order that a folder would have."""
    return [(path, path.parent.name) for path in sorted(folder.rglob("*.png"), key=lambda path: path.name[::-1])]


def write(path: Path, files: Files, **options: Any) -> None:
    images = [{"bytes": file.read_bytes(), "path": file.name} for file, _ in files]
    table = pa.table({"image": images, "label": [name for _, name in files]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **{"row_group_size": ROWS, **options})


def publish(
    hub: Hub, folder: Path, branch: str = "main", place: str = "data/train-{}-of-00002.parquet", **options: Any
) -> None:
    files = files_of(folder)
    half = len(files) // 2 // ROWS * ROWS
    for number, some in enumerate((files[:half], files[half:])):
        write(hub.folder / "me" / "pets" / branch / place.format(f"{number:05}"), some, **options)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is asked again without much waiting."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("PATCHCONVNET_DATA", str(tmp_path / "cache" / "ours"))
    hub = Hub(tmp_path / "hub")
    point_at(hub, tmp_path / "cache", monkeypatch)
    yield hub
    hub.stop()


def groups_read(hub: Hub) -> int:
    """How often a row group was sent since the last time."""
    found = sum(size > LARGE for _, size in hub.asked)
    hub.asked.clear()
    return found


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_is_the_data_set_of_the_folder_and_nothing_is_kept(hub: Hub, pets: Path, tmp_path: Path) -> None:
    publish(hub, pets)
    found = load(NAME, validation=12, test=0.2, seed=5)
    assert groups_read(hub) == GROUPS  # to check the images, once
    assert_same(found, load(f"folder:{pets}", validation=12, test=0.2, seed=5))
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert size_of(tmp_path / "cache") < size_of(pets) / 20, kept
    assert not [path for path in kept if path.suffix in (".parquet", ".arrow", ".png")]
    hub.asked.clear()
    assert load(NAME).fingerprint() == load(f"folder:{pets}").fingerprint()
    assert groups_read(hub) == 0  # what is known of the images is kept
    for path in (tmp_path / "cache" / "ours").rglob("rows-*.json"):
        path.write_text(path.read_text().replace('"groups": [[["', '"groups": [[["x", "'))
    assert load(NAME).fingerprint() == load(f"folder:{pets}").fingerprint()
    assert groups_read(hub) == GROUPS  # what does not fit is found again
    write(hub.folder / "me" / "pets" / "main" / "data" / "train-00001-of-00002.parquet", files_of(pets)[40:-1])
    assert len(load(NAME).require("all")) == COUNT - 1
    assert groups_read(hub) == 3  # of the file that is another now


def test_what_is_listed_is_read_without_the_images(hub: Hub, pets: Path) -> None:
    publish(hub, pets)
    listing = open_listing(NAME)
    assert [path for path, _ in files_of(pets)] == [
        pets / str(label) / str(path) for path, label in zip(listing.paths, listing.labels, strict=True)
    ]
    assert groups_read(hub) == 0
    open_listing(NAME)
    ends = 2 * 65536  # pyarrow asks for as much of a file's end, whatever is there
    assert hub.sent() - ends < size_of(pets) / 100


def test_splits_and_names_of_classes_are_those_that_the_data_set_has(hub: Hub, pets: Path, tmp_path: Path) -> None:
    """Written by `datasets`, as by push_to_hub: the names of the classes are in the files, or in the README."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    main_branch, files = hub.folder / "me" / "pets" / "main", files_of(pets)
    parts = {"train": files[:60], "validation": files[60:80], "test": files[80:]}
    for split, some in parts.items():
        for file, name in some:
            copy = tmp_path / "tree" / split / name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        images = [{"bytes": file.read_bytes(), "path": file.name} for file, _ in some]
        columns = {"image": images, "label": [CLASSES.index(name) for _, name in some]}
        rows = datasets.Dataset.from_dict(columns, features=features)
        path = main_branch / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(path)
    expected = load(f"folder:{tmp_path / 'tree'}")
    assert_same(load(NAME), expected)
    assert load("hf:me/pets:test?keep=no", test=1.0 / 2).drawn  # one split is divided as a folder without splits
    refuses("hf:me/pets:val?keep=no", "has no split 'val'; it has train, validation, test")
    for path in (main_branch / "data").glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path, row_group_size=ROWS)
    info = {"features": features._to_yaml_list(), "splits": [{"name": split, "num_examples": 1} for split in parts]}
    import yaml

    (main_branch / "README.md").write_text(f"---\n{yaml.safe_dump({'dataset_info': info})}---\n")
    assert_same(load(NAME), expected)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.create_model("patchconvnet_micro", num_classes=3, embed_dim=16, depth=1, pooling="additive")
    torch.nn.init.normal_(network.head.weight)
    network.metadata = Metadata(class_names=list(CLASSES), preprocessing={"size": [16, 16]})
    return network.save_pretrained(tmp_path_factory.mktemp("model") / "model")


def test_predict_and_evaluate_say_the_same_and_read_each_row_group_once(
    hub: Hub, pets: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, pets)
    load(NAME)
    hub.asked.clear()

    def predicted(data: str, out: str) -> list[dict[str, Any]]:
        asked = ["--model", model, "--data", data, "--out", tmp_path / out, "--part-size", 30, "--readers", 8]
        assert main(["predict", *map(str, asked)]) == 0
        table = pa.concat_tables(map(pq.read_table, sorted((tmp_path / out).glob("*.parquet"))))
        return sorted(table.to_pylist(), key=lambda row: row["id"])

    ours = predicted(NAME, "ours")
    assert groups_read(hub) == GROUPS
    (tmp_path / "ours" / "part-00000001.parquet").unlink()  # as if it had been killed
    assert predicted(NAME, "ours") == ours
    assert groups_read(hub) == 2
    for one, other in zip(ours, predicted(f"folder:{pets}", "theirs"), strict=True):
        assert [one[key] for key in ("id", "label", "error")] == [other[key] for key in ("id", "label", "error")]
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=2e-3, abs=1e-5)

    def evaluated(data: str, out: str, workers: int) -> tuple[dict[str, Any], list[str]]:
        asked = ["--model", model, "--data", data, "--split", "all", "--out", tmp_path / out, "--workers", workers]
        assert main(["evaluate", *map(str, asked), "--batch-size", "8"]) == 0
        about = json.loads((tmp_path / out / "evaluation.json").read_text())
        lines = (tmp_path / out / "predictions.csv").read_text().splitlines()
        return about, [line.partition(",")[2] for line in lines]  # without the places

    theirs, their_lines = evaluated(f"folder:{pets}", "measured", 0)
    for workers, most in ((0, GROUPS), (2, GROUPS + 1)):
        found, lines = evaluated(NAME, f"measured{workers}", workers)
        assert GROUPS <= groups_read(hub) <= most
        for key in ("images", "top1"):
            assert found[key] == theirs[key]
        assert found["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert len(lines) == len(their_lines) == COUNT + 1

    path = hub.folder / "me" / "pets" / "main" / "data" / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=ROWS // 2)
    assert main(["predict", "--model", str(model), "--data", NAME, "--out", str(tmp_path / "ours")]) == 2
    assert "predictions of another data" in capsys.readouterr().err  # its rows are not known to be the same any more


def test_a_hub_that_stays_away_ends_predict_and_the_same_command_goes_on(
    hub: Hub, pets: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, pets)
    asked = [
        "predict",
        "--model",
        model,
        "--data",
        f"{NAME}&patience=0.3",
        "--out",
        tmp_path / "out",
        "--part-size",
        20,
    ]
    hub.large = 3
    assert main(list(map(str, asked))) == 2
    assert "cannot be fetched: nothing for 0.3 seconds" in capsys.readouterr().err
    written = len(list((tmp_path / "out").glob("part-*.parquet")))
    assert written <= 3  # no row has an error that no image is to blame for
    hub.large = 10**9
    assert main(list(map(str, asked))) == 0
    table = pa.concat_tables(map(pq.read_table, (tmp_path / "out").glob("part-*.parquet")))
    assert (len(table), table["error"].null_count) == (COUNT, COUNT)


def test_shards_are_the_data_set_and_each_row_group_is_read_once(
    hub: Hub, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchconvnet.data.sources import shards

    publish(hub, pets)
    load(NAME)
    hub.asked.clear()
    asked = ["shard", "--data", NAME, "--out", str(tmp_path / "shards"), "--images-per-shard", "25", "--workers", "2"]
    assert main(asked) == 0
    assert (
        GROUPS <= groups_read(hub) <= GROUPS + 3
    )  # the groups in which one shard ends and another begins, if it is late
    assert_same(load(f"wds:{tmp_path / 'shards'}"), load(f"folder:{pets}"))
    labels = [label for label, _ in sorted((name, path) for path, name in files_of(pets))]
    assert [member.label for _, member in open_listing(f"wds:{tmp_path / 'shards'}").store.members] != labels
    written = {path.name: path.read_bytes() for path in (tmp_path / "shards").glob("*.tar")}
    assert len(written) == 4
    (tmp_path / "shards" / "all-00001.tar").unlink()
    monkeypatch.setattr(shards, "MOST_IN_MEMORY", 1000)  # so that the images wait on disk
    hub.asked.clear()
    assert main(asked) == 0
    assert groups_read(hub) in (2, 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").glob("*.tar")} == written
    with pytest.raises(ValueError, match="shards of other images or of other options"):  # they are mixed otherwise
        shards.write_shards(f"folder:{pets}", tmp_path / "shards", images_per_shard=25)
    resized = tmp_path / "resized"
    assert main(["shard", "--data", NAME, "--out", str(resized), "--resize", "20"]) == 0
    assert min(load(f"wds:{resized}").require("all").image(0).size) == 20


def test_training_takes_any_image_and_says_what_that_costs(
    hub: Hub, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LITTLE", 0)
    publish(hub, pets, compression="zstd")

    def trained(data: str, out: str, memory_gb: float) -> dict[str, torch.Tensor]:
        recipe = Recipe(
            data=DataOptions(name=data, validation=20, test=20, workers=2, memory_gb=memory_gb),
            model=ModelOptions(name="patchconvnet_micro", options={"embed_dim": 16, "depth": 1}),
            preprocessing=Preprocessing(size=(16, 16)),
            augmentation=AugmentationConfig(random_crop_padding=2),
            monitor=MonitorOptions(every=0, images=3),
            epochs=2,
            batch_size=16,
            precision="32-true",
        )
        train(recipe, tmp_path / out, hardware=Hardware(accelerator="cpu"))
        return load_file(tmp_path / out / "best" / "model.safetensors")

    expected = trained(f"folder:{pets}", "files", 0.0)
    said = (
        "groups of about 20 images, 0.3 MB; training takes images in random order, and reads 0.3 MB for each; the "
        r"validation of an epoch reads 1.\d MB of 1.3. Bring .*: patchconvnet shard --data 'hf:me/pets.keep=no' --out "
        "shards"
    )
    with pytest.warns(UserWarning, match=said):
        found = trained(NAME, "ours", 0.0)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    hub.asked.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*random order")
        found = trained(NAME, "memory", 1.0)  # which is filled group by group
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # by two workers, which may share a group: for the memory, twice for each epoch's validation, at the end as often
    assert groups_read(hub) <= 7 * (GROUPS + 1)
    publish(hub, pets)  # so that images can be read one by one
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*is read in groups")
        monkeypatch.setattr(sources, "LITTLE", 0.5)
        found = trained(NAME, "one by one", 0.0)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"compression": "none"}, 1.01),
        ({"compression": "none", "data_page_version": "2.0", "use_dictionary": False}, 1.01),
        ({}, 1.01 + 2 * 2**16 / 12_600),  # of Snappy's pieces those at both ends
        ({"data_page_version": "2.0", "use_dictionary": False}, 1.01 + 2 * 2**16 / 12_600),
    ],
)
def test_an_image_is_read_alone_when_all_have_been_read_once(
    options: dict[str, Any], most: float, hub: Hub, pets: Path
) -> None:
    publish(hub, pets, **options)
    for known in (False, True):  # read through, or what was found is still known
        images, expected = load(NAME).require("all"), load(f"folder:{pets}").require("all")
        assert isinstance(images, ImageRecords)
        hub.asked.clear()
        size = 0
        for row in range(0, COUNT, 10):
            (place,) = (images.rows == row).nonzero()[0].tolist()
            content = expected.encoded(place).read_bytes()
            assert images.encoded(place) == content, (row, known)
            size += len(content)
        assert len(hub.asked) == COUNT // 10
        assert hub.sent() < most * size
    loaded = pickle.loads(pickle.dumps(images))  # as for a process
    assert loaded.encoded(3) == expected.encoded(3).read_bytes()


def test_workers_open_the_files_themselves(hub: Hub, pets: Path) -> None:
    publish(hub, pets)
    images, expected = load(NAME).require("all"), load(f"folder:{pets}").require("all")
    assert isinstance(images, ImageRecords)
    images.image(0)
    assert isinstance(images.store, RowGroupStore)
    assert len(pickle.dumps(images.store)) < LARGE  # without the row groups that it holds
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    tensors = images.subset(order).tensors(Preprocessing(size=(8, 8)).canvas)
    theirs = expected.subset(order).tensors(Preprocessing(size=(8, 8)).canvas)
    for kind in ("fork", "spawn"):
        read = in_batches(tensors, 2, batch_size=32, multiprocessing_context=kind)
        for (ours, labels, _), (pixels, classes, _) in zip(read, in_batches(theirs, 0, batch_size=32), strict=True):
            assert torch.equal(ours, pixels)
            assert torch.equal(labels, classes)


def test_threads_side_by_side_read_a_row_group_once(hub: Hub, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, pets)
    store = open_listing(NAME).store
    assert isinstance(store, RowGroupStore)
    hub.asked.clear()
    monkeypatch.setattr(row_groups, "MOST_HELD", 1)  # two at least, and each thread's own
    barrier = threading.Barrier(GROUPS)

    def read(first: int) -> None:
        barrier.wait()
        for row in range(first, first + ROWS):
            store.encoded(row)

    with ThreadPoolExecutor(GROUPS) as pool:
        list(pool.map(read, range(0, COUNT, ROWS)))
    assert groups_read(hub) == GROUPS
    assert len(store._held._groups) <= 2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.encoded, range(COUNT)))
    assert groups_read(hub) <= GROUPS


def test_a_hub_that_fails_for_a_while_costs_no_image(hub: Hub, pets: Path) -> None:
    publish(hub, pets)
    hub.down = 2
    listing = open_listing(NAME)
    hub.failing, hub.broken = 2, 2
    found = listing.data_set(NAME)
    assert (hub.failing, hub.broken) == (0, 0)
    assert found.fingerprint() == load(f"folder:{pets}").fingerprint()


def test_a_hub_that_stays_away_ends_reading_in_a_sentence(hub: Hub, pets: Path) -> None:
    publish(hub, pets)
    listing = open_listing(f"{NAME}&patience=0.3")
    hub.down = 10**6
    with pytest.raises(ValueError, match=r"train-0000.-of-00002.parquet cannot be fetched: nothing for 0.3 seconds"):
        listing.data_set(NAME)
    with pytest.raises(ValueError, match=r"train-00000-of-00002.parquet cannot be fetched: nothing for 0.3 seconds"):
        listing.store.encoded(0)
    refuses(f"{NAME}&patience=0.2", "/datasets/me/pets cannot be fetched: nothing for 0.2 seconds")
    hub.down = 0
    assert listing.store.encoded(0)


def test_a_private_data_set_is_read_with_the_token_which_nobody_else_is_told(
    hub: Hub, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, pets)
    hub.secret = "hf_of_this_test"
    refuses(NAME, "cannot be loaded", "doesn't exist on the Hub or cannot be accessed")
    monkeypatch.setenv("HF_TOKEN", hub.secret)
    assert len(load(NAME).require("all")) == COUNT
    assert set(hub.told) == {""}


def test_what_the_hub_has_converted_is_read(hub: Hub, pets: Path) -> None:
    """A data set of other files: zip or tar files, or images themselves."""
    shutil.copytree(pets, hub.folder / "me" / "pets" / "main")
    refuses(NAME, "me/pets has no Parquet files", "nor has the hub converted it; leave out keep=no", "wds:https://")
    publish(hub, pets, "converted", "default/partial-train/{}.parquet")
    refuses(NAME, "the hub has converted only a part of it; leave out keep=no")
    shutil.rmtree(hub.folder / "me" / "pets" / "converted")
    publish(hub, pets, "converted", "default/train/{}.parquet")
    publish(hub, pets, "converted", "another/train/{}.parquet")
    assert_same(load(NAME), load(f"folder:{pets}"))


def test_a_local_folder_of_parquet_files_is_read_where_it_is(pets: Path, tmp_path: Path) -> None:
    import datasets

    files = files_of(pets)
    write(tmp_path / "own" / "train-0.parquet", files)
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = size_of(cache)
    found = load(f"hf:{tmp_path / 'own'}?keep=no")
    assert_same(found, load(f"folder:{pets}"))
    assert size_of(cache) - before < 10_000
    write(tmp_path / "own" / "train-0.parquet", files[1:])
    images = pickle.loads(pickle.dumps(found.require("all")))  # without what is in memory
    with pytest.raises(ValueError, match=r"train-0.parquet has changed since it was opened; start again"):
        images.encoded(0)
    datasets.load_dataset(str(tmp_path / "own")).save_to_disk(tmp_path / "saved")
    assert len(load(f"hf:{tmp_path / 'saved'}?keep=no").require("all")) == COUNT - 1
    refuses(f"hf:{pets}?keep=no", "has no Parquet files", "leave out keep=no, or give folder:PATH")


def test_images_that_are_none_are_left_out_within_the_budget(pets: Path, tmp_path: Path) -> None:
    files = files_of(pets)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "none.png").write_bytes(b"")
    some = [*files[:20], (tmp_path / "bad.png", "cat"), (tmp_path / "none.png", "dog"), *files[20:]]
    write(tmp_path / "own" / "train.parquet", some)
    name = f"hf:{tmp_path / 'own'}?keep=no"
    refuses(name, f"2 of {COUNT + 2} images", "own row 20", "own row 21")
    with pytest.warns(UserWarning, match="row 20, .*row 21; skipped"):
        assert len(load(name, max_bad="2").require("all")) == COUNT


def test_mistakes_are_named(hub: Hub, pets: Path, tmp_path: Path) -> None:
    refuses("hf:me/pets?keep=maybe", "keep is 'maybe'; it can be yes or no")
    refuses("hf:me/pets?keep=no&patience=soon", "patience is 'soon'; give seconds, such as 90")
    refuses("hf:me/none?keep=no", "hf:me/none cannot be loaded", "doesn't exist")
    publish(hub, pets)
    refuses(f"{NAME}&label=breed", "has no column 'breed'; its columns: image, label")
    path = hub.folder / "me" / "pets" / "main" / "data" / "train-00000-of-00002.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "label": ["cat"]}), path)
    refuses(NAME, "the column 'image' of me/pets has no bytes of images (it is string)", "leave out keep=no")
    write(path, files_of(pets)[:5])
    second = path.with_name("train-00001-of-00002.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": ""}]}), second)
    refuses(NAME, "train-00001-of-00002.parquet has no column 'label'")
    pq.write_table(pa.table({"image": [b""], "label": ["cat"]}), second)
    refuses(NAME, "train-00001-of-00002.parquet has no column 'image.bytes', which others of me/pets have")
    whole = path.read_bytes()
    for content, said in ((b"no table" * 100, "is no Parquet file"), (whole[:-100], "cannot be read as Parquet")):
        second.write_bytes(content)
        refuses(NAME, f"train-00001-of-00002.parquet {said}")


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 40, 41, 97])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_workers_take_turns_at_batches_that_follow_one_another(count: int, workers: int, processes: int) -> None:
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    blocks = Blocks(torch.arange(count) // 5, 1.0, 1.0)
    names = [str(i) for i in range(count)]
    images = ImageRecords(NoStore(), rows, names, torch.zeros(count, dtype=torch.int64), ["a"], None, blocks)
    seen = []
    for rank in range(processes):
        order = reading_order(images, 4, workers, rank=rank, world_size=processes)
        batches = order.split(4)
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        for worker in range(max(workers, 1)):
            its = batches[worker :: max(workers, 1)]
            numbers = rows[torch.cat(its)] // 5 if its else torch.tensor([])
            assert numbers.tolist() == sorted(numbers.tolist())
        seen += order.tolist()
    assert sorted(seen) == list(range(count))


class NoStore:
    """Nothing is read from it."""

    def encoded(self, row: int) -> bytes:
        raise AssertionError

    def place(self, row: int) -> str:
        return str(row)

    def size(self, row: int) -> int:
        return -1
