"""Attention while training: a few images beside their maps every k epochs, and at the end over all epochs.

And one image explained, for the model card.
"""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.data.batches import batches
from patchconvnet.data.images import pixels
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.explanation.evidence import forward_with_maps
from patchconvnet.explanation.evolution import attention_evolution, attention_grid, evolution_frames, write_gif
from patchconvnet.explanation.explainer import explain
from patchconvnet.explanation.maps import FLAT, Kind, flatness
from patchconvnet.explanation.patch_grid import patch_grid
from patchconvnet.files import write_array, write_atomic
from patchconvnet.training.recipe import MonitorOptions

MOST_FRAMES = 60  # of the animation
_CAPTIONS = {
    "attention": "attention",
    "evidence": "evidence for the predicted class (attention is nearly uniform)",
}


class AttentionMonitor:
    """Follows the attention maps of a few validation images (never of test images).

    Args:
        split: where the images are chosen from, evenly over the classes.
        preprocessing: from image to network input.
        options: how many, how often.
        folder: where the drawings go.
        seed: of the choice.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, options: MonitorOptions, folder: Path, seed: int):
        self.split, self.preprocessing, self.options, self.folder = split, preprocessing, options, folder
        self.indices = _evenly_over_classes(split.labels, options.images, seed)

    def is_due(self, epoch: int, last_epoch: int) -> bool:
        """Whether a grid is drawn after this epoch, counted from 0."""
        every = self.options.every
        return bool(every) and ((epoch + 1) % every == 0 or epoch == last_epoch)

    def draw(self, model: nn.Module, epoch: int, device: torch.device) -> np.ndarray:
        """Draw the grid for an epoch (counted from 0) into the folder, and keep its maps for `draw_evolution`.

        Returns:
            The grid as (H, W, 3) uint8.
        """
        images, labels, _ = next(
            batches(self.split, self.preprocessing, len(self.indices), device=device, indices=self.indices)
        )
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            output = model(images, return_attention=True)
        predicted = output.logits.argmax(1)
        attention = output.attention.float()
        # a map of the predicted class where every class has one
        rows = predicted if attention.shape[1] > 1 else torch.zeros_like(predicted)
        maps = attention[torch.arange(len(rows), device=rows.device), rows].cpu().numpy()  # (n, h, w)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_array(self._maps_file(epoch), maps)
        kind: Kind = "attention"
        if flatness(maps) > FLAT:
            with torch.no_grad():
                evidence = forward_with_maps(model, images, top=1).evidence_of(predicted[:, None])[:, 0]
            kind, maps = "evidence", evidence.float().cpu().numpy()
            write_array(self._evidence_file(epoch), maps)
        model.train(was_training)
        grid = patch_grid(model, self.preprocessing.size, maps.shape[1:])
        names = self.split.class_names
        titles = [
            names[p] if p == t else f"{names[p]} (is {names[t]})"
            for p, t in zip(predicted.tolist(), labels.tolist(), strict=True)
        ]
        heading = f"epoch {epoch + 1}: {_CAPTIONS[kind]}"
        drawn = attention_grid(self._images(), maps, titles, heading=heading, grid=grid, kind=kind)
        write_atomic(self.folder / f"epoch_{epoch + 1:03d}.png", lambda part: drawn.save(part, "PNG"))
        return np.asarray(drawn)

    def draw_evolution(self, model: nn.Module) -> list[Path]:
        """One figure and one GIF of the same images' maps over the epochs drawn so far; returns their paths.

        The maps are attention, or evidence if attention was nearly uniform in every epoch.
        """
        epochs = self._drawn()
        if not epochs:
            return []
        epochs = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, MOST_FRAMES).round().astype(int))]
        flat = all(self._evidence_file(epoch - 1).exists() for epoch in epochs)
        kind: Kind = "evidence" if flat else "attention"
        file = self._evidence_file if flat else self._maps_file
        maps = np.stack([np.load(file(epoch - 1)) for epoch in epochs])  # (epochs, n, h, w)
        images = self._images()
        grid = patch_grid(model, self.preprocessing.size, maps.shape[2:])
        figure, animation = self.folder / "evolution.png", self.folder / "evolution.gif"
        drawn = attention_evolution(images, maps, epochs, grid=grid, kind=kind)
        frames = evolution_frames(images, maps, epochs, grid=grid, kind=kind)
        write_atomic(figure, lambda part: drawn.save(part, "PNG"))
        write_atomic(animation, lambda part: write_gif(frames, part))
        return [figure, animation]

    def forget_after(self, epochs: int) -> None:
        """Remove what a killed run drew of epochs that will be repeated; `epochs` are done."""
        for epoch in self._drawn():
            if epoch > epochs:
                self._maps_file(epoch - 1).unlink()
                self._evidence_file(epoch - 1).unlink(missing_ok=True)

    def _drawn(self) -> list[int]:
        """Epochs with maps, counted from 1."""
        return sorted(int(file.stem.split("_")[1]) for file in self.folder.glob("maps_*.npy"))

    def _images(self) -> np.ndarray:
        """(n, 3, H, W) uint8: the images as the network gets them, before normalisation."""
        channels = self.preprocessing.channels
        seen = [self.preprocessing.resized(pixels(self.split.image(int(i)), channels)[None])[0] for i in self.indices]
        return torch.stack(seen).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()

    def _maps_file(self, epoch: int) -> Path:
        return self.folder / f"maps_{epoch + 1:05d}.npy"

    def _evidence_file(self, epoch: int) -> Path:
        """There only where attention was nearly uniform."""
        return self.folder / f"evidence_{epoch + 1:05d}.npy"


def explained_example(model: nn.Module, split: Split, seed: int) -> bytes:
    """An image of a split, chosen by chance, as a figure that explains it: a JPEG for the model card."""
    (index,) = _evenly_over_classes(split.labels, 1, seed).tolist()
    explanation = explain(model, split.image(index), name=split.class_names[int(split.labels[index])])
    file = io.BytesIO()
    explanation.figure().savefig(file, format="jpeg", dpi=100, pil_kwargs={"quality": 85})
    return file.getvalue()


def _evenly_over_classes(labels: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` images chosen at random, a class getting its second only after all have their first."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.empty_like(order)  # which of its class's images each one is, in that order
    for label in labels.unique():
        members = labels[order] == label
        turn[members] = torch.arange(int(members.sum()))
    chosen = order[turn.argsort(stable=True)[:count]]
    return chosen[labels[chosen].argsort(stable=True)]
