// What if this were gone: a part of the image is painted over, or taken out patch by patch with the keyboard.

import { camera } from "./camera.js";
import { all, byId, view } from "./elements.js";
import { engine } from "./engine.js";
import { centres } from "./geometry.js";
import { newCanvas, patchSquares } from "./maps.js";
import { announce, calm } from "./messages.js";
import { coveredPatches, without } from "./removal.js";
import { percent } from "./saving.js";
import { changed, now, state, turn } from "./state.js";

export let painting = false; // while the pointer is down

/** Show the tools for it, and how much is gone. */
export function tools() {
  const { answer, erasing, removed, after } = state;
  const possible = answer.removal && !camera.on;
  byId("erase").disabled = !possible;
  byId("erase").setAttribute("aria-pressed", String(erasing));
  for (const element of all(".erasing")) element.hidden = !erasing;
  view.classList.toggle("paintable", erasing);
  view.setAttribute("role", erasing ? "application" : "img");
  if (erasing) {
    view.tabIndex = 0;
    view.setAttribute(
      "aria-label",
      "Paint over a part of the image. With the keyboard: arrow keys move from patch to patch, space takes one out or puts it back.",
    );
  } else view.removeAttribute("tabindex");
  const gone = byId("gone");
  gone.hidden = false;
  const count = removed ? removed.reduce((sum, one) => sum + one, 0) : 0;
  if (camera.on) gone.hidden = true;
  else if (!answer.removal)
    gone.textContent =
      "For this network, what a part would leave behind cannot be computed exactly from its maps; patchconvnet explain --without asks the network again.";
  else if (!erasing) gone.hidden = true;
  else if (count && !after) gone.textContent = "Nothing is left to answer from: leave a part of the image.";
  else if (count)
    gone.textContent = `${count} of ${removed.length} patches are gone; the answer is that of the others, exactly. What they saw of the part at its border stays.`;
  else gone.textContent = "Paint over a part of the image.";
}

/** Begin to take parts out, or end it. */
export async function erase() {
  if (state.erasing) {
    restore();
    state.erasing = false;
    return changed();
  }
  calm();
  const mine = turn;
  if (!state.answer.complete) {
    byId("working").hidden = false;
    try {
      const answer = await engine.completed(state.answer);
      if (mine !== turn) return;
      state.answer = answer;
    } finally {
      byId("working").hidden = true;
    }
  }
  state.erasing = true;
  state.mask = newCanvas(view.height, view.width);
  state.mask.getContext("2d", { willReadFrequently: true });
  changed();
  announce("Paint over a part of the image, or use arrow keys and space on it.");
}

/** Put everything back. */
export function restore() {
  state.mask?.getContext("2d").clearRect(0, 0, view.width, view.height);
  state.removed = state.after = null;
}

/** The pointer went down on the view: paint until it goes up. */
export function startStroke(event) {
  if (!state.erasing || event.button) return;
  event.preventDefault();
  view.setPointerCapture(event.pointerId);
  painting = true;
  state.cursor = null;
  let at = brushTo(event);
  const moved = (next) => {
    for (const each of next.getCoalescedEvents?.() ?? []) at = brushTo(each, at);
    at = brushTo(next, at);
    reconsiderSoon();
  };
  const ended = () => {
    painting = false;
    view.removeEventListener("pointermove", moved);
    reconsiderSoon();
    const best = (state.after ?? state.answer).classes[0];
    announce(`Without it: ${best.name}, ${percent(best.probability)}`);
  };
  view.addEventListener("pointermove", moved);
  view.addEventListener("pointerup", ended, { once: true });
  view.addEventListener("pointercancel", ended, { once: true });
  reconsiderSoon();
}

function brushTo(event, from) {
  const box = view.getBoundingClientRect();
  const at = {
    x: ((event.clientX - box.left) / box.width) * view.width,
    y: ((event.clientY - box.top) / box.height) * view.height,
  };
  const pen = state.mask.getContext("2d");
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = "#f6f5f1";
  pen.lineWidth = (byId("brush").valueAsNumber / 100) * Math.max(view.width, view.height);
  pen.beginPath();
  pen.moveTo((from ?? at).x, (from ?? at).y);
  pen.lineTo(at.x, at.y + 0.01);
  pen.stroke();
  return at;
}

let due = false;

function reconsiderSoon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (state.erasing) reconsider();
  });
}

function reconsider() {
  const { answer, mask } = state;
  const { data } = mask.getContext("2d").getImageData(0, 0, view.width, view.height);
  const squares = { y: centres(answer, "y"), x: centres(answer, "x") };
  const removed = coveredPatches(squares, data, view.height, view.width);
  const same = state.removed && removed.every((one, i) => one === state.removed[i]);
  if (!same) {
    state.removed = removed;
    const some = removed.includes(1),
      left = removed.includes(0);
    state.after = some && left ? without(answer, removed) : null;
  }
  changed();
}

/** A key was pressed on the view: arrows move from patch to patch, space takes one out or puts it back. */
export function pressKey(event) {
  if (!state.erasing) return;
  const { height, width } = state.answer.grid;
  let cursor = state.cursor ?? Math.floor(height / 2) * width + Math.floor(width / 2);
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.key in moves) {
    const y = Math.floor(cursor / width) + moves[event.key][0],
      x = (cursor % width) + moves[event.key][1];
    if (state.cursor !== null)
      cursor = Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1);
    state.cursor = cursor;
    announce(
      `Row ${Math.floor(cursor / width) + 1}, column ${(cursor % width) + 1}${state.removed?.[cursor] ? ", gone" : ""}`,
    );
    changed();
  } else if (event.key === " " || event.key === "Enter") {
    state.cursor = cursor;
    const mark = new Uint8Array(height * width);
    mark[cursor] = 1;
    const pen = state.mask.getContext("2d");
    pen.globalCompositeOperation = state.removed?.[cursor] ? "destination-out" : "source-over";
    pen.fillStyle = "#f6f5f1";
    pen.fill(patchSquares(state.answer, mark, view.height, view.width));
    pen.globalCompositeOperation = "source-over";
    reconsider();
    const best = now().classes[0];
    announce(`${state.removed[cursor] ? "Gone" : "Back"}. ${best.name}, ${percent(best.probability)}`);
  } else return;
  event.preventDefault();
}
