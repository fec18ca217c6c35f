// The table of workers: a row for each process, found by its pid. Cells change in place; a row is made once.

import { el, setAttribute, setOrder, setText } from "./dom.js";
import * as format from "./format.js";

const MIN_SORT_INTERVAL_MS = 3000; // rows that jump can't be read
const STATES = { __proto__: null, booting: "◔", ready: "●", stuck: "▲", draining: "◑" };

const overdue = (worker) => worker.state === "stuck";
const quantile = (worker, which) => worker.recent?.[which] ?? worker.latency?.[which];

/** The columns. `value` is the key for sorting, `text` the text that is shown, `tone` a class for values that need attention. */
const COLUMNS = [
  { key: "slot", label: "Slot", value: (w) => w.slot, text: (w) => String(w.slot), head: true, words: true },
  { key: "pid", label: "PID", value: (w) => w.pid, text: (w) => String(w.pid) },
  { key: "generation", label: "Gen", title: "Generation", value: (w) => w.generation, text: (w) => String(w.generation) },
  {
    key: "state",
    label: "State",
    words: true,
    value: (w) => w.state,
    text: (w) => `${STATES[w.state] ?? "○"} ${w.state}`,
    tone: (w) => (w.state === "ready" ? "good" : w.state === "stuck" ? "bad" : "warn"),
  },
  { key: "age", label: "Age", value: (w) => w.uptime, text: (w) => format.duration(w.uptime) },
  { key: "rate", label: "Req/s", title: "Requests per second", value: (w) => w.rate, text: (w) => format.rate(w.rate) },
  { key: "in_flight", label: "In flight", title: "Requests in flight", value: (w) => w.in_flight, text: (w) => format.count(w.in_flight) },
  { key: "connections", label: "Conns", title: "Connections held now", value: (w) => w.connections, text: (w) => format.count(w.connections) },
  { key: "moved_in", label: "In", title: "Connections moved in from the keeper", value: (w) => w.moved_in, text: (w) => format.count(w.moved_in) },
  { key: "moved_out", label: "Out", title: "Connections moved out to the keeper", value: (w) => w.moved_out, text: (w) => format.count(w.moved_out) },
  { key: "mode", label: "Mode", words: true, title: "How it accepts connections: batch: all that wait; one_by_one; handoff: to the keeper after each response; none: it drains", value: (w) => w.mode, text: (w) => w.mode ?? format.NONE },
  { key: "longest_step", label: "Step", title: "The longest step: the time for which a handler held the loop", value: (w) => w.longest_step, text: (w) => format.latency(w.longest_step) },
  { key: "p50", label: "p50", title: "Latency: half of the requests took at most this", value: (w) => quantile(w, "p50"), text: (w) => format.latency(quantile(w, "p50")) },
  { key: "p99", label: "p99", title: "Latency: 99 of 100 requests took at most this", value: (w) => quantile(w, "p99"), text: (w) => format.latency(quantile(w, "p99")) },
  {
    key: "errors",
    label: "Errors",
    title: "Requests that failed in the app",
    value: (w) => w.errors,
    text: (w) => (w.error_rate > 0 ? `▲ ${format.count(w.errors)}` : format.count(w.errors)),
    tone: (w) => (w.error_rate > 0 ? "bad" : ""),
  },
  { key: "cpu", label: "CPU", title: "Share of a core", value: (w) => w.cpu_share, text: (w) => format.percent(w.cpu_share), share: (w) => w.cpu_share },
  { key: "memory", label: "Memory", value: (w) => w.memory, text: (w) => format.bytes(w.memory) },
  {
    key: "heartbeat",
    label: "Heartbeat",
    title: "Time since the last heartbeat",
    value: (w) => w.heartbeat_age,
    text: (w) => (overdue(w) ? `▲ ${format.seconds(w.heartbeat_age)}` : format.seconds(w.heartbeat_age)),
    tone: (w) => (overdue(w) ? "bad" : ""),
  },
];

class Row {
  #cells;

