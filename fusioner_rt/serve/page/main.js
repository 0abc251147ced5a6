/** The page: a picture, words, and the masks that the service makes of them. */

import { Camera } from "./camera.js";
import { fillHelp, tokenDialog } from "./dialogs.js";
import { cocoOf, download, overlayOf } from "./downloads.js";
import { Masks } from "./masks.js";
import { draw, sizeOfMasks, takePictures } from "./picture.js";
import { Results } from "./results.js";
import { Problem, Service } from "./service.js";
import { percent, Stage } from "./stage.js";
import { showTiming } from "./timing.js";
import { groupsOf, Words } from "./words.js";

/** @typedef {import("./picture.js").Taken} Taken */
/** @typedef {import("./service.js").Encoded} Encoded */
/**
 * @typedef {Taken & {encoded: Promise<Encoded & {took: number}>, signal: AbortSignal, told: boolean, note: string}} Picture
 *   signal: of another picture that took its place. told: the time of its encoding.
 */

const NPZ = "application/x-npz";
const NO_WORDS = "Name what you would like to find.";

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));

/** @type {Picture | null} */
let picture = null;
/** @type {Masks | null} */
let masks = null;
/** Ends the taking of a picture, and what is asked about words. */
let [taking, ofWords] = [new AbortController(), new AbortController()];
const hidden = new Set(); // words, in small letters, as they outlive an answer
let only = "";
let bright = 0;
let off = false;

const service = new Service(
  tokenDialog({ dialog: $("token"), value: $("token-value"), said: $("token-said"), cancel: $("token-cancel") }),
);
const camera = new Camera();
const words = new Words($("words"), $("chips"), $("word"), () => !camera.on && ask(), say);
const stage = new Stage($("frame"), { picture: $("picture"), masks: $("masks"), crosshair: $("crosshair"), tip: $("tip") }, say);
const results = new Results($("results"), {
  hide: (number) => {
    toggle(hidden, key(number));
    look();
  },
  isolate: (number) => {
    only = only === key(number) ? "" : key(number);
    look();
  },
  brighten: (number) => {
    bright = number;
    look();
  },
  join: (one, other) => words.join(one - 1, other - 1),
  split: (number) => words.split(number - 1),
  say,
});

// ---- a picture and its masks

/**
 * Puts a picture there, and asks for its masks. What the service refuses leaves all as it was.
 * @param {Taken} taken
 */
async function take({ file, name }) {
  taking.abort();
  taking = new AbortController();
  const { signal } = taking;
  const encoded = encode(file, signal);
  encoded.catch(() => {}); // told below, or by who waits for it
  busy(true);
  try {
    const canvas = document.createElement("canvas");
    const drawn = await draw(canvas, file);
    if (!drawn) [canvas.height, canvas.width] = sizeOfMasks((await encoded).size);
    if (signal.aborted) return;
    stopCamera();
    ofWords.abort();
    clearProblem();
    picture = { file, name, encoded, signal, told: false, note: drawn ? "" : "The browser cannot show this picture, only its masks." };
    showMasks(null);
    showFrame(canvas);
    canvas.width = canvas.height = 0; // frees its pixels now
    await encoded;
    if (signal.aborted) return;
    busy(false);
    if (words.groups.length) await ask();
    else if (matchMedia("(pointer: fine)").matches) $("word").focus();
  } catch (error) {
    if (signal.aborted) return;
    if (picture?.encoded === encoded) {
      picture = null;
      showEmpty();
    }
    tell(error);
  }
}

/**
 * @param {Blob} file
 * @param {AbortSignal} signal
 */
async function encode(file, signal) {
  const started = performance.now();
  const encoded = await service.encode(file, model(), signal);
  return { ...encoded, took: performance.now() - started };
}

/** Asks for the words of the picture, whose handle makes that cheap. */
async function ask() {
  ofWords.abort();
  const asked = picture;
  if (!asked || !words.groups.length) return showMasks(null);
  ofWords = new AbortController();
  const { signal } = ofWords;
  const groups = words.groups.map((group) => [...group]);
  busy(true);
  try {
    const { size, timing, took } = await asked.encoded;
    if (signal.aborted) return;
    const started = performance.now();
    const response = await byHandle(asked, { words: groups, threshold: 0, size: sizeOfMasks(size) }, NPZ, signal);
    const found = await Masks.of(response);
    if (signal.aborted) return;
    clearProblem();
    showMasks(found, groups);
    const all = performance.now() - started;
    const before = asked.told ? null : timing;
    showTiming({ bar: $("timing-bar"), said: $("timing-said") }, sumOf(before ?? {}, found.answer.timing), all + (before ? took : 0));
    asked.told = true;
    say($("canvases").getAttribute("aria-label"));
    busy(false);
  } catch (error) {
    if (!signal.aborted) {
      showMasks(null);
      tell(error);
    }
  }
}

