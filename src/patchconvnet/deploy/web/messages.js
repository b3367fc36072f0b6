// What the page says beside its answers: what went wrong, and what is read aloud.

import { byId } from "./elements.js";
import { Sentence } from "./images.js";

export function complain(error) {
  const sentence = error instanceof Sentence ? error.message : `Something went wrong: ${error.message ?? error}`;
  byId("error").textContent = sentence;
  byId("error").hidden = false;
  if (error.constructor.name === "TokenNeeded") {
    byId("token").hidden = false;
    byId("token-value").focus();
  }
}

export function calm() {
  byId("error").hidden = true;
}

export function announce(text) {
  byId("status").textContent = text;
}

/** Do some work, and say what goes wrong in it. */
export async function trying(work) {
  try {
    await work();
  } catch (error) {
    complain(error);
  }
}