  constructor(worker, actions) {
    this.pid = worker.pid;
    this.worker = worker;
    this.actions = el("td", { class: "row-actions" }, ...actions(this));
    this.#cells = COLUMNS.map((column) => new Cell(column));
    this.element = el("tr", { "data-pid": worker.pid, "data-slot": worker.slot }, ...this.#cells.map((each) => each.element), this.actions);
  }

  update(worker) {
    this.worker = worker;
    for (const cell of this.#cells) cell.update(worker);
    setAttribute(this.element, "data-state", worker.state);
  }
}

class Cell {
  #column;
  #text = document.createTextNode("");
  #shown = null;
  #tone = "";
  #bar = null;
  #width = -1;

  constructor(column) {
    this.#column = column;
    const kind = column.words ? "words" : "number";
    this.element = el(column.head ? "th" : "td", { class: kind, "data-column": column.key, scope: column.head ? "row" : null }, this.#text);
    if (column.share) this.element.append((this.#bar = el("span", { class: "bar", "aria-hidden": "true" })));
  }

  update(worker) {
    const { text, tone, share } = this.#column;
    const shown = text(worker);
    if (shown !== this.#shown) this.#text.data = this.#shown = shown;
    const toned = tone?.(worker) ?? "";
    if (toned !== this.#tone) {
      if (this.#tone) this.element.classList.remove(this.#tone);
      if (toned) this.element.classList.add(toned);
      this.#tone = toned;
    }
    if (share) {
      const width = Math.round(Math.min(1, Math.max(0, share(worker) || 0)) * 100);
      if (width !== this.#width) this.#bar.style.transform = `scaleX(${(this.#width = width) / 100})`;
    }
  }
}

export class Workers {
  #body;
  #rows = new Map();
  #headers = new Map();
  #by = COLUMNS[0];
  #down = false;
  #ordered = 0;
  #actions;

  /** `actions(row)` are the buttons at the end of each row. */
  constructor(table, actions) {
    this.#actions = actions;
    const heads = COLUMNS.map((column) => this.#header(column));
    table.append(el("thead", {}, el("tr", {}, ...heads, el("td", { class: "row-actions" }, el("span", { class: "unseen" }, "Actions")))));
    this.#body = el("tbody");
    table.append(this.#body);
  }

  #header(column) {
    const button = el("button", { type: "button", title: column.title ?? null }, column.label);
    const cell = el("th", { scope: "col", class: column.words ? "words" : "number", "data-column": column.key }, button);
    button.addEventListener("click", () => {
      this.#down = this.#by === column ? !this.#down : !column.words && column.key !== "pid";
      this.#by = column;
      this.#mark();
      this.#sort();
    });
    this.#headers.set(column, cell);
    if (column === this.#by) setAttribute(cell, "aria-sort", "ascending");
    return cell;
  }

  #mark() {
    for (const [column, cell] of this.#headers) {
      setAttribute(cell, "aria-sort", column === this.#by ? (this.#down ? "descending" : "ascending") : null);
    }
  }

  update(workers) {
    const alive = new Set();
    let changed = false;
    for (const worker of workers) {
      alive.add(worker.pid);
      let row = this.#rows.get(worker.pid);
      if (row === undefined) {
        row = new Row(worker, this.#actions);
        this.#rows.set(worker.pid, row);
        changed = true;
      }
      row.update(worker);
    }
    for (const pid of this.#rows.keys()) {
      if (!alive.has(pid)) {
        this.#rows.delete(pid);
        changed = true;
      }
    }
    // A row under the mouse, or with the focus, stays in its place: the user may be about to click.
    const busy = this.#body.matches(":hover, :focus-within");
    if (changed || (!busy && performance.now() - this.#ordered > MIN_SORT_INTERVAL_MS)) this.#sort();
  }

  #sort() {
    this.#ordered = performance.now();
    const { value } = this.#by;
    const sign = this.#down ? -1 : 1;
    const rows = [...this.#rows.values()].sort(({ worker: a }, { worker: b }) => {
      const [x, y] = [value(a) ?? -Infinity, value(b) ?? -Infinity];
      return (x < y ? -sign : x > y ? sign : 0) || a.slot - b.slot || a.generation - b.generation || a.pid - b.pid;
    });
    setOrder(this.#body, rows.map((each) => each.element));
  }
}
