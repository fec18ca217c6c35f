// The list of the last events, newest first, each with a line that describes it.

import { el } from "./dom.js";
import * as format from "./format.js";

const MAX_EVENTS = 200;
const HIDDEN_EVENTS = new Set(["heartbeat"]);
const TONES = { __proto__: null, warning: "warn", degraded: "bad", "reload-failed": "bad", recovered: "good", reloaded: "good", shutdown: "warn" };
const GLYPHS = { good: "●", warn: "▲", bad: "✕", "": "·" };
const HIDDEN_FIELDS = new Set(["event", "time", "stacks", "traceback"]);

const worker = (event) => `worker ${event.slot} (pid ${event.pid})`;
const left = (event) => event.signal ?? `exit code ${event.code}`;

// Each end of a worker is an event `died`. The list shows how it ended instead.
const ENDS = { __proto__: null, crash: "crashed", hang: "hung", exit: "exited", recycle: "retired", reload: "retired", scale: "retired", shutdown: "retired", stop: "stopped" };
const end = (event) => (event.event === "died" ? ENDS[event.reason] ?? "ended" : null);

/** The cause where the verb doesn't say it, then how the process ended. */
function cause(event) {
  return [end(event) === "retired" ? event.reason : null, left(event)].filter(Boolean).join(", ");
}

/** `warn` unless the worker left as it was asked to. One that was killed at the end of its drain didn't. */
const endTone = (event) => (end(event) === "retired" && event.code === 0 ? "" : "warn");

// Tables whose keys an app may choose have no prototype: a lookup of `constructor` finds nothing.
const DESCRIPTIONS = {
  __proto__: null,
  forked: (e) => `${worker(e)} was forked, generation ${e.generation}`,
  listening: (e) => `${worker(e)} is ready, after ${format.latency(e.boot)}`,
  died: (e) => `${worker(e)} ${end(e)}: ${cause(e)}, after ${format.duration(e.uptime)}`,
  warning: (e) => e.text,
  degraded: (e) => `${format.counted(e.crashes, "crash", "crashes")}: restarts back off, ${e.ready} of ${e.wanted} workers are ready`,
  recovered: (e) => `${format.counted(e.ready, "worker is", "workers are")} ready again`,
  loaded: (e) => `generation ${e.generation} is loaded, by process ${e.pid}`,
  unloaded: (e) => `process ${e.pid}, which had loaded generation ${e.generation}, has ended`,
  reloading: (e) => `generation ${e.generation} is being loaded`,
  reloaded: (e) => `generation ${e.generation} serves, after ${format.latency(e.seconds)}`,
  "reload-failed": (e) => `generation ${e.generation} is not used: ${e.reason}`,
  enabled: () => "traffic is enabled",
  disabled: () => "traffic is disabled",
  shutdown: (e) => (e.graceful ? "the cluster shuts down: requests in progress are finished" : "the cluster stops at once"),
  stopped: (e) => `the cluster has ended, exit code ${e.code}`,
};

/** Describe an event in a line. */
export function describe(event) {
  const own = DESCRIPTIONS[event.event];
  if (own) return String(own(event));
  const fields = Object.entries(event).filter(([name, value]) => !HIDDEN_FIELDS.has(name) && value !== null);
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
    if (HIDDEN_EVENTS.has(event.event)) return;
    const tone = event.event === "died" ? endTone(event) : TONES[event.event] ?? "";
    const detail = event.stacks ?? event.traceback;
    const line = [
      el("time", {}, format.moment(event.time)),
      el("span", { class: `glyph ${tone}`, "aria-hidden": "true" }, GLYPHS[tone]),
      el("b", {}, end(event) ?? event.event),
      el("span", { class: "said" }, describe(event)),
    ];
    const item = el("li", {}, ...line);
    if (detail) item.append(el("details", {}, el("summary", {}, event.stacks ? "Stacks" : "Traceback"), el("pre", { tabindex: 0 }, detail)));
    this.#list.prepend(item);
    while (this.#list.childElementCount > MAX_EVENTS) this.#list.lastElementChild.remove();
    this.#empty.hidden = true;
  }

  /** Remove all events: the stream will send them again. */
  clear() {
    this.#list.replaceChildren();
    this.#empty.hidden = false;
  }
}
