// What if this were gone: the answer of the remaining patches, exactly, without a second pass through the network.
// As patchconvnet/explanation/removal.py. Where one linear classifier reads Σ attention · values, and softmax weights are
// renormalised over the patches that remain: logit_k = bias_k + Σ evidence_k / Σ attention_k, both over these.

const LEAST_COVERED = 0.5; // of a patch's square

/**
 * The logits and maps without some patches.
 *
 * @param {object} answer of an engine, with evidence for all classes
 * @param {Uint8Array} removed 1 for each patch that is taken out
 * @returns {object} an answer like the given one, of the remaining patches
 */
export function without(answer, removed) {
  const kept = (map) => map.reduce((sum, value, i) => sum + (removed[i] ? 0 : value), 0);
  const totals = answer.attention.maps.map(kept);
  const evidence = new Map(),
    logits = new Map();
  for (const [index, { bias, map }] of answer.evidence) {
    const total = totals[totals.length === 1 ? 0 : index];
    evidence.set(index, { bias, map: map.map((value, i) => (removed[i] ? 0 : value / total)) });
    logits.set(index, bias + kept(map) / total);
  }
  const maps = answer.attention.maps.map((map, q) => map.map((value, i) => (removed[i] ? 0 : value / totals[q])));
  const classes = rank(logits, answer.names, answer.temperature);
  return { ...answer, classes, evidence, attention: { ...answer.attention, maps } };
}

/** Classes with their probabilities, likeliest first, of logits by class index. */
export function rank(logits, names, temperature) {
  const largest = Math.max(...logits.values());
  const shares = [...logits].map(([index, logit]) => ({
    index,
    logit,
    probability: Math.exp((logit - largest) / temperature),
  }));
  const total = shares.reduce((sum, one) => sum + one.probability, 0);
  return shares
    .map((one) => ({
      index: one.index,
      name: names[one.index],
      probability: one.probability / total,
      logit: one.logit,
    }))
    .sort((a, b) => b.logit - a.logit || a.index - b.index);
}

/**
 * The patches that are painted over by half or more.
 *
 * @param {{y: object, x: object}} squares `centres` of both axes
 * @param {Uint8ClampedArray} alpha RGBA pixels of what was painted, over the image
 */
export function coveredPatches(squares, alpha, height, width) {
  const sums = new Uint32Array((height + 1) * (width + 1)); // of painted pixels above and to the left
  for (let y = 0; y < height; y++) {
    for (let x = 0, row = 0; x < width; x++) {
      row += alpha[4 * (y * width + x) + 3] > 127 ? 1 : 0;
      sums[(y + 1) * (width + 1) + x + 1] = sums[y * (width + 1) + x + 1] + row;
    }
  }
  const edges = (axis, pixels) =>
    axis.at.map((at) =>
      [at - axis.half, at + axis.half].map((edge) => Math.min(Math.max(Math.round(edge * pixels), 0), pixels)),
    );
  const rows = edges(squares.y, height),
    columns = edges(squares.x, width);
  const area = 4 * squares.y.half * height * squares.x.half * width;
  const removed = new Uint8Array(rows.length * columns.length);
  rows.forEach(([top, bottom], i) =>
    columns.forEach(([left, right], j) => {
      const at = (y, x) => sums[y * (width + 1) + x];
      const inside = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left);
      removed[i * columns.length + j] = inside >= LEAST_COVERED * area ? 1 : 0;
    }),
  );
  return removed;
}
