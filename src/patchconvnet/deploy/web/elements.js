// The page's elements, by id and by selector, and the canvas that the image is drawn on.

export const byId = (id) => document.getElementById(id);
export const all = (selector) => [...document.querySelectorAll(selector)];
export const view = byId("view"),
  context = view.getContext("2d", { willReadFrequently: true });
