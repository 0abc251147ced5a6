/** Frames of a camera: always the latest, one request at a time. */

const EDGE = 640; // pixels of a frame's longer edge, about what networks see

export class Camera {
  /** @type {MediaStream | null} */
  #stream = null;
  #video = document.createElement("video");
  #stop = new AbortController();

  constructor() {
    this.#stop.abort();
    this.#video.muted = this.#video.playsInline = true;
  }

  /** Whether it runs, or waits to be allowed to. */
  get on() {
    return !this.#stop.signal.aborted;
  }

  /**
   * Runs until `stop` is called.
   * @param {(frame: HTMLCanvasElement, signal: AbortSignal) => Promise<boolean>} each is given a frame, and awaited before
   *   the next one; returns whether it counts
   * @param {(rate: number) => void} told frames per second
   */
  async run(each, told) {
    this.stop();
    const stop = (this.#stop = new AbortController());
    const wanted = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    if (stop.signal.aborted) return stream.getTracks().forEach((track) => track.stop());
    this.#stream = stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    this.#video.srcObject = stream;
    await this.#video.play();
    /** @type {number[]} */
    const times = [];
    const frame = document.createElement("canvas");
    while (!stop.signal.aborted) {
      await this.#next();
      if (stop.signal.aborted) break;
      this.#grab(frame);
      if (!(await each(frame, stop.signal))) continue;
      times.push(performance.now());
      if (times.length > 10) times.shift();
      if (times.length > 1) told(((times.length - 1) * 1000) / (times[times.length - 1] - times[0]));
    }
    frame.width = frame.height = 0;
  }

  stop() {
    this.#stop.abort();
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** The latest frame at the camera's own size. @returns {Promise<Blob>} */
  async keep() {
    const canvas = document.createElement("canvas");
    this.#grab(canvas, Infinity);
    return /** @type {Promise<Blob>} */ (new Promise((done) => canvas.toBlob((blob) => done(/** @type {Blob} */ (blob)), "image/jpeg", 0.95)));
  }

  /** Waits for a frame; a hidden page has none. */
  #next() {
    return new Promise((done) => requestAnimationFrame(done));
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} [edge]
   */
  #grab(canvas, edge = EDGE) {
    const { videoWidth, videoHeight } = this.#video;
    const scale = Math.min(1, edge / Math.max(videoWidth, videoHeight));
    const [width, height] = [Math.round(videoWidth * scale), Math.round(videoHeight * scale)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d")?.drawImage(this.#video, 0, 0, width, height);
  }
}
