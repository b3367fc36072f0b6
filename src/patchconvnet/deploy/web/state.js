// What the page is about at this moment. Whoever changes it says so by `changed`.

import { chosenMap, classWise, tellingKind } from "./maps.js";

const start = {
  source: null, // what is asked about
  answer: null, // what the engine said
  after: null, // what remains of it where something was taken out
  kind: null, // chosen map, null: the one that tells most
  strength: {}, // by kind, where the slider was moved
  selected: null, // the class that the map is about, null: the likeliest
  against: null, // the other class of a comparison
  asked: [], // classes that were asked for by name, of this image or an earlier one
  erasing: false,
  mask: null, // canvas of what was painted over
  removed: null, // 1 for each patch that is taken out
  cursor: null, // patch that the keyboard is at
};
export const state = { ...start };
export let turn = 0; // answers to earlier questions than this are dropped

let show = () => {};

/** Set what shows the state. */
export function whenChanged(render) {
  show = render;
}

export function changed() {
  show();
}

/** Begin anew, but for what is kept. */
export function begin(kept) {
  Object.assign(state, start, kept);
}

/** Drop answers that are still to come; the number of the turn that begins. */
export function nextTurn() {
  return ++turn;
}

/** An answer has come. */
export function take(answer) {
  state.answer = answer;
  state.after = null;
  changed();
}

/** The answer that is shown: of what remains, where something was taken out. */
export function now() {
  return state.after ?? state.answer;
}

/** The class that the map is about. */
export function subject() {
  return state.selected ?? state.answer.classes[0].index;
}

/** The class that it is compared with; undefined where there is evidence for no other. */
export function rival() {
  const { answer, against } = state;
  if (against !== null && against !== subject()) return against;
  return answer.classes.find((one) => one.index !== subject() && answer.evidence.has(one.index))?.index;
}

/** The kind of map that is shown. */
export function shownKind() {
  const { answer, kind } = state;
  if (kind === "none" || (kind !== null && chosenMap(answer, kind, subject(), rival()))) return kind;
  // the same attention for all classes says nothing about a chosen one
  const telling = tellingKind(answer);
  return state.selected !== null && answer.evidence.has(state.selected) && !classWise(answer) ? "evidence" : telling;
}
