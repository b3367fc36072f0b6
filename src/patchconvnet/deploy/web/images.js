// From what people bring, a file, a drop, a paste, an address of this site, to an upright image on a white ground.

import { newCanvas } from "./maps.js";

/** A sentence to show. */
export class Sentence extends Error {}

/**
 * @typedef {object} Source an image that somebody brought
 * @property {HTMLCanvasElement} canvas its pixels
 * @property {string} name for files that are saved
 * @property {Blob|null} blob the file as it came, null where it comes from the camera
 */

/**
 * Decode an image as Python does: upright, colour profiles ignored, transparent parts over white.
 *
 * @param {Blob} blob
 * @param {string} name
 * @returns {Promise<Source>}
 */
export async function decode(blob, name) {
  if (!blob.size) throw new Sentence(`${name} is empty.`);
  const drawing = blob.type === "image/svg+xml";
  let bitmap;
  try {
    bitmap = drawing ? await element(blob) : await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Sentence(`${name} is not an image that this browser can read; try a JPEG, PNG, WebP or GIF file.`);
  }
  const canvas = newCanvas(bitmap.height, bitmap.width);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context || !canvas.width) throw new Sentence(`${name} is too large for this browser; make it smaller.`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close?.();
  return { canvas, name: name.replace(/\.[^.]*$/, ""), blob: drawing ? null : blob };
}

async function element(blob) {
  const image = new Image();
  const address = URL.createObjectURL(blob);
  try {
    image.src = address;
    await image.decode();
    return image;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** The file of an image, to be sent. */
export function fileOf(source, type = "image/png") {
  return source.blob ?? blobOf(source.canvas, type);
}

/** A canvas as a file. */
export function blobOf(canvas, type) {
  return new Promise((resolve, reject) =>
    canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Sentence("This browser could not write the image."))),
      type,
      0.92,
    ),
  );
}

/** The same image with at most `most` pixels. */
export function shrunk(source, most) {
  const { canvas } = source;
  const scale = Math.sqrt(most / (canvas.width * canvas.height));
  if (scale >= 1) return canvas;
  const small = newCanvas(
    Math.max(1, Math.round(canvas.height * scale)),
    Math.max(1, Math.round(canvas.width * scale)),
  );
  const context = small.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, small.width, small.height);
  return small;
}
