/** Reads NumPy's .npz: a zip of .npy files. */

/** @typedef {{shape: number[], data: Uint16Array | Float32Array}} NumpyArray */

/**
 * @param {ArrayBuffer} buffer
 * @returns {Promise<Map<string, Uint8Array>>} the files by name
 */
export async function unzip(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("no zip file");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const packed = new Uint8Array(buffer, start, size);
    files.set(new TextDecoder().decode(new Uint8Array(buffer, at + 46, name)), method ? await inflate(packed) : packed);
    at += 46 + name + extra + comment;
  }
  return files;
}

/** @param {Uint8Array<ArrayBuffer>} packed */
async function inflate(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * An array of uint16, or of float16 or float32 as float32.
 * @param {Uint8Array} bytes of a .npy file
 * @returns {NumpyArray}
 */
export function array(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(10, start));
  const type = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const shape = (/'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "").split(",").filter((part) => part.trim()).map(Number);
  const content = bytes.slice(start).buffer; // a copy, so that numbers of two and four bytes lie as they must
  if (type === "<u2") return { shape, data: new Uint16Array(content) };
  if (type === "<f4") return { shape, data: new Float32Array(content) };
  if (type === "<f2") return { shape, data: Float32Array.from(new Uint16Array(content), (half) => floats()[half]) };
  throw new Error(`arrays of ${type} are not read`);
}

/** @type {Float32Array | undefined} */
let table;

/** The value of every float16. */
function floats() {
  table ??= Float32Array.from({ length: 65536 }, (_, half) => {
    const [sign, exponent, rest] = [half >> 15 ? -1 : 1, (half >> 10) & 31, half & 1023];
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
  });
  return table;
}
