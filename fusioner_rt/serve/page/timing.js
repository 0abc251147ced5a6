/** Where the time of an answer went, as one bar. */

/** What stages do, in their order; others are called as the service calls them. */
const STAGES = /** @type {Record<string, string>} */ ({
  queue: "wait", decode: "decode", preprocess: "prepare", text: "words", image: "picture", fusion: "fusion",
  image_fusion: "picture, fusion", decoder: "decoder", mask_head: "masks",
});

/**
 * @param {{bar: HTMLElement, said: HTMLElement}} parts
 * @param {Record<string, number>} timing milliseconds per stage
 * @param {number} all milliseconds from the request to the masks
 */
export function showTiming({ bar, said }, timing, all) {
  const known = Object.keys(STAGES).filter((stage) => stage in timing);
  const others = Object.keys(timing).filter((stage) => !(stage in STAGES) && stage !== "total");
  const stages = [...known, ...others].map((stage) => /** @type {[string, number]} */ ([STAGES[stage] ?? stage, timing[stage]]));
  const told = stages.filter(([, taken]) => taken >= 0.05);
  told.push(["answer", Math.max(0, all - told.reduce((sum, [, taken]) => sum + taken, 0))]);
  const sum = told.reduce((sum, [, taken]) => sum + taken, 0);
  bar.replaceChildren(
    ...told.map(([stage, taken]) => {
      const piece = document.createElement("span");
      piece.style.width = `${(100 * taken) / sum}%`;
      piece.title = `${stage} ${milliseconds(taken)}`;
      return piece;
    }),
  );
  const largest = told.toSorted(([, one], [, other]) => other - one).slice(0, 4);
  said.textContent = `${milliseconds(sum)}: ${largest.map(([stage, taken]) => `${stage} ${milliseconds(taken)}`).join(" · ")}`;
  bar.setAttribute("aria-label", told.map(([stage, taken]) => `${stage} ${milliseconds(taken)}`).join(", "));
}

/** @param {number} taken */
function milliseconds(taken) {
  return taken < 1000 ? `${taken < 10 ? taken.toFixed(1) : Math.round(taken)} ms` : `${(taken / 1000).toFixed(2)} s`;
}
