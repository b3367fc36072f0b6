// The buttons that save what is shown: its figure and its numbers.

import { byId } from "./elements.js";
import { STRENGTH } from "./maps.js";
import { about } from "./network.js";
import { download, figure, figureOverlay, record } from "./saving.js";
import { now, rival, shownKind, state, subject } from "./state.js";

export async function saveFigure() {
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
}

export function saveData() {
  const values = record(state.answer, {
    target: subject(),
    shown: shownKind(),
    removed: state.after && state.removed,
    after: state.after,
  });
  download(new Blob([JSON.stringify(values), "\n"], { type: "application/json" }), `${state.answer.source.name}.json`);
}
