/** Requests to the service, and what it says when it cannot answer. */

/** What went wrong, in two sentences. */
export class Problem extends Error {
  /**
   * @param {string} found what was found
   * @param {string} [cure] what to do
   * @param {{status?: number, id?: string, wait?: number}} [more] wait: seconds after which to ask again
   */
  constructor(found, cure = "", { status = 0, id = "", wait = 0 } = {}) {
    super(found);
    this.found = found;
    this.cure = cure;
    this.status = status;
    this.id = id;
    this.wait = wait;
  }

  /** @param {Response} response one that is no success */
  static async of(response) {
    let told = /** @type {Record<string, any>} */ ({});
    try {
      told = await response.json();
    } catch {
      // A proxy's page, say: the status is all there is.
    }
    const found = told.found ?? told.detail ?? told.title ?? `The service answered ${response.status} ${response.statusText}`;
    return new Problem(String(found), String(told.cure ?? ""), {
      status: response.status,
      id: String(told.id ?? ""),
      wait: Number(response.headers.get("Retry-After")) || 0,
    });
  }
}

/**
 * @typedef {{name: string, threshold?: number, max_words?: number}} Model
 * @typedef {{handle: string, size: [number, number], timing: Record<string, number>}} Encoded size: height, width, upright
 */

export class Service {
  #token = "";
  #askToken;

  /** @param {(again: boolean) => Promise<string | null>} askToken called where a token is missing, or is not the right one */
  constructor(askToken) {
    this.#askToken = askToken;
  }

  /** @returns {Promise<Model[]>} the default model first */
  async models() {
    return (await (await this.#fetch("v1/models", {})).json()).models;
  }

  /** @param {string} path of the page */
  async file(path) {
    return (await this.#fetch(path, {})).blob();
  }

  /**
   * @param {Blob} picture
   * @param {Record<string, string>} fields
   * @param {AbortSignal} signal
   * @returns {Promise<Encoded>}
   */
  async encode(picture, fields, signal) {
    return (await this.#fetch("v1/encode", { method: "POST", body: form(picture, fields), signal })).json();
  }

  /**
   * @param {Record<string, unknown>} fields with a handle
   * @param {string} accept media type of the answer
   * @param {AbortSignal} [signal]
   */
  segment(fields, accept, signal) {
    const headers = { "Content-Type": "application/json", Accept: accept };
    return this.#fetch("v1/segment", { method: "POST", body: JSON.stringify(fields), headers, signal });
  }

  /**
   * A picture and words in one request, of which nothing is kept.
   * @param {Blob} picture
   * @param {Record<string, string>} fields
   * @param {string} accept
   * @param {AbortSignal} signal
   */
  segmentOnce(picture, fields, accept, signal) {
    return this.#fetch("v1/segment", { method: "POST", body: form(picture, fields), headers: { Accept: accept }, signal });
  }

  /**
   * @param {string} path
   * @param {RequestInit & {headers?: Record<string, string>}} request
   * @returns {Promise<Response>} a success
   */
  async #fetch(path, request) {
    for (let again = false; ; again = true) {
      const headers = /** @type {Record<string, string>} */ ({ ...request.headers });
      if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
      let response;
      try {
        response = await fetch(path, { ...request, headers });
      } catch (error) {
        if (request.signal?.aborted) throw error;
        throw new Problem("The service does not answer.", "See whether it still runs, then try again.");
      }
      if (response.ok) return response;
      const problem = await Problem.of(response);
      if (response.status !== 401) throw problem;
      const token = await this.#askToken(again);
      if (token === null) throw problem;
      this.#token = token;
    }
  }
}

/**
 * @param {Blob} picture
 * @param {Record<string, string>} fields
 */
function form(picture, fields) {
  const body = new FormData();
  body.append("picture", picture, "picture"); // the file's own name is nobody's business
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return body;
}
