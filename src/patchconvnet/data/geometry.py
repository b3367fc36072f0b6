"""How an image is laid into the network input. Without torch, so that what only draws need not wait for it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Geometry:
    """How an image is laid into the network input; made by `Preprocessing.geometry`.

    Args:
        image: (height, width) of the image.
        resized: (height, width) the whole image is resized to.
        offset: (top, left) corner of the network input on the resized image; negative for letterbox.
        size: (height, width) of the network input.
        part: (left, top, right, bottom) of what is cut out of the image before anything else, in whole pixels; what
            is resized, and lies at the offset, is that part then. None for all of it.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    part: tuple[int, int, int, int] | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What the network input covers, (left, top, right, bottom) in image pixels, edges at whole numbers.

        It lies inside of the image for "crop", is the image for "stretch", and goes beyond it for "letterbox".
        """
        x0, y0, x1, y1 = self.part or (0, 0, self.image[1], self.image[0])
        vertical, horizontal = (y1 - y0) / self.resized[0], (x1 - x0) / self.resized[1]
        top, left = self.offset
        bottom, right = top + self.size[0], left + self.size[1]
        return (x0 + left * horizontal, y0 + top * vertical, x0 + right * horizontal, y0 + bottom * vertical)

    def on(self, image: tuple[int, int]) -> "Geometry":
        """The same on that image resized to another (height, width)."""
        if image == self.image:
            return self
        part = None
        if self.part:
            by = (image[1] / self.image[1], image[0] / self.image[0]) * 2
            left, top, right, bottom = (round(side * scale) for side, scale in zip(self.part, by, strict=True))
            part = (left, top, max(right, left + 1), max(bottom, top + 1))
        return replace(self, image=image, part=part)
