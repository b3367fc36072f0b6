// Draws an image with a map over it, as patchconvnet/explanation/colours.py and maps.py do.

import { ATTENTION, EVIDENCE } from "./colours.js";
import { centres, place } from "./geometry.js";

const BRIGHT = 3; // times uniform attention: what is drawn brightest at least, or an even map would be bright all over
const FLAT = 0.9; // of the perplexity that uniform attention has
/** How strong each kind of map is drawn until somebody moves the slider, 0..1. */
export const STRENGTH = { attention: 0.6, evidence: 0.9, contrast: 0.9, none: 0 };

/**
 * One map of an answer.
 *
 * @param {"attention"|"evidence"|"contrast"} kind
 * @param {number} index the class that it is about
 * @param {number} against the other class of a contrast
 * @returns {{map: Float32Array, scale: number} | null} null where the answer has no such map
 */
export function chosenMap(answer, kind, index, against) {
  if (kind === "attention") {
    const { maps } = answer.attention;
    const of = answer.attention.of ?? maps.map((_, q) => q);
    const map = classWise(answer) ? maps[of.indexOf(index)] : mean(maps);
    return map ? { map, scale: attentionScale(map) } : null;
  }
  const evidence = answer.evidence.get(index)?.map;
  if (!evidence) return null;
  if (kind === "evidence") return { map: evidence, scale: largest(evidence) };
  const other = answer.evidence.get(against)?.map;
  if (!other) return null;
  const map = evidence.map((value, i) => value - other[i]);
  return { map, scale: largest(map) };
}

/** Attention, or evidence where attention says little: nearly uniform, or of several queries that share one decision. */
export function tellingKind(answer) {
  if (!answer.evidence.size) return "attention";
  const { maps } = answer.attention;
  const shared = maps.length > 1 && !classWise(answer);
  const map = chosenMap(answer, "attention", answer.classes[0].index);
  return shared || !map || flatness(map.map) > FLAT ? "evidence" : "attention";
}

/** Whether each class has an attention map of its own. */
export function classWise(answer) {
  return answer.attention.classWise;
}

function flatness(map) {
  const total = map.reduce((sum, value) => sum + value, 0);
  const entropy = map.reduce((sum, value) => sum - (value / total) * Math.log(Math.max(value / total, 1e-30)), 0);
  return Math.exp(entropy) / map.length;
}

function mean(maps) {
  return maps.length === 1 ? maps[0] : maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length);
}

function attentionScale(map) {
  const uniform = map.reduce((sum, value) => sum + value, 0) / map.length;
  return Math.max(Math.max(...map), BRIGHT * uniform) || 1;
}

function largest(map) {
  return map.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
}

