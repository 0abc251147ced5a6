/** Words as chips: typed, edited, removed, and joined to groups. */

/** Characters that separate words in a text. */
const SEPARATORS = /[,;，；、،؛\n\r\t]+/;

/**
 * @param {string} text "cat, sofa|couch"
 * @returns {string[][]} a list of groups
 */
export function groupsOf(text) {
  return text
    .split(SEPARATORS)
    .map((part) => part.split("|").map((word) => word.trim().replace(/\s+/g, " ")).filter(Boolean))
    .filter((group) => group.length > 0);
}

export class Words {
  /** @type {string[][]} */
  groups = [];
  #list;
  #input;
  #changed;
  #say;
  /** What a chip is dragged with, within this page. @type {number | null} */
  #dragged = null;
  /** The place of the group that is edited in the field. @type {number | null} */
  #edited = null;

  /**
   * @param {HTMLElement} box
   * @param {HTMLUListElement} list
   * @param {HTMLInputElement} input
   * @param {() => void} changed called when the words are others
   * @param {(text: string) => void} say tells what was done to who cannot see it
   */
  constructor(box, list, input, changed, say) {
    this.#list = list;
    this.#input = input;
    this.#changed = changed;
    this.#say = say;
    input.addEventListener("keydown", (event) => this.#typed(event));
    for (const kind of ["input", "compositionend"]) {
      // phones send no key for a comma
      input.addEventListener(kind, (event) => {
        if (!(/** @type {InputEvent} */ (event).isComposing) && SEPARATORS.test(input.value)) this.#take();
      });
    }
    input.addEventListener("blur", () => this.#take());
    box.addEventListener("click", (event) => event.target === box && input.focus());
    list.addEventListener("keydown", (event) => this.#onChip(event));
  }

  /**
   * Puts other words there, without a call of `changed`.
   * @param {string[][]} groups
   */
  set(groups) {
    this.groups = [];
    this.#add(groups, false);
    this.#render();
  }

  /**
   * The colours of the words, in their order.
   * @param {[number, number, number][]} colours
   */
  colour(colours) {
    for (const [k, chip] of [...this.#list.children].entries()) {
      const dot = /** @type {HTMLElement} */ (chip.querySelector(".dot"));
      dot.style.backgroundColor = colours[k] ? `rgb(${colours[k].join(" ")})` : "";
    }
  }

  /**
   * Makes one group of two, called by the first of the one that stands before.
   * @param {number} from
   * @param {number} to
   */
  join(from, to) {
    if (from === to || !this.groups[from] || !this.groups[to]) return;
    const [first, second] = [Math.min(from, to), Math.max(from, to)];
    this.groups[first] = [...this.groups[first], ...this.groups[second]];
    this.groups.splice(second, 1);
    this.#say(`${this.groups[first].join(" and ")} are one group`);
    this.#render(first);
    this.#changed();
  }

  /**
   * Makes single words of a group.
   * @param {number} k
   */
  split(k) {
    if ((this.groups[k]?.length ?? 0) < 2) return;
    this.#say(`${this.groups[k].join(" and ")} are single words`);
    this.groups.splice(k, 1, ...this.groups[k].map((word) => [word]));
    this.#render(k);
    this.#changed();
  }

  /** @param {number} k */
  remove(k) {
    const [gone] = this.groups.splice(k, 1);
    if (!gone) return;
    this.#say(`${gone[0]} removed`);
    this.#render(Math.min(k, this.groups.length - 1));
    this.#changed();
  }

  /** Takes what stands in the field. */
  #take() {
    const groups = groupsOf(this.#input.value);
    this.#input.value = "";
    const edited = this.#edited !== null;
    if (!groups.length && !edited) return;
    const added = this.#add(groups, !edited, this.#edited ?? this.groups.length);
    this.#edited = null;
    this.#render();
    if (added || edited) this.#changed();
  }

  /**
   * @param {string[][]} groups
   * @param {boolean} loud
   * @param {number} [place]
   * @returns {boolean} whether there are more groups now
   */
  #add(groups, loud, place = this.groups.length) {
    const key = (/** @type {string} */ word) => word.toLowerCase();
    const known = new Set(this.groups.flat().map(key));
    const added = [];
    for (const group of groups) {
      const fresh = group.filter((word) => !known.has(key(word)) && known.add(key(word)));
      if (fresh.length) added.push(fresh);
      if (loud && fresh.length < group.length) this.#say(`${group.find((word) => !fresh.includes(word))} is there already`);
    }
    this.groups.splice(place, 0, ...added);
    if (loud && added.length) this.#say(`${added.map((group) => group.join(" or ")).join(", ")} added`);
    return added.length > 0;
  }

  /** @param {KeyboardEvent} event */
  #typed(event) {
    const { value, selectionStart, selectionEnd } = this.#input;
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      this.#take();
    } else if (event.key === "Backspace" && !value && this.groups.length) {
      this.remove(this.groups.length - 1);
      this.#input.focus();
    } else if (event.key === "ArrowLeft" && !selectionStart && !selectionEnd && this.groups.length) {
      this.#focus(this.groups.length - 1);
    }
  }

  /** @param {KeyboardEvent} event */
  #onChip(event) {
    const chip = /** @type {HTMLElement} */ (event.target).closest("li");
    if (!chip || event.ctrlKey || event.metaKey || event.altKey) return;
    const k = [...this.#list.children].indexOf(chip);
    const acts = /** @type {Record<string, () => void>} */ ({
      ArrowLeft: () => this.#focus(Math.max(0, k - 1)),
      ArrowRight: () => (k + 1 < this.groups.length ? this.#focus(k + 1) : this.#input.focus()),
      Home: () => this.#focus(0),
      End: () => this.#input.focus(),
      Backspace: () => this.remove(k),
      Delete: () => this.remove(k),
      "|": () => this.join(k, k - 1),
      g: () => this.join(k, k - 1),
      u: () => this.split(k),
    });
    if (!Object.hasOwn(acts, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  }

  /** @param {number} k */
  #edit(k) {
    const text = this.groups[k].join("|");
    this.#take();
    this.groups.splice(k, 1);
    this.#edited = k;
    this.#render();
    this.#input.value = text;
    this.#input.focus();
    this.#input.select();
  }

  /** @param {number} k */
  #focus(k) {
    /** @type {HTMLElement | undefined} */ (this.#list.children[k]?.querySelector(".text") ?? this.#input)?.focus();
  }

  /** @param {number} [focus] the chip to focus where the focus was on one */
  #render(focus) {
    const inside = this.#list.contains(document.activeElement);
    this.#list.replaceChildren(...this.groups.map((group, k) => this.#chip(group, k)));
    this.#input.placeholder = this.groups.length ? "another" : "cat, sofa|couch";
    if (inside && focus !== undefined) focus < 0 ? this.#input.focus() : this.#focus(focus);
  }

  /**
   * @param {string[]} group
   * @param {number} k
   */
  #chip(group, k) {
    const item = document.createElement("li");
    item.className = "chip";
    item.draggable = true;
    const text = document.createElement("button");
    text.type = "button";
    text.className = "text";
    const dot = document.createElement("span");
    dot.className = "dot";
    text.append(dot, group.join(" | "));
    text.setAttribute("aria-label", group.length > 1 ? `Group ${group.join(", ")}` : group[0]);
    text.setAttribute("aria-description", "Enter edits, Delete removes, G joins with the one before" + (group.length > 1 ? ", U splits" : ""));
    text.addEventListener("click", () => this.#edit(k));
    const gone = document.createElement("button");
    gone.type = "button";
    gone.className = "gone";
    gone.tabIndex = -1; // Delete on the chip does it
    gone.textContent = "×";
    gone.setAttribute("aria-label", `Remove ${group[0]}`);
    gone.addEventListener("click", () => this.remove(k));
    item.append(text, gone);
    item.addEventListener("dragstart", (event) => {
      this.#dragged = k;
      event.dataTransfer?.setData("text/plain", group.join("|"));
    });
    item.addEventListener("dragend", () => (this.#dragged = null));
    item.addEventListener("dragover", (event) => {
      if (this.#dragged === null || this.#dragged === k) return;
      event.preventDefault();
      item.classList.add("over");
    });
    item.addEventListener("dragleave", () => item.classList.remove("over"));
    item.addEventListener("drop", (event) => {
      if (this.#dragged === null) return;
      event.preventDefault();
      event.stopPropagation();
      this.join(this.#dragged, k);
    });
    return item;
  }
}
