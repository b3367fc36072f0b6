// An image comes in, from a file, a drop, a paste or the samples, and is asked about.

import { camera } from "./camera.js";
import { stage } from "./drawing.js";
import { all, byId } from "./elements.js";
import { engine } from "./engine.js";
import { Sentence, decode } from "./images.js";
import { announce, calm, complain, trying } from "./messages.js";
import { percent } from "./saving.js";
import { begin, changed, nextTurn, state, take, turn } from "./state.js";

async function look(blob, name) {
  calm();
  const mine = nextTurn();
  const source = await decode(blob, name);
  if (mine !== turn) return;
  camera.stop();
  byId("live").hidden = true;
  await consider(source, mine);
}

async function consider(source, mine) {
  begin({ strength: state.strength, kind: state.kind, source });
  stage(source);
  changed();
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

/** Back to the page without an image. */
export function home() {
  nextTurn();
  camera.stop();
  calm();
  begin({ strength: state.strength });
  byId("empty").hidden = false;
  byId("looking").hidden = true;
  byId("answer").hidden = true;
  byId("live").hidden = byId("home").hidden = true;
  document.body.classList.remove("answered");
  all("#empty .pick")[0].focus();
}

/** Show the samples that are beside the page. */
export async function listSamples() {
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

/** A file was chosen. */
export function picked() {
  const [file] = byId("file").files;
  byId("file").value = "";
  if (file) trying(() => look(file, file.name));
}

function brought(data) {
  const file = [...(data?.files ?? [])][0];
  if (file) return trying(() => look(file, file.name || "the pasted image"));
  if (data?.types.length)
    complain(new Sentence("That is not an image file; addresses are not fetched. Save the image and choose the file."));
}

export function pasted(event) {
  if (event.target instanceof HTMLInputElement && !event.clipboardData?.files.length) return;
  event.preventDefault();
  brought(event.clipboardData);
}

export function draggedOver(event) {
  event.preventDefault();
  document.body.classList.add("dragging");
}

export function draggedOut(event) {
  return event.relatedTarget ?? document.body.classList.remove("dragging");
}

export function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  brought(event.dataTransfer);
}
