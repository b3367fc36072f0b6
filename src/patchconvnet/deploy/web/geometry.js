// How an image is laid into the network input, and where a map's patches are on the image.
// The same formulas as patchconvnet/data/preprocessing.py (`geometry`) and explanation/patch_grid.py (`place`); positions
// are in pixels with whole numbers at pixel edges.

/**
 * What the network input covers of an image.
 *
 * @param {{size: number[], resize: string, crop_ratio: number}} preprocessing as in a model folder's config.json
 * @returns {{left: number, top: number, right: number, bottom: number}} in the image's pixels; beyond its edges for
 *   "letterbox"
 */
export function coveredBox(preprocessing, height, width) {
  const [targetHeight, targetWidth] = preprocessing.size;
  let resized = [targetHeight, targetWidth];
  let offset = [0, 0];
  if (preprocessing.resize === "crop") {
    const [coverHeight, coverWidth] = preprocessing.size.map((side) =>
      Math.floor(side / (preprocessing.crop_ratio ?? 1)),
    );
    resized =
      coverHeight * width >= coverWidth * height
        ? [coverHeight, Math.floor((coverHeight * width) / height)]
        : [Math.floor((coverWidth * height) / width), coverWidth];
    offset = [halfToEven((resized[0] - targetHeight) / 2), halfToEven((resized[1] - targetWidth) / 2)];
  } else if (preprocessing.resize === "letterbox") {
    const scale = Math.min(targetHeight / height, targetWidth / width);
    resized = [height, width].map((side) => Math.max(1, halfToEven(side * scale)));
    offset = [-Math.floor((targetHeight - resized[0]) / 2), -Math.floor((targetWidth - resized[1]) / 2)];
  }
  const [vertical, horizontal] = [height / resized[0], width / resized[1]];
  return {
    left: offset[1] * horizontal,
    top: offset[0] * vertical,
    right: (offset[1] + targetWidth) * horizontal,
    bottom: (offset[0] + targetHeight) * vertical,
  };
}

/** Rounding as Python's `round`: halves go to the even neighbour. */
function halfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** Where patches have their centres, as shares of the image's height ("y") or width ("x"), and half a patch's side. */
export function centres(answer, axis) {
  const { box, grid, input } = answer;
  const [start, end, whole, pixels, count] =
    axis === "y"
      ? [box.top, box.bottom, answer.height, input.height, grid.height]
      : [box.left, box.right, answer.width, input.width, grid.width];
  const scale = (end - start) / pixels / whole;
  const at = Array.from({ length: count }, (_, i) => start / whole + scale * (grid.first[axis] + i * grid.step[axis]));
  return { at, half: (scale * grid.step[axis]) / 2 };
}

/** For each of `pixels` along an axis: the patch before its centre, how far it is on the way to the next, and whether
 * the network saw it. */
export function readings(answer, axis, pixels) {
  const { at, half } = centres(answer, axis);
  const [start, end, whole] =
    axis === "y"
      ? [answer.box.top, answer.box.bottom, answer.height]
      : [answer.box.left, answer.box.right, answer.width];
  const before = new Uint16Array(pixels),
    part = new Float32Array(pixels),
    seen = new Uint8Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const position = (i + 0.5) / pixels;
    const index = Math.min(Math.max((position - at[0]) / (2 * half), 0), at.length - 1);
    before[i] = Math.min(Math.floor(index), Math.max(at.length - 2, 0));
    part[i] = index - before[i];
    seen[i] = position * whole > start && position * whole < end ? 1 : 0;
  }
  return { before, part, seen };
}

/** A map over the patches, bilinear between their centres and constant beyond, at `height` × `width` pixels of the image. */
export function place(answer, map, height, width) {
  const rows = readings(answer, "y", height),
    columns = readings(answer, "x", width);
  const { grid } = answer;
  const below = grid.height > 1 ? grid.width : 0,
    right = grid.width > 1 ? 1 : 0;
  const values = new Float32Array(height * width),
    line = new Float32Array(grid.width);
  for (let y = 0, i = 0; y < height; y++) {
    const row = rows.before[y] * grid.width,
      part = rows.part[y];
    for (let x = 0; x < grid.width; x++) line[x] = map[row + x] * (1 - part) + map[row + x + below] * part;
    for (let x = 0; x < width; x++, i++) {
      const at = columns.before[x],
        share = columns.part[x];
      values[i] = rows.seen[y] && columns.seen[x] ? line[at] * (1 - share) + line[at + right] * share : 0;
    }
  }
  return { values, rows, columns };
}
