// Shows the state of the page, whatever has changed in it.

import { describeAnswer, describeMap } from "./captions.js";
import { list } from "./classes.js";
import { showPair } from "./comparison.js";
import { drawImage, redraw } from "./drawing.js";
import { all, byId } from "./elements.js";
import { STRENGTH, chosenMap } from "./maps.js";
import { tools } from "./painting.js";
import { now, rival, shownKind, state, subject } from "./state.js";

export function render() {
  const { answer } = state;
  byId("answer").hidden = !answer;
  byId("home").hidden = false;
  document.body.classList.toggle("answered", Boolean(answer));
  if (!answer) {
    drawImage();
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
  describeMap(kind, chosen);
  showPair(kind);
  describeAnswer();
  list();
  tools();
}
