/** What can be kept: the label map, COCO annotations, the overlay. */

import { draw } from "./picture.js";

/**
 * A COCO document of one picture.
 * @param {any} answer the service's JSON with masks as run lengths
 * @param {string} name of the picture's file
 */
export function cocoOf(answer, name) {
  const [height, width] = answer.size;
  const words = /** @type {any[]} */ (answer.words);
  return {
    images: [{ id: 1, width, height, file_name: name }],
    categories: words.map(({ word }, k) => ({ id: k + 1, name: word })),
    annotations: words
      .map((word, k) => ({ ...word, category_id: k + 1 }))
      .filter(({ mask }) => mask)
      .map(({ word, mask, box, area, score, category_id }, k) => ({
        id: k + 1, image_id: 1, category_id, category: word, segmentation: mask, bbox: box, area, score, iscrowd: 0,
      })),
  };
}

/**
 * The picture with its masks as they are shown, a JPEG of the picture's own size where the browser can draw that.
 * @param {Blob} file
 * @param {HTMLCanvasElement} masks
 * @returns {Promise<Blob>}
 */
export async function overlayOf(file, masks) {
  const canvas = document.createElement("canvas");
  if (!(await draw(canvas, file, 8192))) [canvas.width, canvas.height] = [masks.width, masks.height];
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(masks, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  canvas.width = canvas.height = 0; // frees its pixels now
  return /** @type {Blob} */ (blob);
}

/**
 * @param {Blob} blob
 * @param {string} picture name of the picture's file
 * @param {string} ending
 */
export function download(blob, picture, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${picture.replace(/\.[^.]*$/, "") || "picture"}${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser has begun to read by then
}
