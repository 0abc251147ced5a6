/** The best word and its probability at every pixel: all that threshold, opacity and the pixel under the cursor need. */

import { array, unzip } from "./arrays.js";

/**
 * @typedef {{name: string, colour: [number, number, number]}} Word
 * @typedef {{share: number, score: number}} Figures share of the pixels, mean probability over them
 * @typedef {{hidden: Set<number>, solo: number, bright: number, threshold: number, opacity: number}} Look
 *   hidden, solo, bright: numbers of words from 1; 0 is none. bright: the one that stands out for now.
 */

export class Masks {
  /**
   * @param {Word[]} words
   * @param {Uint16Array} labels number of the best word from 1; 0 where a background word is the best
   * @param {Float32Array} confidence
   * @param {number} height
   * @param {number} width
   * @param {Record<string, any>} answer what the service says of them
   */
  constructor(words, labels, confidence, height, width, answer) {
    this.words = words;
    this.labels = labels;
    this.confidence = confidence;
    this.height = height;
    this.width = width;
    this.answer = answer;
  }

  /** @param {Response} response of application/x-npz, asked for with threshold 0 */
  static async of(response) {
    const files = await unzip(await response.arrayBuffer());
    const [labels, confidence] = ["labels.npy", "confidence.npy"].map((name) => array(/** @type {Uint8Array} */ (files.get(name))));
    const answer = JSON.parse(new TextDecoder().decode(files.get("answer.json")));
    const words = answer.words.map((/** @type {any} */ word) => ({ name: String(word.word), colour: word.colour }));
    const [height, width] = labels.shape;
    return new Masks(words, /** @type {Uint16Array} */ (labels.data), /** @type {Float32Array} */ (confidence.data), height, width, answer);
  }

  /**
   * Share and score of each word.
   * @param {number} threshold a pixel is a word's where its probability is greater
   * @returns {Figures[]}
   */
  figures(threshold) {
    const { labels, confidence } = this;
    const counts = new Float64Array(this.words.length + 1);
    const sums = new Float64Array(this.words.length + 1);
    for (let at = 0; at < labels.length; at++) {
      if (confidence[at] > threshold) {
        counts[labels[at]]++;
        sums[labels[at]] += confidence[at];
      }
    }
    return this.words.map((_, k) => ({ share: counts[k + 1] / labels.length, score: counts[k + 1] && sums[k + 1] / counts[k + 1] }));
  }

  /**
   * @param {number} x
   * @param {number} y
   * @returns {{word: Word | undefined, number: number, probability: number}}
   */
  at(x, y) {
    const at = y * this.width + x;
    const number = this.labels[at];
    return { word: this.words[number - 1], number, probability: this.confidence[at] };
  }

  /**
   * The masks as colours over nothing; their edges are denser.
   * @param {Look} look
   */
  paint({ hidden, solo, bright, threshold, opacity }) {
    const { labels, confidence, width, height } = this;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const [fills, edges] = [opacity, opacity && Math.min(1, opacity + 0.4)].map((alpha) =>
      Uint32Array.from([0, ...this.words.map((_, k) => k + 1)], (number) => {
        if (!number || hidden.has(number) || (solo && solo !== number)) return 0;
        const [red, green, blue] = this.words[number - 1].colour;
        const dim = bright && bright !== number ? 0.25 : 1;
        return ((Math.round(alpha * dim * 255) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
      }),
    );
    const seen = Uint16Array.from(fills, (fill, number) => (fill ? number : 0));
    const shown = new Uint16Array(labels.length);
    for (let at = 0; at < shown.length; at++) if (confidence[at] > threshold) shown[at] = seen[labels[at]];
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const here = shown[at];
        if (!here) continue;
        const edge =
          (x > 0 && shown[at - 1] !== here) || (x < width - 1 && shown[at + 1] !== here) ||
          (y > 0 && shown[at - width] !== here) || (y < height - 1 && shown[at + width] !== here);
        pixels[at] = (edge ? edges : fills)[here];
      }
    }
    return image;
  }
}
