"""fastai's `fine_tune` on a folder, for comparison: a process of a Python that has fastai (see `pretrained.py`).

    FASTAI_PYTHON fastai_finetune.py FOLDER WEIGHTS --epochs 4 --seed 0 [--size 224]

FOLDER holds train/, val/ and test/ with a folder for each class; WEIGHTS is timm's tf_efficientnet_lite0 as
safetensors. One epoch with the body frozen, then --epochs of everything by one cycle, with fastai's own head, rates
and augmentation (`aug_transforms`). Prints one line of JSON: test top-1 and the seconds of training.
"""

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=4, help="after the one with the body frozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=224, help="of the images, square")
    a = parser.parse_args()
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        GrandparentSplitter,
        ImageBlock,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        parent_label,
        set_seed,
        vision_learner,
    )

    set_seed(a.seed, reproducible=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=lambda folder: [path for split in ("train", "val") for path in get_image_files(folder / split)],
        splitter=GrandparentSplitter(train_name="train", valid_name="val"),
        get_y=parent_label,
        item_tfms=Resize(a.size * 8 // 7),
        batch_tfms=aug_transforms(size=a.size),
    )
    data = block.dataloaders(a.folder, bs=32, num_workers=0, device="cpu")
    learner = vision_learner(
        data, "tf_efficientnet_lite0", metrics=accuracy, pretrained_cfg_overlay={"file": str(a.weights)}
    )
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(a.epochs)
    seconds = time.perf_counter() - started
    test = data.test_dl(get_image_files(a.folder / "test"), with_labels=True)
    with learner.no_bar(), learner.no_logging():
        _, top1 = learner.validate(dl=test)
    print(json.dumps({"top1": top1, "seconds": seconds}))


if __name__ == "__main__":
    main()
