/** The list of masks: each with its colour, share and score, to be hidden, isolated and grouped. */

import { percent } from "./stage.js";

/** @typedef {import("./masks.js").Masks} Masks */
/** @typedef {import("./masks.js").Look} Look */

export class Results {
  #list;
  #acts;
  /** The word that waits for another to be grouped with, 0 is none. */
  #first = 0;
  /** @type {{masks: Masks, groups: string[][]} | null} */
  #shown = null;

  /**
   * @param {HTMLUListElement} list
   * @param {{hide: (number: number) => void, isolate: (number: number) => void, brighten: (number: number) => void,
   *   join: (one: number, other: number) => void, split: (number: number) => void, say: (text: string) => void}} acts
   *   numbers of words from 1
   */
  constructor(list, acts) {
    this.#list = list;
    this.#acts = acts;
    list.addEventListener("pointerleave", () => acts.brighten(0));
    list.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#first) this.#mark(0);
    });
  }

  /**
   * @param {Masks | null} masks
   * @param {string[][]} groups the words they were asked with
   */
  show(masks, groups) {
    const same = JSON.stringify([masks?.words, groups]) === JSON.stringify([this.#shown?.masks.words, this.#shown?.groups]);
    if (same && masks) {
      this.#shown = { masks, groups }; // the rows stay, so that a camera's next frame takes no click away
      return;
    }
    const focused = this.#focused();
    this.#shown = masks && { masks, groups };
    this.#first = 0;
    this.#list.replaceChildren(...(masks?.words ?? []).map((_, k) => this.#row(k)));
    if (focused) /** @type {HTMLElement | null} */ (this.#list.children[focused.row]?.querySelector(`.${focused.act}`))?.focus();
  }

  /**
   * Shares, scores and states, after the look has changed.
   * @param {Look} look
   * @returns {import("./masks.js").Figures[]}
   */
  update(look) {
    if (!this.#shown) return [];
    const figures = this.#shown.masks.figures(look.threshold);
    for (const [k, row] of [...this.#list.children].entries()) {
      const { share, score } = figures[k];
      const [hide, isolate] = [".hide", ".isolate"].map((name) => /** @type {HTMLElement} */ (row.querySelector(name)));
      hide.setAttribute("aria-pressed", String(look.hidden.has(k + 1)));
      isolate.setAttribute("aria-pressed", String(look.solo === k + 1));
      row.classList.toggle("off", look.hidden.has(k + 1) || (look.solo > 0 && look.solo !== k + 1));
      row.classList.toggle("none", !share);
      /** @type {HTMLElement} */ (row.querySelector(".share")).textContent = share ? percent(share) : "not found";
      /** @type {HTMLElement} */ (row.querySelector(".score")).textContent = share ? `score ${score.toFixed(2)}` : "";
      /** @type {HTMLElement} */ (row.querySelector(".amount")).style.width = `${share * 100}%`;
    }
    return figures;
  }

  #focused() {
    const row = [...this.#list.children].findIndex((child) => child.contains(document.activeElement));
    return row < 0 ? null : { row, act: document.activeElement?.classList[0] };
  }

  /** @param {number} k */
  #row(k) {
    const { masks, groups } = /** @type {{masks: Masks, groups: string[][]}} */ (this.#shown);
    const { name, colour } = masks.words[k];
    const group = groups[k] ?? [name];
    const row = document.createElement("li");
    row.className = "result";
    const dot = part("span", "dot");
    dot.style.backgroundColor = `rgb(${colour.join(" ")})`;
    const title = part("span", "name", group.length > 1 ? group.join(" | ") : name);
    title.title = title.textContent ?? "";
    const amount = part("span", "amount");
    amount.style.backgroundColor = dot.style.backgroundColor;
    const track = part("span", "track");
    track.append(amount);
    const acts = part("span", "acts");
    acts.append(
      this.#button("isolate", "Only", `Show only ${name}`, () => this.#acts.isolate(k + 1)),
      this.#button("hide", "Hide", `Hide ${name}`, () => this.#acts.hide(k + 1)),
      group.length > 1
        ? this.#button("split", "Split", `Split the group ${group.join(", ")}`, () => this.#acts.split(k + 1))
        : this.#button("group", "Group", `Group ${name} with another word`, () => this.#group(k + 1)),
    );
    if (masks.words.length < 2 && group.length < 2) acts.lastElementChild?.remove();
    row.append(dot, title, part("span", "share"), track, part("span", "score"), acts);
    row.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.#acts.brighten(k + 1));
    row.addEventListener("click", (event) => this.#first && !(/** @type {Element} */ (event.target).closest("button")) && this.#group(k + 1));
    return row;
  }

  /** @param {number} number the first or the second word of a new group */
  #group(number) {
    const first = this.#first;
    if (first && first !== number) {
      this.#mark(0);
      this.#acts.join(first, number);
    } else {
      this.#mark(first ? 0 : number);
      if (!first) this.#acts.say("Press Group at the word that it goes with, or Escape");
    }
  }

  /** @param {number} number */
  #mark(number) {
    this.#first = number;
    this.#list.classList.toggle("grouping", number > 0);
    for (const [k, row] of [...this.#list.children].entries()) {
      const button = row.querySelector(".group");
      button?.setAttribute("aria-pressed", String(number === k + 1));
      if (button) button.textContent = !number ? "Group" : number === k + 1 ? "With …" : "This";
    }
  }

  /**
   * @param {string} kind
   * @param {string} text
   * @param {string} label
   * @param {() => void} act
   */
  #button(kind, text, label, act) {
    const button = /** @type {HTMLButtonElement} */ (part("button", kind, text));
    button.type = "button";
    button.setAttribute("aria-label", label);
    if (kind !== "split") button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", act);
    return button;
  }
}

/**
 * @param {string} tag
 * @param {string} name
 * @param {string} [text]
 */
function part(tag, name, text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}
