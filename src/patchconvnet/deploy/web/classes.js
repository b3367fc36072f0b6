// The classes that are listed with their shares, and the one that is chosen of them or asked for by name.

import { camera } from "./camera.js";
import { byId, view } from "./elements.js";
import { engine } from "./engine.js";
import { Sentence } from "./images.js";
import { classWise } from "./maps.js";
import { announce, calm, trying } from "./messages.js";
import { about } from "./network.js";
import { restore } from "./painting.js";
import { percent } from "./saving.js";
import { changed, state, subject, turn } from "./state.js";

const LISTED = 5;

/** Indices of the classes that are listed. */
export function rows() {
  const { answer, after, asked, selected } = state;
  const listed = answer.classes.slice(0, LISTED).map((one) => one.index);
  for (const index of [after?.classes[0].index, selected, ...asked]) {
    if (index !== undefined && index !== null && !listed.includes(index)) listed.push(index);
  }
  return listed;
}

/** Show the list. */
export function list() {
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
  changed();
  announce(`${byId("caption").textContent} ${view.getAttribute("aria-label")}`);
}

/** Choose the class whose name was typed. */
export async function askFor(input) {
  const wanted = input.value.trim().toLowerCase();
  if (!wanted) return;
  const names = about.classNames.map((name) => name.toLowerCase());
  const index = names.includes(wanted)
    ? names.indexOf(wanted)
    : names.findIndex((name) => name.split(/,\s*/).includes(wanted));
  if (index < 0)
    throw new Sentence(`The network knows no class “${input.value}”; choose one of the names that are offered.`);
  if (!state.asked.includes(index)) state.asked.push(index);
  input.value = "";
  await choose(index);
}
