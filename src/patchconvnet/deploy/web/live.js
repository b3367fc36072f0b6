// The camera's frames are asked about one after the other, until one is kept.

import { camera } from "./camera.js";
import { forget, stage } from "./drawing.js";
import { byId } from "./elements.js";
import { engine } from "./engine.js";
import { announce, calm } from "./messages.js";
import { home } from "./picture_input.js";
import { begin, changed, nextTurn, state, take, turn } from "./state.js";

/** Ask about the camera's frames, or with `next` about those of another camera where there are several. */
export async function live(next = false) {
  calm();
  const mine = nextTurn();
  await camera.start(next);
  const { kind, strength } = state;
  begin({ kind, strength });
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

/** Keep the last frame that was answered. */
export function freeze() {
  nextTurn();
  camera.stop();
  byId("live").hidden = true;
  if (!state.answer) return home();
  state.source = { ...state.answer.source, live: false };
  state.answer = { ...state.answer, source: state.source };
  forget();
  changed();
  announce(byId("headline").textContent);
}
