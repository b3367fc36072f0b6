// Answers in this browser, with onnxruntime-web: images stay on the machine.

import { coveredBox } from "./geometry.js";
import { Sentence, shrunk } from "./images.js";
import { rank } from "./removal.js";

const MOST_PIXELS = 4_000_000; // of an image that goes into the network as it is; the graph resizes it there

let worker,
  about,
  threads = 1;
const waiting = new Map();
let asked = 0;

function ask(what, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, ...what }, transfer);
  });
}

function answered({ data }) {
  if (data.progress !== undefined) return progressed(data.progress);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) reject(new Sentence(data.error));
  else resolve(data);
}

let progressed = () => {};

export const engine = {
  local: true,

  /** Load model.json and the network. */
  async open(onProgress) {
    progressed = onProgress;
    const reply = await fetch(new URL("./model.json", import.meta.url));
    if (!reply.ok) throw new Sentence("The model's description, model.json, is missing beside this page.");
    about = await reply.json();
    worker = new Worker(new URL("./local_worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", answered);
    worker.addEventListener("error", () => {
      for (const { reject } of waiting.values())
        reject(new Sentence("The part of this page that computes has stopped; load the page again."));
      waiting.clear();
    });
    ({ threads } = await ask({ open: new URL(about.file, import.meta.url).href, bytes: about.bytes }));
    return {
      name: about.name,
      classNames: about.class_names,
      size: about.preprocessing.size,
      threads,
    };
  },

  /** What the network says about an image, with all of its maps. */
  async explain(source) {
    const { canvas } = source;
    const small = shrunk(source, MOST_PIXELS);
    const { data } = small.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, small.width, small.height);
    const out = await ask({ rgba: data.buffer, height: small.height, width: small.width }, [data.buffer]);
    const [, queries, h, w] = out.attention.dims;
    const slices = (values) =>
      Array.from({ length: values.length / (h * w) }, (_, i) => values.slice(i * h * w, (i + 1) * h * w));
    const names = about.class_names;
    const evidence = new Map();
    if (out.evidence) {
      const chosen = out.evidence_classes ? Array.from(out.evidence_classes.data, Number) : names.map((_, k) => k);
      slices(out.evidence.data).forEach((map, i) => evidence.set(chosen[i], { bias: about.bias[chosen[i]], map }));
    }
    return {
      source,
      width: canvas.width,
      height: canvas.height,
      input: { height: about.preprocessing.size[0], width: about.preprocessing.size[1] },
      box: coveredBox(about.preprocessing, canvas.height, canvas.width),
      grid: { height: h, width: w, step: about.grid.step, first: about.grid.first },
      names,
      temperature: about.temperature,
      classes: rank(new Map([...out.logits.data].entries()), names, about.temperature),
      attention: { classWise: queries > 1 && queries === names.length, of: null, maps: slices(out.attention.data) },
      evidence,
      exact: about.exact,
      removal: about.removal,
      complete: true,
      seconds: out.seconds,
      reduced: small === canvas ? null : `${small.width} × ${small.height}`,
    };
  },

  /** An answer with evidence for all classes: it has that already. */
  async completed(answer) {
    return answer;
  },
};