/**
 * Asks about an encoded picture; one that the service has forgotten is encoded again.
 * @param {Picture} asked
 * @param {Record<string, unknown>} fields
 * @param {string} accept
 * @param {AbortSignal} [signal]
 */
async function byHandle(asked, fields, accept, signal) {
  for (let again = false; ; again = true) {
    const { handle } = await asked.encoded;
    try {
      return await service.segment({ ...model(), ...fields, handle }, accept, signal);
    } catch (error) {
      if (again || !(error instanceof Problem) || error.status !== 404) throw error;
      asked.encoded = encode(asked.file, asked.signal);
      asked.told = false;
    }
  }
}

/**
 * @param {Masks | null} found
 * @param {string[][]} [groups]
 */
function showMasks(found, groups = []) {
  masks = found;
  bright = 0;
  stage.show(found);
  results.show(found, groups);
  words.colour(found?.words.map(({ colour }) => colour) ?? []);
  const notes = [picture?.note, ...(found?.answer.notes ?? [])].filter(Boolean);
  $("notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  $("notes").hidden = !notes.length;
  $("look").hidden = $("timing").hidden = !found;
  $("save").hidden = !found || camera.on;
  $("rest").textContent = found ? "" : words.groups.length ? "" : NO_WORDS;
  look();
}

/** Shows masks, shares and scores by the sliders and what is hidden: all in the browser. */
function look() {
  $("threshold-said").textContent = `${$("threshold").value} %`;
  $("opacity-said").textContent = `${$("opacity").value} %`;
  if (!masks) return $("canvases").setAttribute("aria-label", picture ? `${picture.name}, without masks` : "No picture yet");
  const numbers = masks.words.map((_, k) => k + 1);
  const seen = {
    hidden: new Set(numbers.filter((number) => hidden.has(key(number)))),
    solo: numbers.find((number) => key(number) === only) ?? 0,
    bright,
    threshold: $("threshold").value / 100,
    opacity: off ? 0 : $("opacity").value / 100,
  };
  stage.paint(seen);
  const figures = results.update(seen);
  const rest = 1 - figures.reduce((sum, { share }) => sum + share, 0);
  $("rest").textContent = rest > 0.0005 ? `No word: ${percent(rest)}` : "";
  $("canvases").setAttribute("aria-label", summary(figures));
}

/**
 * What was found, in words.
 * @param {import("./masks.js").Figures[]} figures
 */
function summary(figures) {
  const found = figures.map(({ share }, k) => `${masks?.words[k].name} ${share ? percent(share) : "not found"}`);
  return `${camera.on ? "Camera" : (picture?.name ?? "Picture")}: ${found.join(", ")}`;
}

/** @param {HTMLCanvasElement} drawn */
function showFrame(drawn) {
  const { width, height } = drawn;
  [$("picture").width, $("picture").height] = [width, height];
  $("picture").getContext("2d").drawImage(drawn, 0, 0);
  $("frame").style.setProperty("--ratio", String(width / height));
  $("frame").hidden = false;
  $("empty").hidden = true;
}

function showEmpty() {
  showMasks(null);
  $("frame").hidden = true;
  $("empty").hidden = false;
}

// ---- the camera

async function startCamera() {
  taking.abort();
  ofWords.abort();
  clearProblem();
  busy(false);
  picture = null;
  showEmpty();
  $("camera").setAttribute("aria-pressed", "true");
  try {
    if (!navigator.mediaDevices) {
      throw new Problem("Browsers open the camera for https and this machine alone.", "Serve the page behind https, or choose a picture.");
    }
    await camera.run(frameToMasks, (rate) => {
      $("rate").textContent = `${rate.toFixed(rate < 10 ? 1 : 0)} frames per second`;
    });
  } catch (error) {
    stopCamera();
    const refused = error instanceof DOMException;
    tell(refused ? new Problem("The camera cannot be used.", "Allow it for this page and see that no other program holds it, or choose a picture.") : error);
  }
  if (!camera.on) stopCamera();
}

/**
 * @param {HTMLCanvasElement} frame
 * @param {AbortSignal} signal
 */
async function frameToMasks(frame, signal) {
  const groups = words.groups.map((group) => [...group]);
  let found = null;
  const started = performance.now();
  if (groups.length) {
    const blob = await new Promise((done) => frame.toBlob(done, "image/jpeg", 0.85));
    const fields = { ...model(), words: JSON.stringify(groups), threshold: "0", size: JSON.stringify([frame.height, frame.width]) };
    try {
      found = await Masks.of(await service.segmentOnce(blob, fields, NPZ, signal));
    } catch (error) {
      if (signal.aborted) return false;
      if (!(error instanceof Problem) || error.status !== 503) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.wait || 1)));
      return false;
    }
  }
  if (signal.aborted) return false;
  showFrame(frame);
  $("snap").hidden = $("rate").hidden = false;
  showMasks(found, groups);
  if (found) showTiming({ bar: $("timing-bar"), said: $("timing-said") }, found.answer.timing, performance.now() - started);
  return true;
}

