// The page: what people bring, what they see, what they can ask. Who answers is behind `engine`.

import { Camera } from "./camera.js";
import { engine } from "./engine.js";
import { centres } from "./geometry.js";
import { Sentence, decode, shrunk } from "./images.js";
import {
  STRENGTH,
  chosenMap,
  classWise,
  draw,
  drawScale,
  newCanvas,
  overlay,
  patchSquares,
  strongestPart,
  tellingKind,
} from "./maps.js";
import { coveredPatches, without } from "./removal.js";
import { download, figure, figureOverlay, percent, record } from "./saving.js";

const LISTED = 5;
const LONGEST_SIDE = 1024; // of what is drawn
const SHORTEST_LONG_SIDE = 640;

const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const view = byId("view"),
  context = view.getContext("2d", { willReadFrequently: true });
const camera = new Camera(byId("video"));

const start = {
  source: null, // what is asked about
  answer: null, // what the engine said
  after: null, // what remains of it where something was taken out
  kind: null, // chosen map, null: the one that tells most
  strength: {}, // by kind, where the slider was moved
  selected: null, // the class that the map is about, null: the likeliest
  against: null, // the other class of a comparison
  asked: [], // classes that were asked for by name
  erasing: false,
  mask: null, // canvas of what was painted over
  removed: null, // 1 for each patch that is taken out
  cursor: null, // patch that the keyboard is at
};
let about = null;
let state = { ...start };
let turn = 0; // answers to earlier questions than this are dropped

// Sentences

function complain(error) {
  const sentence = error instanceof Sentence ? error.message : `Something went wrong: ${error.message ?? error}`;
  byId("error").textContent = sentence;
  byId("error").hidden = false;
  if (error.constructor.name === "TokenNeeded") {
    byId("token").hidden = false;
    byId("token-value").focus();
  }
}

function calm() {
  byId("error").hidden = true;
}

function announce(text) {
  byId("status").textContent = text;
}

async function trying(work) {
  try {
    await work();
  } catch (error) {
    complain(error);
  }
}

// Opening

async function open() {
  about = await engine.open((share) => {
    byId("model").textContent = `Loading the network: ${Math.round(100 * share)} %`;
  });
  const [height, width] = about.size;
  const count = about.classNames.length;
  byId("model").textContent =
    `${about.name} knows ${count.toLocaleString("en")} classes and reads ${width} × ${height} pixels`;
  byId("privacy").textContent = engine.local
    ? "Everything is computed in this browser: your images stay on this device."
    : "Images go to the server that this page came from, and to nobody else.";
  if (engine.local) {
    byId("threads").textContent = `Computing with ${about.threads} thread${about.threads > 1 ? "s" : ""}.`;
  }
  byId("names").replaceChildren(...about.classNames.map((name) => new Option(name, name)));
  document.documentElement.dataset.ready = "yes";
}

