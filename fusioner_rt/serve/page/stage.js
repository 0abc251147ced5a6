/** The picture with its masks, and what stands at one of its pixels. */

/** @typedef {import("./masks.js").Masks} Masks */
/** @typedef {import("./masks.js").Look} Look */

export class Stage {
  /** @type {Masks | null} */
  #masks = null;
  /** @type {Look | null} */
  #look = null;
  /** The pixel of the crosshair, null while the pointer leads. @type {{x: number, y: number} | null} */
  #cross = null;
  #due = 0;

  /**
   * @param {HTMLElement} frame
   * @param {{picture: HTMLCanvasElement, masks: HTMLCanvasElement, crosshair: HTMLElement, tip: HTMLElement}} parts
   * @param {(text: string) => void} say
   */
  constructor(frame, parts, say) {
    this.frame = frame;
    this.parts = parts;
    this.say = say;
    frame.addEventListener("pointermove", (event) => this.#point(event));
    frame.addEventListener("pointerdown", (event) => this.#point(event));
    frame.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.#leave()); // a finger leaves at once
    frame.addEventListener("keydown", (event) => this.#move(event));
    frame.addEventListener("blur", () => this.#leave());
  }

  /** @param {Masks | null} masks */
  show(masks) {
    this.#masks = masks;
    this.#leave();
    const { masks: canvas } = this.parts;
    [canvas.width, canvas.height] = masks ? [masks.width, masks.height] : [1, 1];
  }

  /** @param {Look} look */
  paint(look) {
    this.#look = look;
    this.#due ||= requestAnimationFrame(() => {
      this.#due = 0;
      if (!this.#masks || !this.#look) return;
      this.parts.masks.getContext("2d")?.putImageData(this.#masks.paint(this.#look), 0, 0);
      if (this.#cross) this.#tell(this.#cross.x, this.#cross.y);
    });
  }

  /** @param {PointerEvent} event */
  #point(event) {
    if (!this.#masks) return;
    const box = this.parts.masks.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return this.#leave();
    this.#cross = null;
    this.parts.crosshair.hidden = true;
    this.#tell(Math.floor(x * this.#masks.width), Math.floor(y * this.#masks.height));
  }

  #leave() {
    this.#cross = null;
    this.parts.crosshair.hidden = this.parts.tip.hidden = true;
  }

  /** @param {KeyboardEvent} event */
  #move(event) {
    const steps = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
    });
    if (!this.#masks || !Object.hasOwn(steps, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const { width, height } = this.#masks;
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 50));
    const [x, y] = steps[event.key];
    const from = this.#cross ?? { x: width >> 1, y: height >> 1 };
    this.#cross = {
      x: Math.min(width - 1, Math.max(0, from.x + x * step)),
      y: Math.min(height - 1, Math.max(0, from.y + y * step)),
    };
    this.say(this.#tell(this.#cross.x, this.#cross.y));
    const { crosshair } = this.parts;
    crosshair.style.left = `${((this.#cross.x + 0.5) / width) * 100}%`;
    crosshair.style.top = `${((this.#cross.y + 0.5) / height) * 100}%`;
    crosshair.hidden = false;
  }

  /**
   * Shows word and probability of a pixel beside it.
   * @param {number} x
   * @param {number} y
   * @returns {string} the same in words
   */
  #tell(x, y) {
    const masks = /** @type {Masks} */ (this.#masks);
    const { word, number, probability } = masks.at(x, y);
    const { tip } = this.parts;
    const shown = !!word && probability > (this.#look?.threshold ?? 0) && !this.#look?.hidden.has(number);
    const dot = document.createElement("span");
    dot.className = "dot";
    if (shown) dot.style.backgroundColor = `rgb(${word.colour.join(" ")})`;
    tip.replaceChildren(dot, `${shown ? "" : word ? "at best " : ""}${word?.name ?? "background"} ${percent(probability)}`);
    tip.style.left = `${((x + 0.5) / masks.width) * 100}%`;
    tip.style.top = `${((y + 0.5) / masks.height) * 100}%`;
    tip.classList.toggle("before", x > masks.width / 2);
    tip.classList.toggle("above", y > masks.height / 2);
    tip.hidden = false;
    return tip.textContent ?? "";
  }
}

/** @param {number} share 0 to 1 */
export function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1 %";
  return `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;
}
