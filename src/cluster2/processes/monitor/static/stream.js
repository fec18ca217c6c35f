// The connection to the monitor: requests with the token, and the stream of reports, which is opened again when it breaks.
//
// The stream is read by fetch(). EventSource can't send a header, so it couldn't send the token. A hidden tab closes its stream after
// a minute: a browser has six connections for a host, and the monitor serves few viewers.

const KEY = `cluster2 token ${new URL(".", location).pathname}`;
const SILENCE = 8000; // ms without a report, which comes each second, after which the stream counts as dead
const HIDDEN = 60000; // ms after which a hidden tab closes its stream
const PAUSES = [250, 1000, 2000, 4000, 8000, 15000]; // ms between two attempts, by the number of failures
const FAILURES_AFTER_SHUTDOWN = 4; // the number of failures to begin with after a shutdown

/** The monitor needs a token, or another one. */
export class Unauthorized extends Error {}

/** The monitor refused the request. `message` is its own text. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let token = null;
const listeners = [];
try {
  token = sessionStorage.getItem(KEY);
} catch {
  // The browser forbids storage. The token is kept as long as the page.
}

export const session = {
  get token() {
    return token;
  },
  /** Call a function when the monitor has accepted the token. */
  onProved(listener) {
    listeners.push(listener);
  },
  proved() {
    for (const listener of listeners) listener();
  },
  /** Keep a token until the tab is closed; null: forget it. */
  keep(value) {
    token = value;
    try {
      if (value === null) sessionStorage.removeItem(KEY);
      else sessionStorage.setItem(KEY, value);
    } catch {
      // as above
    }
  },
};

/** Return true if a header can have this value (RFC 9110, 5.5: visible ASCII, here without spaces). */
export const sendable = (value) => /^[\x21-\x7e]+$/.test(value);

/** Call fetch() below the page's path, with the token. Throws Unauthorized, Refused, or TypeError if there is no response. */
export async function ask(path, { accept = "application/json", bearing = token, headers = {}, ...more } = {}) {
  const all = { accept, ...headers };
  if (bearing !== null) all.authorization = `Bearer ${bearing}`;
  const answer = await fetch(path, { cache: "no-store", credentials: "omit", headers: all, ...more });
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Unauthorized("a valid token is needed");
  throw new Refused(answer.status, await reason(answer));
}

async function reason(answer) {
  const text = await answer.text().catch(() => "");
  try {
    return String(JSON.parse(text).error);
  } catch {
    return text.trim().split("\n")[0].slice(0, 500) || `the monitor responded with ${answer.status}`;
  }
}

/** Yield the messages of a text/event-stream, {name, id, data}, with data parsed. A message that isn't JSON is left out. */
export async function* messages(answer, heard = () => {}) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  let message = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      const [, field, content] = /^([a-z]*): ?(.*?)\r?$/s.exec(line) ?? [];
      if (field === "event") message.name = content;
      else if (field === "id") message.id = content;
      else if (field === "data") message.text = message.text === undefined ? content : `${message.text}\n${content}`;
      else if (line.trim() === "") {
        const { name = "message", id, text } = message;
        message = {};
        const data = text === undefined ? undefined : parsed(text);
        if (data !== undefined) yield { name, id, data };
      }
    }
  }
}

