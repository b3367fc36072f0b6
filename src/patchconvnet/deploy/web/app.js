// The page: which element leads to what. Who answers is behind `engine`.

import { askFor } from "./classes.js";
import { changeAgainst, changeFor } from "./comparison.js";
import { saveData, saveFigure } from "./downloads.js";
import { changeStrength } from "./drawing.js";
import { all, byId, view } from "./elements.js";
import { engine } from "./engine.js";
import { freeze, live } from "./live.js";
import { announce, calm, trying } from "./messages.js";
import { open, openWithToken } from "./network.js";
import { erase, pressKey, restore, startStroke } from "./painting.js";
import { draggedOut, draggedOver, dropped, home, listSamples, pasted, picked } from "./picture_input.js";
import { render } from "./rendering.js";
import { changed, state, whenChanged } from "./state.js";

whenChanged(render);

// An image comes in

for (const button of all(".pick")) button.addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", picked);
document.addEventListener("paste", pasted);
document.addEventListener("dragover", draggedOver);
document.addEventListener("dragleave", draggedOut);
document.addEventListener("drop", dropped);
for (const button of all(".camera")) button.addEventListener("click", () => trying(() => live()));
byId("turn").addEventListener("click", () => trying(() => live(true)));
byId("freeze").addEventListener("click", freeze);
byId("stop").addEventListener("click", home);
byId("home").addEventListener("click", home);

// What is shown

for (const input of all("#kinds input")) {
  input.addEventListener("change", () => {
    state.kind = input.value;
    changed();
    announce(byId("caption").textContent);
  });
}
byId("strength").addEventListener("input", () => changeStrength(byId("strength").valueAsNumber / 100));
byId("for").addEventListener("change", changeFor);
byId("against").addEventListener("change", changeAgainst);
byId("other").addEventListener("change", (event) => trying(() => askFor(event.target)));

// What if this were gone

byId("erase").addEventListener("click", () => trying(erase));
byId("restore").addEventListener("click", () => {
  restore();
  changed();
});
view.addEventListener("pointerdown", startStroke);
view.addEventListener("keydown", pressKey);
for (const event of ["focus", "blur"]) view.addEventListener(event, () => state.erasing && changed());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.erasing) trying(erase);
});

// What is taken home, and who answers

byId("save-figure").addEventListener("click", () => trying(saveFigure));
byId("save-data").addEventListener("click", saveData);
byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  calm();
  trying(openWithToken);
});

trying(open);
trying(listSamples);
if (engine.local && "serviceWorker" in navigator) {
  navigator.serviceWorker.register("service_worker.js").catch(() => {}); // a page without one works too, but not offline
}
