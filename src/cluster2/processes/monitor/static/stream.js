// Talks to the monitor: requests with the token, and the stream of facts, which is taken up again when it breaks.
//
// The stream is read by fetch() rather than by EventSource, which can't send a header and so couldn't sign in. A tab that
// nobody looks at leaves its stream after a minute: a browser has six connections for a host, and the monitor few for viewers.

const KEY = `cluster2 token ${new URL(".", location).pathname}`;
const SILENCE = 8000; // ms without facts, which come each second, after which a stream is taken for dead
const HIDDEN = 60000; // ms
const PAUSES = [250, 1000, 2000, 4000, 8000, 15000]; // ms
const PATIENT = 4; // the pause of PAUSES, counted from 1, with which it begins after a shutdown

/** The monitor wants a token, or another one. */
export class Unauthorized extends Error {}

/** It refused: `message` is its own line. */
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
  // Storage is forbidden: the token lives as long as the page.
}

export const session = {
  get token() {
    return token;
  },
  /** Call that when the token has been found to be valid. */
  onProved(listener) {
    listeners.push(listener);
  },
  proved() {
    for (const listener of listeners) listener();
  },
  /** Keep a token while this tab lives; null: forget it. */
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

/** Whether a header can carry it. */
export const sendable = (value) => /^[\x21-\x7e]+$/.test(value);

/** fetch() below the page's own path, with the token; raises Unauthorized, Refused, or TypeError if nobody is there. */
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
    return text.trim().split("\n")[0].slice(0, 500) || `the monitor answered ${answer.status}`;
  }
}

/** The messages of a text/event-stream: {name, id, data}, data as JSON; what isn't JSON is left out. */
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

/** Show an event. One that can't be shown mustn't end the stream, which would come to it again, for ever. */
function told(show) {
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
 * The stream of facts, for as long as the page lives.
 *
 * `on` has `open(anew)` (anew: all events will be told), `facts(facts)`, `sample(row)`, `event(event, first)` (first: it wasn't told before), `back()` (it is looked at again, and takes up the stream
 * that it had left), `lost(why, pause)`, `leaving()` (whether the cluster is known to end) and `signedOut()`, after which nothing
 * happens until `wake()`.
 */
export class Stream {
  #on;
  #last = null; // the id of the last event
  #newest = 0; // the highest id of all: what is told again has been told before
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
    this.#seen(); // a tab may have been opened behind another
  }

  /** Don't wait any longer for the next try. */
  wake() {
    this.#signedOut = false;
    this.#wake();
  }

  /** Who bears the token is told more of each event: have them told once more. */
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
        } else this.#failed(error instanceof Refused ? error.message : "the monitor doesn't answer");
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
    // Until the first facts any byte will do: what was missed comes before them. Then facts alone: a monitor that can't look at
    // the cluster any more says something all the same, and what is shown would get old unnoticed.
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
          told(() => this.#on.event(data, first));
        } else if (name === "facts") {
          this.#failures = 0;
          shown = true;
          alive();
          this.#on.facts(data);
        } else if (name === "sample") this.#on.sample(data);
      }
    } finally {
      clearTimeout(silence);
      this.#abort.abort();
    }
  }

  #failed(why) {
    // A monitor that leaves for good has refused each new stream before its port is closed: don't come back at once.
    this.#failures = Math.max(this.#failures + 1, this.#on.leaving() ? PATIENT : 0);
    this.#on.lost(why, PAUSES[Math.min(this.#failures, PAUSES.length) - 1] / 1000);
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