/** A map's colours at `width` × `height` pixels of the image, as a canvas to be drawn over it. */
export function overlay(answer, kind, { map, scale }, height, width) {
  const { values } = place(answer, map, height, width);
  const canvas = newCanvas(height, width);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const rgba = new Uint32Array(pixels.data.buffer);
  if (kind === "attention") {
    const colours = packed(ATTENTION);
    for (let i = 0; i < values.length; i++) rgba[i] = colours[shade(values[i] / scale)] | 0xff000000;
  } else {
    const colours = packed(EVIDENCE);
    for (let i = 0; i < values.length; i++) {
      const relative = values[i] / scale;
      rgba[i] = colours[shade((relative + 1) / 2)] | (Math.round(255 * Math.min(Math.abs(relative), 1)) << 24);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function packed(table) {
  return Uint32Array.from({ length: 256 }, (_, i) => table[3 * i] | (table[3 * i + 1] << 8) | (table[3 * i + 2] << 16));
}

function shade(share) {
  return Math.min(Math.max(Math.floor(share * 256), 0), 255);
}

/**
 * Draw the image, the map over it at some strength, what was taken out and what the network did not see.
 *
 * @param {CanvasRenderingContext2D} context of a canvas that has the size to draw at
 * @param {CanvasImageSource} image
 * @param {{kind: string, over: HTMLCanvasElement|null, strength: number, answer: object|null, removed: Uint8Array|null}} what
 */
export function draw(context, image, { kind, over, strength, answer, removed }) {
  const { width, height } = context.canvas;
  context.globalAlpha = 1;
  context.globalCompositeOperation = "source-over";
  context.drawImage(image, 0, 0, width, height);
  if (over && strength > 0) {
    if (kind !== "attention") {
      context.globalAlpha = strength; // a grey and pale print of the image, on which both colours can be told apart
      context.globalCompositeOperation = "color";
      context.fillStyle = "#808080";
      context.fillRect(0, 0, width, height);
      context.globalAlpha = strength * 0.35;
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, height);
    }
    context.globalAlpha = strength;
    context.globalCompositeOperation = "source-over";
    context.drawImage(over, 0, 0, width, height);
    context.globalAlpha = 1;
  }
  if (answer) {
    if (removed?.some(Boolean)) hatch(context, patchSquares(answer, removed, height, width), "#f6f5f1", "#8a877e");
    hatch(context, unseen(answer, height, width), "rgba(88, 88, 88, 0.75)", "rgba(170, 170, 170, 0.75)");
    frameSeen(context, answer);
  }
}

/** The squares of patches that are marked, on a canvas. */
export function patchSquares(answer, marked, height, width) {
  const rows = centres(answer, "y"),
    columns = centres(answer, "x");
  const path = new Path2D();
  marked.forEach((is, i) => {
    if (!is) return;
    const y = rows.at[Math.floor(i / columns.at.length)],
      x = columns.at[i % columns.at.length];
    const left = Math.round((x - columns.half) * width),
      top = Math.round((y - rows.half) * height);
    path.rect(left, top, Math.round((x + columns.half) * width) - left, Math.round((y + rows.half) * height) - top);
  });
  return path;
}

function seenBox(answer, height, width) {
  const { box } = answer;
  const left = Math.max(0, (box.left / answer.width) * width),
    top = Math.max(0, (box.top / answer.height) * height);
  const right = Math.min(width, (box.right / answer.width) * width);
  const bottom = Math.min(height, (box.bottom / answer.height) * height);
  return { left, top, right, bottom };
}

function unseen(answer, height, width) {
  const { left, top, right, bottom } = seenBox(answer, height, width);
  const path = new Path2D();
  path.rect(0, 0, width, top);
  path.rect(0, bottom, width, height - bottom);
  path.rect(0, top, left, bottom - top);
  path.rect(right, top, width - right, bottom - top);
  return path;
}

function frameSeen(context, answer) {
  const { width, height } = context.canvas;
  const { left, top, right, bottom } = seenBox(answer, height, width);
  if (left < 1 && top < 1 && right > width - 1 && bottom > height - 1) return;
  context.strokeStyle = "#fff";
  context.lineWidth = Math.max(1, Math.max(width, height) / 240);
  context.strokeRect(left, top, right - left, bottom - top);
}

function hatch(context, path, dark, light) {
  const { width, height } = context.canvas;
  const period = Math.max(6, Math.max(width, height) / 48);
  context.save();
  context.clip(path);
  context.fillStyle = dark;
  context.fillRect(0, 0, width, height);
  context.strokeStyle = light;
  context.lineWidth = Math.max(1, period / 8);
  context.beginPath();
  for (let x = -height; x < width; x += period) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
}

/** A bar of the colours of a kind of map, from its lowest to its highest value. */
export function drawScale(canvas, kind) {
  const table = kind === "attention" ? ATTENTION : EVIDENCE;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) pixels.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
  context.putImageData(pixels, 0, 0);
}

/** Where a map is strongest, in words, for those who cannot see it. */
export function strongestPart(answer, map) {
  let best = 0;
  map.forEach((value, i) => (best = value > map[best] ? i : best));
  const y = centres(answer, "y").at[Math.floor(best / answer.grid.width)];
  const x = centres(answer, "x").at[best % answer.grid.width];
  const vertical = y < 1 / 3 ? "top" : y > 2 / 3 ? "bottom" : "";
  const horizontal = x < 1 / 3 ? "left" : x > 2 / 3 ? "right" : "";
  return [vertical, horizontal].filter(Boolean).join(" ") || "middle";
}

export function newCanvas(height, width) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
