"""How an image is laid into the network input. Without torch, so that what only draws need not wait for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """How an image is laid into the network input; made by `Preprocessing.geometry`.

    Args:
        image: (height, width) of the image.
        resized: (height, width) the whole image is resized to.
        offset: (top, left) corner of the network input on the resized image; negative for letterbox.
        size: (height, width) of the network input.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What the network input covers, (left, top, right, bottom) in image pixels, edges at whole numbers.

        It lies inside of the image for "crop", is the image for "stretch", and goes beyond it for "letterbox".
        """
        vertical = self.image[0] / self.resized[0]
        horizontal = self.image[1] / self.resized[1]
        top, left = self.offset
        bottom, right = top + self.size[0], left + self.size[1]
        return (left * horizontal, top * vertical, right * horizontal, bottom * vertical)
