"""How a photograph is best given to a network that was trained on centre crops: cropped, letterboxed, or whole.

    python benchmarks/whole_photographs.py PHOTOS PETS [--masks PETS_MASKS] [--limit 200] [--ways 'crop 224;view whole']

PHOTOS holds images with NAME_mask.png beside some; PETS holds the folders cat/ and dog/, PETS_MASKS theirs of masks.
The model is `imagenet`. A photograph is right if the likeliest class is one of those that name what it shows (two show
nothing that ImageNet has a name for), a pet if that is any of ImageNet's cats, or dogs. Certainty is the likeliest
class's probability. Energy and MaxBoxAccV2 are those of the evidence for the likeliest class over the whole photograph,
with nothing where it was not seen, for all masked photographs and 40 pets.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchconvnet import explain, load
from patchconvnet.data.images import read_image
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.explanation.crops import View
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.faithfulness.metrics.localisation import box_overlaps, energy, max_box_accuracy

CATS, DOGS = range(281, 286), range(151, 269)
NAMES = {  # the beginnings of names of ImageNet's that are right for a photograph
    "airplane_kodim20": ("warplane", "airliner", "wing"), "bear_coco285": ("brown bear",),
    "boat_kodim06": ("lifeboat", "dock", "fireboat", "speedboat", "schooner", "boathouse", "trimaran"),
    "bus_coco471": ("school bus", "minibus", "trolleybus"), "coffee": ("espresso", "cup", "coffee mug"),
    "cat_chelsea": CATS, "cat_egyptian_mau": CATS, "cat_siamese": CATS,
    "dog_american_bulldog": DOGS, "dog_leonberger": DOGS, "dog_samoyed": DOGS,
    "lighthouse_kodim19": ("beacon",), "motocross_coco529": ("motor scooter", "moped", "crash helmet", "mountain bike"),
    "motorcycle_coco73": ("motor scooter", "moped", "disk brake"), "navy_lcac": ("amphibian", "aircraft carrier"),
    "parrots_kodim23": ("macaw",), "pizza_coco450": ("pizza",), "rocket": ("missile", "projectile", "space shuttle"),
    "sailboat_kodim10": ("yawl", "schooner", "catamaran", "trimaran"), "shuttle_endeavour": ("space shuttle",),
}  # fmt: skip
MASKED_PETS = 40


@dataclass(frozen=True)
class Way:
    """How an image is given: its preprocessing from the network's own and the image's size, `refine` and `view`."""

    preprocessing: Callable[[Preprocessing, int, int], Preprocessing]
    refine: int = 0
    view: View = "own"


def rectangle(side: int, longer: bool = False, cells: int = 32) -> Callable[[Preprocessing, int, int], Preprocessing]:
    """The whole image, its shorter (or longer) side at `side` pixels, in whole patches."""

    def whole(own: Preprocessing, height: int, width: int) -> Preprocessing:
        scale = side / (max if longer else min)(height, width)
        size = tuple(max(1, round(length * scale / cells)) * cells for length in (height, width))
        return replace(own, size=size, resize="stretch", crop_ratio=1.0)

    return whole


def square(side: int, resize: str) -> Callable[[Preprocessing, int, int], Preprocessing]:
    def whole(own: Preprocessing, height: int, width: int) -> Preprocessing:
        return replace(own, size=(side, side), resize=resize, crop_ratio=own.crop_ratio if resize == "crop" else 1.0)

    return whole


WAYS = {
    "crop 224": Way(square(224, "crop")),
    "crop 224, of all of the shorter side": Way(lambda own, *_: replace(own, crop_ratio=1.0)),
    "letterbox 224": Way(square(224, "letterbox")),
    "view whole": Way(square(224, "crop"), 0, "whole"),
    "view whole, refine 2": Way(square(224, "crop"), 2, "whole"),
    "rectangle, shorter side 192": Way(rectangle(192)),
    "rectangle, shorter side 192, refine 2": Way(rectangle(192), 2),
    "stretch 224": Way(square(224, "stretch")),
    "rectangle, longer side 256": Way(rectangle(256, longer=True)),
    "rectangle, longer side 288": Way(rectangle(288, longer=True)),
    "rectangle, shorter side 224": Way(rectangle(224)),
    "rectangle, shorter side 256": Way(rectangle(256)),
    "rectangle, shorter side 320": Way(rectangle(320)),
    "rectangle, shorter side 448": Way(rectangle(448)),
    "crop 224, refine 1": Way(square(224, "crop"), 1),
    "crop 224, refine 2": Way(square(224, "crop"), 2),
    "rectangle, shorter side 224, refine 1": Way(rectangle(224), 1),
    "rectangle, shorter side 224, refine 2": Way(rectangle(224), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("pets", type=Path)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="pets, divided evenly among cats and dogs")
    parser.add_argument("--ways", help=f"some of {'; '.join(WAYS)}, with ; between them")
    a = parser.parse_args()
    model = load("imagenet").eval()
    own = preprocessing_of(model)
    photos = [path for path in sorted(a.photos.iterdir()) if path.stem in NAMES]
    pets = [path for kind in ("cat", "dog") for path in sorted((a.pets / kind).glob("*.jpg"))[: a.limit // 2]]
    masks = {path: path.with_name(f"{path.stem}_mask.png") for path in photos}
    if a.masks:
        for kind in ("cat", "dog"):
            for path in [path for path in pets if path.parent.name == kind][: MASKED_PETS // 2]:
                masks[path] = a.masks / kind / f"{path.stem}.png"
    print("| input | photographs right | certainty | pets right | energy in mask | MaxBoxAccV2 | ms an image |")
    print("|---|---|---|---|---|---|---|")
    for name in a.ways.split(";") if a.ways else WAYS:
        way = WAYS[name.strip()]
        wanted = [*photos, *pets] if not way.refine else [*photos, *(p for p in pets if p in masks)]
        right: dict[bool, list[bool]] = {True: [], False: []}
        certain, energies, overlaps, seconds = [], [], [], []
        for path in wanted:
            image = read_image(path)
            preprocessing = way.preprocessing(own, image.height, image.width)
            started = time.perf_counter()
            said = explain(model, image, preprocessing=preprocessing, refine=way.refine, view=way.view)
            seconds.append(time.perf_counter() - started)
            best = said.predicted
            names = NAMES.get(path.stem) or (CATS if path.parent.name == "cat" else DOGS)
            hit = best.index in names if isinstance(names, range) else best.name.startswith(tuple(names))
            right[path in photos].append(hit)
            if path in photos:
                certain.append(best.probability)
            if (file := masks.get(path)) and file.is_file():
                with Image.open(file) as opened:
                    mask = np.asarray(opened.convert("L")) > 0
                placed = said.placed(kind="evidence")
                energies.append(energy(torch.from_numpy(placed)[None], torch.from_numpy(mask)[None]).item())
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float64)
                overlaps.append(box_overlaps(placed, box))
        found = max_box_accuracy(np.stack(overlaps)) if overlaps else {0.5: math.nan}
        print(
            f"| {name.strip()} | {sum(right[True])} of {len(photos)} | {np.mean(certain):.3f} | "
            f"{np.mean(right[False]):.1%} of {len(right[False])} | {np.mean(energies):.3f} | "
            f"{np.mean(list(found.values())):.3f} | {np.median(seconds) * 1000:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