/** Call a function that shows an event. An exception mustn't end the stream, which would get the same event again, for ever. */
function guarded(show) {
  try {
    show();
  } catch (failure) {
    console.error("an event can't be shown", failure);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * The stream of reports and events, for as long as the page is open.
 *
 * `on` has these functions:
 * - `open(anew)`: the stream is open. anew: all events that the monitor has will come.
 * - `report(report)`, `sample(row)`.
 * - `event(event, first)`: first: the event has not come before.
 * - `back()`: the tab is visible again, and opens the stream that it had closed.
 * - `lost(reason, pause)`: the stream has ended, and is opened again in `pause` seconds.
 * - `leaving()`: returns true if the cluster is known to end.
 * - `signedOut()`: the monitor needs a token. Nothing happens until `wake()`.
 */
export class Stream {
  #on;
  #last = null; // the id of the last event
  #newest = 0; // the highest id so far: an event with a lower one has come before
  #failures = 0;
  #abort = new AbortController();
  #wake = () => {};
  #signedOut = false;
  #hiding = 0;
  #restarting = false;
  #bearing = null;

  constructor(on) {
    this.#on = on;
    document.addEventListener("visibilitychange", () => this.#seen());
    window.addEventListener("online", () => this.wake());
    session.onProved(() => this.#again());
    this.#seen(); // a tab may be opened behind another
  }

  /** Try now. */
  wake() {
    this.#signedOut = false;
    this.#wake();
  }

  /** With the token events have more fields: open the stream anew, so that all events come again. */
  #again() {
    if (this.#bearing === token || this.#on.leaving()) return;
    this.#last = null;
    this.#restarting = true;
    this.#abort.abort();
    this.wake();
  }

  async run() {
    for (;;) {
      if (document.hidden && this.#hiding === -1) await this.#pause(Infinity);
      try {
        await this.#follow();
        this.#failed("the monitor ended the stream");
      } catch (error) {
        if (this.#hiding === -1 || this.#restarting) continue;
        if (error instanceof Unauthorized) {
          this.#signedOut = true;
          this.#on.signedOut();
        } else this.#failed(error instanceof Refused ? error.message : "the monitor doesn't respond");
      }
      const pause = PAUSES[Math.min(this.#failures, PAUSES.length) - 1] ?? PAUSES[0];
      await this.#pause(this.#signedOut ? Infinity : pause * (0.8 + 0.4 * Math.random()));
    }
  }

  async #follow() {
    this.#abort = new AbortController();
    this.#restarting = false;
    this.#bearing = token;
    let silence = 0;
    let shown = false;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => this.#abort.abort(), SILENCE);
    };
    alive();
    // Until the first report any byte proves that the stream lives, since missed events come before it. Later only a report does:
    // a monitor that can't read the scoreboard any more still sends comments, and the figures would get old unnoticed.
    const heard = () => shown || alive();
    try {
      const headers = this.#last === null ? {} : { "last-event-id": this.#last };
      const answer = await ask("events", { accept: "text/event-stream", headers, signal: this.#abort.signal });
      this.#on.open(this.#last === null);
      for await (const { name, id, data } of messages(answer, heard)) {
        if (id !== undefined) {
          this.#last = id;
          const first = Number(id) > this.#newest;
          if (first) this.#newest = Number(id);
          guarded(() => this.#on.event(data, first));
        } else if (name === "facts") {
          this.#failures = 0;
          shown = true;
          alive();
          this.#on.report(data);
        } else if (name === "sample") this.#on.sample(data);
      }
    } finally {
      clearTimeout(silence);
      this.#abort.abort();
    }
  }

  #failed(reason) {
    // A monitor that ends for good refuses new streams before its port is closed, so don't try again at once.
    this.#failures = Math.max(this.#failures + 1, this.#on.leaving() ? FAILURES_AFTER_SHUTDOWN : 0);
    this.#on.lost(reason, PAUSES[Math.min(this.#failures, PAUSES.length) - 1] / 1000);
  }

  #pause(length) {
    return new Promise((resolve) => {
      const timer = length === Infinity ? 0 : setTimeout(resolve, length);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #seen() {
    clearTimeout(this.#hiding);
    if (document.hidden) {
      this.#hiding = setTimeout(() => {
        this.#hiding = -1;
        this.#abort.abort();
      }, HIDDEN);
    } else {
      const slept = this.#hiding === -1;
      this.#hiding = 0;
      if (!slept) return;
      this.#on.back();
      this.wake();
    }
  }
}
