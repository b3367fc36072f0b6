// The view: the image, the map over it, what is being painted and the patch that the keyboard is at.

import { camera } from "./camera.js";
import { byId, context, view } from "./elements.js";
import { draw, overlay, patchSquares } from "./maps.js";
import { painting } from "./painting.js";
import { now, rival, shownKind, state, subject } from "./state.js";

const LONGEST_SIDE = 1024; // of what is drawn
const SHORTEST_LONG_SIDE = 640;

let drawn = {}; // the last overlay and what it was made of

/** Make the view as large as the image asks for. */
export function stage({ canvas }) {
  const longest = Math.max(canvas.width, canvas.height);
  const scale = Math.min(Math.max(longest, SHORTEST_LONG_SIDE), LONGEST_SIDE) / longest;
  const [width, height] = [canvas.width, canvas.height].map((side) => Math.max(1, Math.round(side * scale)));
  if (view.width !== width || view.height !== height) [view.width, view.height] = [width, height];
  byId("empty").hidden = true;
  byId("looking").hidden = false;
}

/** Draw the image alone, while there is no answer. */
export function drawImage() {
  draw(context, state.source.canvas, { kind: "none", over: null, strength: 0, answer: null, removed: null });
}

/** Draw the image with the chosen map over it, or none where that is null. */
export function redraw(kind, chosen, strength) {
  const key = [now(), kind, subject(), rival(), view.width, view.height];
  if (chosen && !(drawn.key && key.every((value, i) => value === drawn.key[i]))) {
    const scale = state.source.live && camera.on ? 2 : 1; // half the pixels each way while images follow each other
    drawn = { key, over: overlay(now(), kind, chosen, Math.ceil(view.height / scale), Math.ceil(view.width / scale)) };
  }
  paint(kind, chosen ? drawn.over : null, strength);
}

/** Draw the last map at another strength. */
export function changeStrength(strength) {
  state.strength[shownKind()] = strength;
  paint(shownKind(), drawn.over ?? null, strength);
}

/** Make the next overlay anew. */
export function forget() {
  drawn = {};
}

function paint(kind, over, strength) {
  const { answer, removed, mask, cursor } = state;
  const { canvas } = state.source;
  draw(context, canvas, { kind, over, strength, answer, removed });
  if (painting && mask) {
    context.globalAlpha = 0.4;
    context.drawImage(mask, 0, 0);
    context.globalAlpha = 1;
  }
  if (cursor !== null && state.erasing && document.activeElement === view) {
    const mark = new Uint8Array(answer.grid.height * answer.grid.width);
    mark[cursor] = 1;
    const square = patchSquares(answer, mark, view.height, view.width);
    context.lineWidth = 6;
    context.strokeStyle = "#fff";
    context.stroke(square);
    context.lineWidth = 3;
    context.strokeStyle = "#0b6e6e";
    context.stroke(square);
  }
}
