"""For `bulk/predictor.py`: passes side by side say what one pass says, and what fails is one image's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patchconvnet.bulk.predictor import ModelChoice, Predictor, Settings
from patchconvnet.bulk.work import FolderWork, parts_of
from patchconvnet.models import Metadata

IMAGES, BROKEN, PART = 83, 41, 50


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("maps", ["none", "attention", "evidence"])
@pytest.mark.parametrize("readers", [1, 3, 40])
def test_passes_side_by_side_say_what_one_pass_says(tmp_path: Path, threads: int, maps: Any, readers: int) -> None:
    model = timm.create_model("patchconvnet_micro", num_classes=3, embed_dim=32, depth=1)
    model.metadata = Metadata(class_names=["a", "b", "c"], preprocessing={"size": [32, 32]})
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    (folder / f"{BROKEN:03d}.png").write_bytes(b"no image")
    asked = Settings(top=3, maps=maps, embeddings=maps != "none", embedding_dtype="float32")
    predictor = Predictor(ModelChoice(str(model.save_pretrained(tmp_path / "model")), device="cpu"), asked)
    assert threads * predictor.batch_size < IMAGES, "there is more than one pass for each thread"
    with torch.no_grad():
        expected = predictor.answer(torch.stack([predictor.preprocessing(image) for image in images]))
    work = FolderWork(folder, predictor.class_names)
    done, tables = 0, []
    for part, count, table in predictor.tables(work, parts_of(work, PART), readers=readers):
        done += count
        if table is not None:
            assert part == len(tables)
            assert done == min(PART * (part + 1), IMAGES), "a part's table comes with its last image"
            tables.append(table)
    assert torch.get_num_threads() == threads
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["id"] for row in rows] == [f"{i:03d}.png" for i in range(IMAGES)]
    probabilities = expected.logits.softmax(1).numpy()
    for i, row in enumerate(rows):
        if i == BROKEN:
            assert row["error"]
            assert row["classes"] is None
            continue
        assert row["error"] is None
        np.testing.assert_allclose(row["probabilities"], np.sort(probabilities[i])[::-1], atol=1e-5)
        np.testing.assert_allclose(probabilities[i][row["class_indices"]], row["probabilities"], atol=1e-5)
        for name, wanted in ((maps, expected.maps), ("embedding", expected.embeddings)):
            if wanted is not None:
                np.testing.assert_allclose(row[name], wanted[i].flatten(), atol=2e-3, rtol=2e-3)