async function listSamples() {
  const reply = await fetch("samples/samples.json");
  const samples = reply.ok ? await reply.json() : [];
  byId("samples-title").hidden = !samples.length;
  byId("samples").replaceChildren(
    ...samples.map(({ file, name }) => {
      const button = document.createElement("button");
      button.type = "button";
      const image = new Image(88, 88);
      image.src = `samples/${file}`;
      image.alt = "";
      image.loading = "lazy";
      button.append(image, name);
      button.addEventListener("click", () =>
        trying(async () => {
          const file_ = await fetch(`samples/${file}`);
          if (!file_.ok) throw new Sentence(`The sample ${name} could not be loaded.`);
          await look(await file_.blob(), file);
        }),
      );
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

// An image comes in

async function look(blob, name) {
  calm();
  const mine = ++turn;
  const source = await decode(blob, name);
  if (mine !== turn) return;
  camera.stop();
  byId("live").hidden = true;
  await consider(source, mine);
}

async function consider(source, mine) {
  state = { ...start, strength: state.strength, kind: state.kind, source };
  stage(source);
  render();
  byId("working").hidden = false;
  try {
    const answer = await engine.explain(source);
    if (mine !== turn) return;
    take(answer);
    const best = answer.classes[0];
    announce(`${best.name}, ${percent(best.probability)}`);
  } finally {
    if (mine === turn) byId("working").hidden = true;
  }
}

function take(answer) {
  state.answer = answer;
  state.after = null;
  render();
}

/** Make the view as large as the image asks for. */
function stage({ canvas }) {
  const longest = Math.max(canvas.width, canvas.height);
  const scale = Math.min(Math.max(longest, SHORTEST_LONG_SIDE), LONGEST_SIDE) / longest;
  const [width, height] = [canvas.width, canvas.height].map((side) => Math.max(1, Math.round(side * scale)));
  if (view.width !== width || view.height !== height) [view.width, view.height] = [width, height];
  byId("empty").hidden = true;
  byId("looking").hidden = false;
}

function home() {
  turn++;
  camera.stop();
  calm();
  state = { ...start, strength: state.strength };
  byId("empty").hidden = false;
  byId("looking").hidden = true;
  byId("answer").hidden = true;
  byId("live").hidden = byId("home").hidden = true;
  document.body.classList.remove("answered");
  all("#empty .pick")[0].focus();
}

// What is shown

function now() {
  return state.after ?? state.answer;
}

function subject() {
  return state.selected ?? state.answer.classes[0].index;
}

function rival() {
  const { answer, against } = state;
  if (against !== null && against !== subject()) return against;
  return answer.classes.find((one) => one.index !== subject() && answer.evidence.has(one.index))?.index;
}

function shownKind() {
  const { answer, kind } = state;
  if (kind === "none" || (kind !== null && chosenMap(answer, kind, subject(), rival()))) return kind;
  // the same attention for all classes says nothing about a chosen one
  const telling = tellingKind(answer);
  return state.selected !== null && answer.evidence.has(state.selected) && !classWise(answer) ? "evidence" : telling;
}

let drawn = {}; // the last overlay and what it was made of

function render() {
  const { answer } = state;
  byId("answer").hidden = !answer;
  byId("home").hidden = false;
  document.body.classList.toggle("answered", Boolean(answer));
  if (!answer) {
    draw(context, state.source.canvas, { kind: "none", over: null, strength: 0, answer: null, removed: null });
    for (const id of ["caption", "gone"]) byId(id).textContent = "";
    byId("legend").hidden = byId("pair").hidden = byId("chip").hidden = true;
    return;
  }
  const kind = shownKind();
  const strength = state.strength[kind] ?? STRENGTH[kind];
  for (const input of all("#kinds input")) {
    input.checked = input.value === kind;
    input.disabled = (input.value === "evidence" || input.value === "contrast") && !answer.evidence.size;
  }
  byId("strength").value = Math.round(100 * strength);
  byId("strength").disabled = kind === "none";
  const chosen = kind === "none" ? null : chosenMap(now(), kind, subject(), rival());
  redraw(kind, chosen, strength);
  describe(kind, chosen);
  list();
  tools();
}

function redraw(kind, chosen, strength) {
  const key = [now(), kind, subject(), rival(), view.width, view.height];
  if (chosen && !(drawn.key && key.every((value, i) => value === drawn.key[i]))) {
    const scale = state.source.live && camera.on ? 2 : 1; // half the pixels each way while images follow each other
    drawn = { key, over: overlay(now(), kind, chosen, Math.ceil(view.height / scale), Math.ceil(view.width / scale)) };
  }
  paint(kind, chosen ? drawn.over : null, strength);
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

function describe(kind, chosen) {
  const { answer, after } = state;
  const name = answer.names[subject()],
    other = answer.names[rival()];
  const captions = {
    attention: classWise(answer)
      ? `The brighter a part is, the more it counted for ${name}.`
      : "The brighter a part is, the more it counted for the answer.",
    evidence: `Red parts speak for ${name}, blue parts against it. ${
      answer.exact
        ? "With a constant they add up to its score exactly."
        : "To a first approximation they add up to its score."
    }`,
    contrast: `Red parts speak for ${name}, blue parts for ${other}.`,
    none: "",
  };
  if (kind === "attention" && tellingKind(answer) === "evidence") {
    captions.attention = "Attention is nearly even: all parts counted alike. The evidence says more.";
  }
  byId("caption").textContent = captions[kind];
  byId("legend").hidden = kind === "none";
  drawScale(byId("scale"), kind);
  const ends = {
    attention: ["counted little", "much"],
    evidence: ["against", "for"],
    contrast: [`for ${other}`, `for ${name}`],
    none: ["", ""],
  };
  [byId("low").textContent, byId("high").textContent] = ends[kind];
  view.setAttribute(
    "aria-label",
    chosen
      ? `The image with a map over it, strongest in the ${strongestPart(now(), chosen.map)}. ${captions[kind]}`
      : "The image",
  );

  byId("pair").hidden = kind !== "contrast";
  if (kind === "contrast") {
    const options = () =>
      rows()
        .filter((k) => answer.evidence.has(k))
        .map((k) => new Option(answer.names[k], k));
    for (const [id, value] of [
      ["for", subject()],
      ["against", rival()],
    ]) {
      const select = byId(id);
      if (document.activeElement !== select) select.replaceChildren(...options());
      select.value = value;
    }
  }
  const best = answer.classes[0];
  byId("headline").textContent = `${best.name}, ${percent(best.probability)}`;
  const current = now().classes[0];
  byId("chip").textContent = `${current.name}, ${percent(current.probability)}`;
  byId("chip").hidden = false;
  const { box } = answer;
  const cut = box.left > 0.5 || box.top > 0.5 || box.right < answer.width - 0.5 || box.bottom < answer.height - 0.5;
  byId("detail").textContent = after
    ? `Without it: ${after.classes[0].name}, ${percent(after.classes[0].probability)}`
    : "";
  const notes = [];
  if (cut) notes.push("The network sees what is inside of the frame.");
  if (answer.reduced)
    notes.push(`The image is large and was made ${answer.reduced} pixels before the network read it.`);
  if (!answer.evidence.size) notes.push("This network gives no evidence for single classes.");
  byId("note").textContent = notes.join(" ");
}

/** Indices of the classes that are listed. */
function rows() {
  const { answer, after, asked, selected } = state;
  const listed = answer.classes.slice(0, LISTED).map((one) => one.index);
  for (const index of [after?.classes[0].index, selected, ...asked]) {
    if (index !== undefined && index !== null && !listed.includes(index)) listed.push(index);
  }
  return listed;
}

function list() {
  const { answer, after } = state;
  const shares = new Map(answer.classes.map((one) => [one.index, one.probability]));
  const later = after && new Map(after.classes.map((one) => [one.index, one.probability]));
  const wanted = rows();
  const items = byId("classes");
  while (items.children.length > wanted.length) items.lastChild.remove();
  while (items.children.length < wanted.length) items.append(row());
  wanted.forEach((index, i) => {
    const button = items.children[i].firstChild;
    const share = shares.get(index),
      shown = later?.get(index) ?? share;
    button.dataset.index = index;
    button.setAttribute("aria-pressed", String(index === subject()));
    button.querySelector(".name").textContent = answer.names[index];
    button.querySelector(".share").textContent =
      percent(shown) === percent(share) ? percent(share) : `${percent(share)} → ${percent(shown)}`;
    button.querySelector(".bar i").style.width = `${100 * shown}%`;
    button.querySelector(".bar b").style.left = `${100 * share}%`;
    button.querySelector(".bar b").hidden = !later;
  });
}

function row() {
  const item = document.createElement("li"),
    button = document.createElement("button");
  button.type = "button";
  const part = (tag, name, ...inside) => {
    const element = document.createElement(tag);
    element.className = name;
    element.append(...inside);
    return element;
  };
  button.append(
    part("span", "name"),
    part("span", "share"),
    part("span", "bar", document.createElement("i"), document.createElement("b")),
  );
  button.addEventListener("click", () => trying(() => choose(Number(button.dataset.index))));
  item.append(button);
  return item;
}

async function choose(index) {
  calm();
  if (!state.answer.evidence.has(index) && state.answer.evidence.size && !camera.on) {
    const mine = turn,
      answer = await engine.explain(state.source, index);
    if (mine !== turn) return;
    if (!answer.evidence.has(index))
      throw new Sentence(
        `This network gives evidence for its ${answer.evidence.size} likeliest classes only, and ${answer.names[index]} is not one of them.`,
      );
    state.answer = answer;
    restore();
  }
  state.selected = index;
  if (state.kind === "contrast" && state.against === index) state.against = null;
  else if (state.kind === "attention" && !classWise(state.answer)) state.kind = null;
  render();
  announce(`${byId("caption").textContent} ${view.getAttribute("aria-label")}`);
}

// What if this were gone

let painting = false;

function tools() {
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

async function erase() {
  if (state.erasing) {
    restore();
    state.erasing = false;
    return render();
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
  render();
  announce("Paint over a part of the image, or use arrow keys and space on it.");
}

function restore() {
  state.mask?.getContext("2d").clearRect(0, 0, view.width, view.height);
  state.removed = state.after = null;
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
  render();
}

view.addEventListener("pointerdown", (event) => {
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
});

view.addEventListener("keydown", (event) => {
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
    render();
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
});
for (const event of ["focus", "blur"]) view.addEventListener(event, () => state.erasing && render());

// The camera

async function live(next = false) {
  calm();
  const mine = ++turn;
  await camera.start(next);
  const { kind, strength } = state;
  state = { ...start, kind, strength };
  byId("live").hidden = false;
  const ends = [];
  let failures = 0;
  while (camera.on && mine === turn) {
    const source = camera.frame();
    if (source) {
      try {
        const answer = await engine.explain(source, state.selected ?? undefined);
        if (!camera.on || mine !== turn) return;
        failures = 0;
        state.source = source;
        stage(source);
        take(answer);
      } catch (error) {
        if (++failures >= 3 || error.constructor.name === "TokenNeeded") {
          stopCamera();
          throw error;
        }
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
      ends.push(performance.now());
      if (ends.length > 20) ends.shift();
      if (ends.length > 1) {
        const rate = ((ends.length - 1) * 1000) / (ends.at(-1) - ends[0]);
        byId("rate").textContent = `${rate.toFixed(rate < 10 ? 1 : 0)} images/s`;
        byId("rate").dataset.rate = rate;
      }
    }
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  camera.stop();
  byId("live").hidden = true;
  if (state.answer) freeze();
  else home();
}

function freeze() {
  turn++;
  camera.stop();
  byId("live").hidden = true;
  if (!state.answer) return home();
  state.source = { ...state.answer.source, live: false };
  state.answer = { ...state.answer, source: state.source };
  drawn = {};
  render();
  announce(byId("headline").textContent);
}

// Hands

for (const button of all(".pick")) button.addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  byId("file").value = "";
  if (file) trying(() => look(file, file.name));
});
for (const button of all(".camera")) button.addEventListener("click", () => trying(() => live()));
byId("turn").addEventListener("click", () => trying(() => live(true)));
byId("freeze").addEventListener("click", freeze);
byId("stop").addEventListener("click", home);
byId("home").addEventListener("click", home);

function brought(data) {
  const file = [...(data?.files ?? [])][0];
  if (file) return trying(() => look(file, file.name || "the pasted image"));
  if (data?.types.length)
    complain(new Sentence("That is not an image file; addresses are not fetched. Save the image and choose the file."));
}

document.addEventListener("paste", (event) => {
  if (event.target instanceof HTMLInputElement && !event.clipboardData?.files.length) return;
  event.preventDefault();
  brought(event.clipboardData);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  brought(event.dataTransfer);
});

for (const input of all("#kinds input")) {
  input.addEventListener("change", () => {
    state.kind = input.value;
    render();
    announce(byId("caption").textContent);
  });
}
byId("strength").addEventListener("input", () => {
  state.strength[shownKind()] = byId("strength").valueAsNumber / 100;
  paint(shownKind(), drawn.over ?? null, byId("strength").valueAsNumber / 100);
});
byId("for").addEventListener("change", (event) => {
  const was = subject();
  state.selected = Number(event.target.value);
  if (rival() === undefined || state.against === state.selected) state.against = was;
  render();
});
byId("against").addEventListener("change", (event) => {
  const other = Number(event.target.value),
    was = rival();
  if (other === subject()) state.selected = was;
  state.against = other;
  render();
});
byId("erase").addEventListener("click", () => trying(erase));
byId("restore").addEventListener("click", () => {
  restore();
  render();
});
byId("other").addEventListener("change", (event) =>
  trying(async () => {
    const wanted = event.target.value.trim().toLowerCase();
    if (!wanted) return;
    const names = about.classNames.map((name) => name.toLowerCase());
    const index = names.includes(wanted)
      ? names.indexOf(wanted)
      : names.findIndex((name) => name.split(/,\s*/).includes(wanted));
    if (index < 0)
      throw new Sentence(
        `The network knows no class “${event.target.value}”; choose one of the names that are offered.`,
      );
    if (!state.asked.includes(index)) state.asked.push(index);
    event.target.value = "";
    await choose(index);
  }),
);
byId("save-figure").addEventListener("click", () =>
  trying(async () => {
    const kind = shownKind();
    const blob = await figure(now(), {
      kind,
      over: figureOverlay(now(), kind, subject(), rival()),
      strength: state.strength[kind] ?? STRENGTH[kind],
      removed: state.removed,
      headline: byId("headline").textContent,
      caption: [byId("caption").textContent, byId("detail").textContent, about.name].filter(Boolean).join("  ·  "),
    });
    download(blob, `${state.answer.source.name}_figure.png`);
  }),
);
byId("save-data").addEventListener("click", () => {
  const values = record(state.answer, {
    target: subject(),
    shown: shownKind(),
    removed: state.after && state.removed,
    after: state.after,
  });
  download(new Blob([JSON.stringify(values), "\n"], { type: "application/json" }), `${state.answer.source.name}.json`);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.erasing) trying(erase);
});
byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  engine.useToken(byId("token-value").value);
  byId("token").hidden = true;
  calm();
  trying(open);
});

trying(open);
trying(listSamples);
if (engine.local && "serviceWorker" in navigator) {
  navigator.serviceWorker.register("service_worker.js").catch(() => {}); // a page without one works too, but not offline
}
