// The map and the answer in words.

import { byId, view } from "./elements.js";
import { classWise, drawScale, strongestPart, tellingKind } from "./maps.js";
import { percent } from "./saving.js";
import { now, rival, state, subject } from "./state.js";

/** What the map shows, its legend, and what is read aloud of it. */
export function describeMap(kind, chosen) {
  const { answer } = state;
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
}

/** The likeliest class, what it is without what was taken out, and what else must be said. */
export function describeAnswer() {
  const { answer, after } = state;
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
