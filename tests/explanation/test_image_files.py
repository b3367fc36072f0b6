"""Many files give what one after the other would, in their order, and a faulty one spoils no other."""

import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from patchconvnet import PatchConvNet, explain
from patchconvnet.errors import UserError
from patchconvnet.explanation import Explanation, image_files
from patchconvnet.explanation.explainer import Question
from patchconvnet.explanation.image_files import explain_files
from patchconvnet.explanation.refining import batch_size_for
from patchconvnet.models import Metadata


@pytest.fixture(scope="module")
def model() -> PatchConvNet:
    torch.manual_seed(0)
    network: PatchConvNet = timm.create_model("patchconvnet_micro", num_classes=3).eval()
    network.metadata = Metadata(preprocessing={"size": [224, 224]})
    return network


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    for k in range(37):  # of many shapes; batches hold 16
        values = generator.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{k:02d}.png")
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("readers", [1, 3])
def test_they_are_explained_as_one_alone_and_in_order(model: PatchConvNet, files: list[Path], readers: int) -> None:
    threads = torch.get_num_threads()
    names = [path.stem for path in files]
    said = list(explain_files(model, files, names, Question.of(model, size=32), readers=readers))
    assert torch.get_num_threads() == threads
    for path, name, one in zip(files, names, said, strict=True):
        alone = explain(model, path, size=32)
        assert isinstance(one, Explanation)
        assert (one.name, one.image.size) == (name, alone.image.size)
        np.testing.assert_allclose(one.logits, alone.logits, atol=1e-5)
        np.testing.assert_allclose(one.evidence, alone.evidence, atol=1e-5)


def test_faulty_ones_take_only_their_own_places(
    model: PatchConvNet, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files[3].write_text("no image")
    files[36].unlink()
    answer = image_files.answer

    def refuses_some(network: object, images: list, question: Question) -> list[Explanation]:
        if any(image.name == "20" for image in images):
            raise UserError("not this one")
        return answer(model, images, question)

    monkeypatch.setattr(image_files, "answer", refuses_some)
    said = list(explain_files(model, files, [path.stem for path in files], Question.of(model, size=32)))
    errors = {place: str(one) for place, one in enumerate(said) if isinstance(one, UserError)}
    assert set(errors) == {3, 20, 36}
    assert "03.png is not a readable image" in errors[3]
    assert errors[20] == "not this one"
    assert "there is no image file" in errors[36]
    assert [one.name for one in said if isinstance(one, Explanation)] == [
        f"{k:02d}" for k in range(37) if k not in errors
    ]


def test_few_images_are_held_where_they_are_large(
    model: PatchConvNet, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MOST_HELD", 3000)  # two or three of them
    held, most = set[int](), [0]
    read, lock = image_files.open_image, threading.Lock()

    def counted(path: Path, *rest: object) -> object:
        opened = read(path, *rest)  # type: ignore[arg-type]
        with lock:
            held.add(int(path.stem))
            most[0] = max(most[0], len(held))
        return opened

    monkeypatch.setattr(image_files, "open_image", counted)
    for one in explain_files(model, files, [path.stem for path in files], Question.of(model, size=32), readers=2):
        assert isinstance(one, Explanation)
        with lock:
            held.remove(int(one.name))
    assert not held
    assert most[0] <= 12  # a batch of five, five ahead, and one for each reader; 48 without a limit


def test_a_batch_is_smaller_where_inputs_are_larger() -> None:
    assert [batch_size_for(side, side) for side in (32, 224, 448, 4000)] == [32, 16, 4, 1]
