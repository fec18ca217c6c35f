// The last events, newest first, and what is said of each in a line.

import { el } from "./dom.js";
import * as format from "./format.js";

const KEPT = 200;
const NOISE = new Set(["heartbeat"]);
const TONES = { __proto__: null, warning: "warn", degraded: "bad", "reload-failed": "bad", recovered: "good", reloaded: "good", shutdown: "warn" };
const GLYPHS = { good: "●", warn: "▲", bad: "✕", "": "·" };
const SKIPPED = new Set(["event", "time", "stacks", "traceback"]);

const worker = (event) => `worker ${event.slot} (pid ${event.pid})`;
const left = (event) => event.signal ?? `exit code ${event.code}`;

// `died` is the event of each end of a worker: the list shows how it ended instead.
const ENDS = { __proto__: null, crash: "crashed", hang: "hung", exit: "exited", recycle: "retired", reload: "retired", scale: "retired", shutdown: "retired", stop: "stopped" };
const end = (event) => (event.event === "died" ? ENDS[event.reason] ?? "ended" : null);

/** The cause where the verb doesn't say it, then how the process ended. */
function cause(event) {
  return [end(event) === "retired" ? event.reason : null, left(event)].filter(Boolean).join(", ");
}

/** `warn` unless the worker left as it was asked to; one that had to be killed at the end of its drain didn't. */
const endTone = (event) => (end(event) === "retired" && event.code === 0 ? "" : "warn");

// Tables that are asked for a name that an app may have chosen inherit nothing: `constructor` is in none of them.
const SAID = {
  __proto__: null,
  forked: (e) => `${worker(e)} was forked, generation ${e.generation}`,
  listening: (e) => `${worker(e)} is ready, after ${format.latency(e.boot)}`,
  died: (e) => `${worker(e)} ${end(e)}: ${cause(e)}, after ${format.duration(e.uptime)}`,
  warning: (e) => e.text,
  degraded: (e) => `${e.crashes} crashes: restarts back off, ${e.ready} of ${e.wanted} workers are ready`,
  recovered: (e) => `${e.ready} workers are ready again`,
  loaded: (e) => `generation ${e.generation} is imported, by process ${e.pid}`,
  unloaded: (e) => `process ${e.pid}, which had imported generation ${e.generation}, has ended`,
  reloading: (e) => `generation ${e.generation} is being loaded`,
  reloaded: (e) => `generation ${e.generation} serves, after ${format.latency(e.seconds)}`,
  "reload-failed": (e) => `generation ${e.generation} is not used: ${e.reason}`,
  enabled: () => "traffic is enabled",
  disabled: () => "traffic is disabled",
  shutdown: (e) => (e.graceful ? "the cluster shuts down: what is under way is finished" : "the cluster stops at once"),
  stopped: (e) => `the cluster has ended, exit code ${e.code}`,
};

/** An event in a line. */
export function said(event) {
  const own = SAID[event.event];
  if (own) return String(own(event));
  const fields = Object.entries(event).filter(([name, value]) => !SKIPPED.has(name) && value !== null);
  return fields.map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
}

export class Events {
  #list;
  #empty;

  constructor(list, empty) {
    this.#list = list;
    this.#empty = empty;
  }

  add(event) {
    if (NOISE.has(event.event)) return;
    const tone = event.event === "died" ? endTone(event) : TONES[event.event] ?? "";
    const detail = event.stacks ?? event.traceback;
    const line = [
      el("time", {}, format.moment(event.time)),
      el("span", { class: `glyph ${tone}`, "aria-hidden": "true" }, GLYPHS[tone]),
      el("b", {}, end(event) ?? event.event),
      el("span", { class: "said" }, said(event)),
    ];
    const item = el("li", {}, ...line);
    if (detail) item.append(el("details", {}, el("summary", {}, event.stacks ? "Stacks" : "Traceback"), el("pre", { tabindex: 0 }, detail)));
    this.#list.prepend(item);
    while (this.#list.childElementCount > KEPT) this.#list.lastElementChild.remove();
    this.#empty.hidden = true;
  }

  /** Forget all: they will be told again. */
  clear() {
    this.#list.replaceChildren();
    this.#empty.hidden = false;
  }
}
