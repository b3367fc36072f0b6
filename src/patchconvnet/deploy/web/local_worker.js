// Runs the network beside the page, which stays quick meanwhile.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";

let session;

async function open({ open: address, bytes }) {
  ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  // threads share memory, which browsers allow only where the host sends COOP and COEP
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const file = await download(address, bytes);
  try {
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`This browser cannot run the network: ${firstLine(error)}`);
  }
  return { threads: ort.env.wasm.numThreads };
}

async function download(address, bytes) {
  let reply;
  try {
    reply = await fetch(address);
  } catch {
    throw new Error("The network's file could not be loaded; is the connection there? Load the page again.");
  }
  if (!reply.ok)
    throw new Error(`The network's file could not be loaded (${reply.status}); it belongs beside this page.`);
  const file = new Uint8Array(bytes);
  let filled = 0;
  for (const reader = reply.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (filled + value.length > bytes)
      throw new Error("The network's file is not the one that this page was made with; export the site anew.");
    file.set(value, filled);
    filled += value.length;
    self.postMessage({ progress: filled / bytes });
  }
  if (filled !== bytes) throw new Error("The network's file came incomplete; load the page again.");
  return file;
}

async function run({ rgba, height, width }) {
  const from = new Uint8Array(rgba),
    pixels = new Uint8Array(height * width * 3);
  for (let i = 0, j = 0; j < pixels.length; i += 4) {
    pixels[j++] = from[i];
    pixels[j++] = from[i + 1];
    pixels[j++] = from[i + 2];
  }
  const started = performance.now();
  const results = await session.run({ pixels: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
  const out = { seconds: (performance.now() - started) / 1000 };
  for (const [name, tensor] of Object.entries(results)) out[name] = { data: tensor.data.slice(), dims: tensor.dims };
  return out;
}

function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0];
}

self.addEventListener("message", async ({ data }) => {
  try {
    self.postMessage({ id: data.id, ...(await (data.open ? open(data) : run(data))) });
  } catch (error) {
    self.postMessage({ id: data.id, error: firstLine(error) });
  }
});
