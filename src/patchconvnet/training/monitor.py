"""Attention while training: a few images beside their maps every k epochs, and at the end over all epochs."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.data.batches import batches
from patchconvnet.data.images import pixels
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split
from patchconvnet.explanation import evolution
from patchconvnet.explanation.figures import to_image
from patchconvnet.explanation.patch_grid import patch_grid
from patchconvnet.files import write_array, write_atomic
from patchconvnet.training.recipe import MonitorOptions

MOST_FRAMES = 60  # of the animation


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
        """Whether an image is drawn after this epoch, counted from 0."""
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
        model.train(was_training)
        predicted = output.logits.argmax(1)
        attention = output.attention.float()
        # a map of the predicted class where every class has one
        rows = predicted if attention.shape[1] > 1 else torch.zeros_like(predicted)
        maps = attention[torch.arange(len(rows), device=rows.device), rows].cpu().numpy()  # (n, h, w)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_array(self._maps_file(epoch), maps)
        grid = patch_grid(model, self.preprocessing.size, maps.shape[1:])
        names = self.split.class_names
        titles = [
            names[p] if p == t else f"{names[p]} (is {names[t]})"
            for p, t in zip(predicted.tolist(), labels.tolist(), strict=True)
        ]
        drawn = to_image(
            evolution.attention_grid(self._images(), maps, titles, heading=f"epoch {epoch + 1}", grid=grid)
        )
        write_atomic(self.folder / f"epoch_{epoch + 1:03d}.png", lambda part: drawn.save(part, "PNG"))
        return np.asarray(drawn.convert("RGB"))

    def draw_evolution(self, model: nn.Module) -> list[Path]:
        """One figure and one GIF of the same images' maps over the epochs drawn so far; returns their paths."""
        epochs = self._drawn()
        if not epochs:
            return []
        epochs = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, MOST_FRAMES).round().astype(int))]
        maps = np.stack([np.load(self._maps_file(epoch - 1)) for epoch in epochs])  # (epochs, n, h, w)
        images = self._images()
        grid = patch_grid(model, self.preprocessing.size, maps.shape[2:])
        figure, animation = self.folder / "evolution.png", self.folder / "evolution.gif"
        drawn = to_image(evolution.attention_evolution(images, maps, epochs, grid=grid))
        frames = evolution.evolution_frames(images, maps, epochs, grid=grid)
        write_atomic(figure, lambda part: drawn.save(part, "PNG"))
        write_atomic(animation, lambda part: evolution.write_gif(frames, part))
        return [figure, animation]

    def forget_after(self, epochs: int) -> None:
        """Remove what a killed run drew of epochs that will be repeated; `epochs` are done."""
        for epoch in self._drawn():
            if epoch > epochs:
                self._maps_file(epoch - 1).unlink()

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


def _evenly_over_classes(labels: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` images chosen at random, a class getting its second only after all have their first."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.empty_like(order)  # which of its class's images each one is, in that order
    for label in labels.unique():
        members = labels[order] == label
        turn[members] = torch.arange(int(members.sum()))
    chosen = order[turn.argsort(stable=True)[:count]]
    return chosen[labels[chosen].argsort(stable=True)]
