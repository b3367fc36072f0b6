"""For `bulk/predictor.py`: a batch in several passes side by side is answered as in one."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from patchconvnet.bulk.predictor import ModelChoice, Predictor, Settings
from patchconvnet.models import Metadata


@pytest.mark.parametrize("maps", ["none", "attention", "evidence"])
def test_passes_side_by_side_say_what_one_pass_says(tmp_path: Path, maps: Any) -> None:
    model = timm.create_model("patchconvnet_micro", num_classes=3, embed_dim=32, depth=1)
    model.metadata = Metadata(class_names=["a", "b", "c"], preprocessing={"size": [32, 32]})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        asked = Settings(maps=maps, embeddings=maps != "none")
        predictor = Predictor(ModelChoice(str(model.save_pretrained(tmp_path)), device="cpu"), asked)
        images = torch.rand(predictor.batch_size - 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            in_one = predictor._answer(images)
        in_several = predictor.answer(images)
        assert len(images) > predictor._at_once, "it is split"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for expected, got in zip(in_one, in_several, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None and got is not None:
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
