// Why this class and not that one: the two that are compared.

import { rows } from "./classes.js";
import { byId } from "./elements.js";
import { changed, rival, state, subject } from "./state.js";

/** Show both choices where a comparison is shown. */
export function showPair(kind) {
  const { answer } = state;
  byId("pair").hidden = kind !== "contrast";
  if (kind !== "contrast") return;
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

/** Another class was chosen to be explained. */
export function changeFor(event) {
  const was = subject();
  state.selected = Number(event.target.value);
  if (rival() === undefined || state.against === state.selected) state.against = was;
  changed();
}

/** Another class was chosen to compare with. */
export function changeAgainst(event) {
  const other = Number(event.target.value),
    was = rival();
  if (other === subject()) state.selected = was;
  state.against = other;
  changed();
}
