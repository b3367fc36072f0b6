// What people take home: a figure, and the numbers in the form that `patchconvnet explain` writes.

import { blobOf, shrunk } from "./images.js";
import { chosenMap, draw, newCanvas, overlay } from "./maps.js";

const INK = "#1d1f22",
  PAPER = "#ffffff",
  QUIET = "#63666b",
  BAR = "#0b6e6e";
const FONT = "system-ui, sans-serif";

/** A figure of the image, the map over it, and the likeliest classes, as a PNG file. */
export function figure(answer, { kind, over, strength, removed, headline, caption }) {
  const image = shrunk(answer.source, 1_000_000);
  const height = 480,
    width = Math.round((height * answer.width) / answer.height);
  const margin = 32,
    bars = 300,
    listed = answer.classes.slice(0, 5);
  const canvas = newCanvas(height + 4 * margin + 24, 2 * width + bars + 4 * margin);
  const context = canvas.getContext("2d");
  context.fillStyle = PAPER;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = INK;
  context.font = `600 24px ${FONT}`;
  context.fillText(fitted(context, headline, canvas.width - 2 * margin), margin, margin + 20);
  const top = 2 * margin + 16;
  context.drawImage(image, margin, top, width, height);
  const mapped = newCanvas(height, width);
  draw(mapped.getContext("2d"), image, { kind, over, strength, answer, removed });
  context.drawImage(mapped, 2 * margin + width, top);
  listed.forEach((one, i) => {
    const left = 3 * margin + 2 * width,
      y = top + 20 + i * 56;
    context.font = `16px ${FONT}`;
    context.fillStyle = INK;
    context.fillText(fitted(context, one.name, bars - 72), left, y);
    context.textAlign = "right";
    context.fillText(percent(one.probability), left + bars, y);
    context.textAlign = "left";
    context.fillStyle = "#e4e2dc";
    context.fillRect(left, y + 10, bars, 8);
    context.fillStyle = BAR;
    context.fillRect(left, y + 10, bars * one.probability, 8);
  });
  context.font = `14px ${FONT}`;
  context.fillStyle = QUIET;
  context.fillText(fitted(context, caption, canvas.width - 2 * margin), margin, top + height + margin);
  return blobOf(canvas, "image/png");
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

/** 0.8312 → "83.1 %", and never "100 %" or "0 %" of what is not. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share > 0.9995) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** The numbers of an answer, as the JSON that `patchconvnet explain` writes; maps of the listed classes only. */
export function record(answer, { target, shown, removed, after }) {
  const listed = answer.classes.slice(0, 5).map((one) => one.index);
  if (!listed.includes(target)) listed.push(target);
  const { grid, attention } = answer;
  const rows = (map) =>
    Array.from({ length: grid.height }, (_, y) => Array.from(map.slice(y * grid.width, (y + 1) * grid.width)));
  const of = attention.classWise ? (attention.of ?? answer.names.map((_, k) => k)) : null;
  const wanted = of ? attention.maps.filter((_, q) => listed.includes(of[q])) : attention.maps;
  return {
    name: answer.source.name,
    image: { width: answer.width, height: answer.height },
    input: { ...answer.input, box: answer.box },
    grid,
    predicted: {
      index: answer.classes[0].index,
      name: answer.classes[0].name,
      probability: answer.classes[0].probability,
    },
    shown,
    temperature: answer.temperature,
    classes: answer.classes,
    attention: {
      class_wise: attention.classWise,
      maps: wanted.map(rows),
      of: of ? of.filter((k) => listed.includes(k)) : null,
    },
    evidence: {
      exact: answer.exact,
      maps: listed
        .filter((k) => answer.evidence.has(k))
        .map((k) => ({
          index: k,
          name: answer.names[k],
          bias: answer.evidence.get(k).bias,
          map: rows(answer.evidence.get(k).map),
        })),
    },
    ...(removed ? { without: { patches: rows(removed), classes: after.classes } } : {}),
  };
}

/** The map that an answer is saved with, at the figure's size. */
export function figureOverlay(answer, kind, index, against) {
  const chosen = kind === "none" ? null : chosenMap(answer, kind, index, against);
  return chosen && overlay(answer, kind, chosen, 480, Math.round((480 * answer.width) / answer.height));
}

/** Hand a file to the browser's downloads. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