function stopCamera() {
  const was = !$("snap").hidden;
  camera.stop();
  $("camera").setAttribute("aria-pressed", "false");
  $("snap").hidden = $("rate").hidden = true;
  if (was) showEmpty();
}

async function keepFrame() {
  if (!$("snap").hidden) take({ file: await camera.keep(), name: "camera.jpg" }); // a camera that is not allowed yet has no frame
}

// ---- downloads

/** @param {(asked: Picture) => Promise<[Blob, string]>} make the file, and the end of its name */
async function save(make) {
  if (!picture || !masks) return;
  const asked = picture;
  try {
    const [blob, ending] = await make(asked);
    download(blob, asked.name, ending);
    say(`${ending.slice(1)} saved`);
  } catch (error) {
    tell(error);
  }
}

const wanted = () => ({ words: words.groups, threshold: $("threshold").value / 100 });
$("save-labels").addEventListener("click", () =>
  save(async (asked) => [await (await byHandle(asked, wanted(), "image/png")).blob(), ".labels.png"]),
);
$("save-coco").addEventListener("click", () =>
  save(async (asked) => {
    const answer = await (await byHandle(asked, { ...wanted(), masks: "rle" }, "application/json")).json();
    return [new Blob([JSON.stringify(cocoOf(answer, asked.name))], { type: "application/json" }), ".coco.json"];
  }),
);
$("save-overlay").addEventListener("click", () => save(async (asked) => [await overlayOf(asked.file, $("masks")), ".overlay.jpg"]));

// ---- what is said

/** @param {string} text for who cannot see what happened */
function say(text) {
  $("said").textContent = text;
}

/** @param {unknown} error */
function tell(error) {
  busy(false);
  if (error instanceof DOMException && error.name === "AbortError") return;
  const problem = error instanceof Problem ? error : new Problem(`The page failed: ${error}`, "Load it again.");
  if (!(error instanceof Problem)) console.error(error);
  $("problem-found").textContent = sentence(problem.found);
  $("problem-cure").textContent = sentence(problem.cure);
  $("problem-id").textContent = problem.id && `Request ${problem.id}`;
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}

function clearProblem() {
  $("problem").hidden = true;
}

/** @param {string} text */
function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}

/** @param {boolean} is */
function busy(is) {
  $("busy").hidden = !is;
  $("stage").setAttribute("aria-busy", String(is));
}

// ---- small things

const key = (/** @type {number} */ number) => masks?.words[number - 1]?.name.toLowerCase() ?? "";

/** @returns {Record<string, string>} */
function model() {
  return $("model").value ? { model: $("model").value } : {};
}

/**
 * @template T
 * @param {Set<T>} set
 * @param {T} value
 */
function toggle(set, value) {
  if (!set.delete(value)) set.add(value);
}

/**
 * @param {Record<string, number>} one
 * @param {Record<string, number>} other
 */
function sumOf(one, other) {
  const sum = { ...one };
  for (const [stage, taken] of Object.entries(other)) sum[stage] = (sum[stage] ?? 0) + taken;
  return sum;
}

// ---- what is pressed

