"""Attention pictures while training: the same few pictures beside their maps, every k epochs, and at the end over all epochs."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from patchconvnet.data.batches import batches
from patchconvnet.data.preprocessing import Preprocessing, pixels
from patchconvnet.data.splits import Split, stratified_split
from patchconvnet.explain import figures
from patchconvnet.explain.placement import Grid, patch_grid
from patchconvnet.training.recipe import MonitorOptions

FOLDER = Path("attention")


class AttentionMonitor:
    """Follows the attention maps of a few validation pictures (never of test pictures).

    Args:
        split: where the pictures are chosen from, evenly over the classes.
        preprocessing: from picture to network input.
        options: how many, how often.
        run: the run folder; pictures go to its `attention/`.
        seed: of the choice.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, options: MonitorOptions, run: Path, seed: int):
        self.split, self.preprocessing, self.options, self.folder = split, preprocessing, options, run / FOLDER
        self.grid: Grid | None = None
        count = min(options.pictures, len(split))
        self.indices = stratified_split(split.labels, [count], seed)[0]

    def is_due(self, epoch: int, last_epoch: int) -> bool:
        """Whether a picture is drawn after this epoch, counted from 0."""
        every = self.options.every
        return bool(every) and ((epoch + 1) % every == 0 or epoch == last_epoch)

    def draw(self, model: nn.Module, epoch: int, device: torch.device) -> np.ndarray:
        """Draw the grid for an epoch (counted from 0) into `attention/`, and keep its maps for `draw_evolution`.

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
        np.save(self._maps_file(epoch), maps)
        self.grid = patch_grid(model, self.preprocessing.size, maps.shape[1:])
        names = self.split.class_names
        titles = [
            names[p] if p == t else f"{names[p]} (is {names[t]})"
            for p, t in zip(predicted.tolist(), labels.tolist(), strict=True)
        ]
        drawn = figures.to_image(
            figures.attention_grid(self._pictures(), maps, titles, heading=f"epoch {epoch + 1}", grid=self.grid)
        )
        drawn.save(self.folder / f"epoch_{epoch + 1:03d}.png")
        return np.asarray(drawn.convert("RGB"))

    def draw_evolution(self) -> list[Path]:
        """One figure and one GIF of the same pictures' maps over the epochs drawn so far; returns their paths."""
        files = sorted(self.folder.glob("maps_*.npy"))
        if not files:
            return []
        epochs = [int(file.stem.split("_")[1]) for file in files]
        maps = np.stack([np.load(file) for file in files])  # (epochs, n, h, w)
        pictures = self._pictures()
        figure, animation = self.folder / "evolution.png", self.folder / "evolution.gif"
        figures.to_image(figures.attention_evolution(pictures, maps, epochs, grid=self.grid)).save(figure)
        frames = [
            figures.to_image(figures.attention_grid(pictures, frame, heading=f"epoch {epoch}", grid=self.grid))
            for frame, epoch in zip(maps, epochs, strict=True)
        ]
        figures.write_gif(frames, animation)
        return [figure, animation]

    def _pictures(self) -> np.ndarray:
        """(n, 3, H, W) uint8: the pictures as the network gets them, before normalisation."""
        channels = self.preprocessing.channels
        seen = [self.preprocessing.resized(pixels(self.split.picture(int(i)), channels)[None])[0] for i in self.indices]
        return torch.stack(seen).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()

    def _maps_file(self, epoch: int) -> Path:
        return self.folder / f"maps_{epoch + 1:05d}.npy"
