// Asks the server that this page came from, and no other.

import { Sentence, fileOf } from "./images.js";

const API = new URL("./v1/", import.meta.url);
const KEY = "patchconvnet-token";

/** The server wants a token, or another one. */
export class TokenNeeded extends Sentence {}

let about;

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let reply;
  try {
    reply = await fetch(new URL(path, API), { ...options, headers, credentials: "omit" });
  } catch {
    throw new Sentence("The server does not answer; is it still running?");
  }
  if (reply.ok) return reply.json();
  if (reply.status === 401)
    throw new TokenNeeded(token ? "The server refused this token." : "The server asks for an access token.");
  const problem = await reply.json().catch(() => ({}));
  const wait = Number(reply.headers.get("Retry-After"));
  if (reply.status === 503) throw new Sentence(`The server is busy; try again${wait ? ` in ${wait} s` : " soon"}.`);
  throw new Sentence(
    capital(problem.detail ?? problem.title ?? `The server answered with an error (${reply.status}).`),
  );
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

async function send(source, top, target) {
  const form = new FormData();
  const camera = source.blob === null && source.live;
  form.append("image", await fileOf(source, camera ? "image/jpeg" : "image/png"), source.name);
  const query = new URLSearchParams({ top });
  if (target !== undefined) query.set("target", target);
  return understood(await ask(`explain?${query}`, { method: "POST", body: form }), source);
}

function understood(record, source) {
  return {
    source,
    record,
    width: record.image.width,
    height: record.image.height,
    input: { height: record.input.height, width: record.input.width },
    box: record.input.box,
    grid: record.grid,
    names: about.class_names,
    temperature: record.temperature,
    classes: record.classes,
    attention: {
      classWise: record.attention.class_wise,
      of: record.attention.of,
      maps: record.attention.maps.map((map) => Float32Array.from(map.flat())),
    },
    evidence: new Map(
      record.evidence.maps.map(({ index, bias, map }) => [index, { bias, map: Float32Array.from(map.flat()) }]),
    ),
    exact: record.evidence.exact,
    removal: about.removal && about.class_names.length <= about.limits.top,
    complete: record.evidence.maps.length === about.class_names.length,
    reduced: null,
  };
}

export const engine = {
  local: false,

  /** Ask the server what its model is. */
  async open() {
    about = await ask("model");
    return { name: about.name, classNames: about.class_names, size: [about.size.height, about.size.width] };
  },

  /** Remember a token until this tab is closed. */
  useToken(token) {
    sessionStorage.setItem(KEY, token);
  },

  /** What the network says about an image, with the maps of its likeliest classes and of the target. */
  async explain(source, target) {
    return send(source, Math.min(10, about.class_names.length), target);
  },

  /** The same answer with evidence for all classes, which an exact answer about a part that is gone needs. */
  async completed(answer) {
    return answer.complete ? answer : send(answer.source, about.class_names.length);
  },
};