takePictures([$("file"), $("lens")], take);
for (const place of ["choose", "empty"]) $(place).addEventListener("click", () => $("file").click());
$("photograph").addEventListener("click", () => $("lens").click());
$("camera").addEventListener("click", () => (camera.on ? stopCamera() : startCamera()));
$("snap").addEventListener("click", keepFrame);
$("problem-close").addEventListener("click", clearProblem);
$("help-open").addEventListener("click", () => $("help").showModal());
for (const slider of ["threshold", "opacity"]) {
  $(slider).addEventListener("input", () => {
    off = false;
    look();
  });
}
$("model").addEventListener("change", () => {
  useThreshold();
  if (picture) take(picture);
});

fillHelp($("help"), $("help-keys"), [
  ["W", "to the words"],
  ["O", "choose a picture"],
  ["C", "camera on and off"],
  ["K", "keep the camera's frame"],
  ["1 … 9", "only this word, or all again"],
  ["0", "all words"],
  ["H", "masks on and off"],
  ["[ ]", "threshold"],
  ["- +", "opacity"],
  ["← ↑ ↓ →", "on the picture: a crosshair"],
  ["⌫ G U", "on a word: remove, group with the one before, split"],
  ["Esc", "all words, the camera off, or this closed"],
  ["?", "these keys"],
]);

addEventListener("keydown", (event) => {
  const typing = /** @type {HTMLElement} */ (event.target).closest?.("input:not([type=range], [type=checkbox]), select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const by = (/** @type {string} */ slider, /** @type {number} */ step) => {
    $(slider).value = Number($(slider).value) + step;
    $(slider).dispatchEvent(new Event("input"));
    say(`${slider} ${$(slider).value} %`);
  };
  const isolate = (/** @type {number} */ number) => {
    only = only === key(number) ? "" : key(number);
    look();
    say(only ? `Only ${only}` : "All words");
  };
  const keys = /** @type {Record<string, () => void>} */ ({
    "?": () => $("help").showModal(),
    w: () => $("word").focus(),
    o: () => $("file").click(),
    c: () => $("camera").click(),
    k: keepFrame,
    h: () => {
      off = !off;
      look();
      say(off ? "Masks off" : "Masks on");
    },
    "0": () => {
      hidden.clear();
      isolate(0);
    },
    "[": () => by("threshold", -5),
    "]": () => by("threshold", 5),
    "-": () => by("opacity", -5),
    "+": () => by("opacity", 5),
    "=": () => by("opacity", 5),
  });
  for (let number = 1; number <= 9; number++) keys[number] = () => isolate(number);
  if (event.key === "Escape") {
    only = "";
    look();
    if (camera.on) stopCamera();
  } else if ($("keys-on").checked && Object.hasOwn(keys, event.key.toLowerCase())) {
    event.preventDefault();
    keys[event.key.toLowerCase()]();
  }
});

// ---- what there is

/** @type {import("./service.js").Model[]} */
let models = [];

function useThreshold() {
  const chosen = models.find(({ name }) => name === $("model").value) ?? models[0];
  if (chosen?.threshold !== undefined) $("threshold").value = Math.round(chosen.threshold * 100);
  look();
}

async function showModels() {
  try {
    models = await service.models();
  } catch (error) {
    return tell(error);
  }
  $("model").replaceChildren(...models.map(({ name }) => new Option(name)));
  $("model-choice").hidden = models.length < 2;
  useThreshold();
}

async function showSamples() {
  const response = await fetch("page/samples/samples.json");
  if (!response.ok) return;
  for (const sample of await response.json()) {
    const button = document.createElement("button");
    const thumbnail = Object.assign(new Image(), { src: `page/samples/${sample.file}`, alt: "", loading: "lazy" });
    button.type = "button";
    button.title = `${sample.title}: ${sample.words} (${sample.source}, ${sample.licence})`;
    button.setAttribute("aria-label", `${sample.title}, with the words ${sample.words}`);
    button.append(thumbnail);
    button.addEventListener("click", async () => {
      try {
        const file = await service.file(thumbnail.src);
        words.set(groupsOf(sample.words));
        take({ file, name: sample.file });
      } catch (error) {
        tell(error);
      }
    });
    $("samples").append(button);
  }
}

$("photograph").hidden = !matchMedia("(pointer: coarse)").matches;
showModels();
showSamples();
