/** Where pictures come from: dropped, pasted, chosen, photographed, or a sample. And how they are shown. */

/** The longer edge of what is shown, pixels: of the picture, and of its masks. Small masks would show their pixels. */
const SHOWN = 2048;
const [SMALLEST, LARGEST] = [1024, 1280];

/** @typedef {{file: Blob, name: string}} Taken */

/**
 * Calls `take` with every picture that is dropped on the page, pasted, or chosen.
 * @param {HTMLInputElement[]} inputs
 * @param {(taken: Taken) => void} take
 */
export function takePictures(inputs, take) {
  for (const input of inputs) {
    input.addEventListener("change", () => {
      const [file] = input.files ?? [];
      input.value = ""; // so that the same file may be chosen again
      if (file) take({ file, name: file.name });
    });
  }
  const holdsFile = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // entering a child comes before leaving its parent
  const mark = (/** @type {number} */ by) => {
    depth = by ? depth + by : 0;
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => holdsFile(event) && mark(1));
  addEventListener("dragleave", (event) => holdsFile(event) && mark(-1));
  addEventListener("dragover", (event) => holdsFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    mark(0);
    if (!holdsFile(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer?.files ?? [];
    if (file) take({ file, name: file.name });
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    take({ file, name: "pasted.png" });
  });
}

/**
 * Draws a picture upright, of at most SHOWN pixels an edge.
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} file
 * @param {number} [largest] pixels of the longer edge
 * @returns {Promise<boolean>} false where the browser does not read such pictures
 */
export async function draw(canvas, file, largest = SHOWN) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return false;
  }
  [canvas.height, canvas.width] = within([bitmap.height, bitmap.width], largest);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return true;
}

/**
 * The size of masks that are shown over a picture.
 * @param {[number, number]} size height and width of the picture
 */
export function sizeOfMasks(size) {
  const edge = Math.min(LARGEST, Math.max(SMALLEST, ...size));
  return scaled(size, edge / Math.max(...size));
}

/**
 * @param {[number, number]} size
 * @param {number} largest
 * @returns {[number, number]} the size, made smaller where an edge is longer than `largest`
 */
function within(size, largest) {
  return scaled(size, Math.min(1, largest / Math.max(...size)));
}

/**
 * @param {[number, number]} size
 * @param {number} scale
 * @returns {[number, number]}
 */
function scaled([height, width], scale) {
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}
