// The network that answers: opened once, and what it says of itself.

import { byId } from "./elements.js";
import { engine } from "./engine.js";

export let about = null;

export async function open() {
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

/** Open again with the token that was typed. */
export async function openWithToken() {
  engine.useToken(byId("token-value").value);
  byId("token").hidden = true;
  await open();
}
