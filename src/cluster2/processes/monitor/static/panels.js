// The panels whose data is requested when they are opened: components, logs, dependencies, and the stacks of a worker.

import { withToken } from "./actions.js";
import { byId, el, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { ask, Refused, session, Unauthorized } from "./stream.js";

const FIRST_BYTES = 1 << 16; // of a log, shown at first
const MAX_BYTES = 1 << 20; // of one request; if more was added, the end of the log is shown
const MAX_CHARS = 1 << 19; // of a log that stay on the page
const POLL_MS = 1500; // between two requests for new lines

const why = (failure) => (failure instanceof Refused || failure instanceof Unauthorized ? failure.message : "The monitor doesn't respond.");

/** Return true if logs and stacks need the token: they do if one is set, and then there are actions, too. */
const needsToken = () => "actions" in document.body.dataset;

/** Tabs as in the ARIA Authoring Practices: arrow keys, Home and End move, and the panel is shown at once. */
export class Tabs {
  #tabs;
  #opened;

  /** `opened(name, shown)` is called when a panel is shown or hidden. */
  constructor(list, opened) {
    this.#tabs = [...list.querySelectorAll("[role=tab]")];
    this.#opened = opened;
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.select(tab));
    list.addEventListener("keydown", (pressed) => {
      const shown = this.#tabs.filter((each) => !each.hidden);
      const at = shown.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 }[pressed.key];
      if (at < 0 || to === undefined) return;
      pressed.preventDefault();
      const tab = shown[(to + shown.length) % shown.length];
      tab.focus();
      this.select(tab);
    });
  }

  select(tab) {
    for (const each of this.#tabs) {
      const chosen = each === tab;
      const panel = byId(each.getAttribute("aria-controls"));
      setAttribute(each, "aria-selected", String(chosen));
      each.tabIndex = chosen ? 0 : -1;
      if (panel.hidden === chosen) {
        panel.hidden = !chosen;
        this.#opened(each.dataset.name, chosen);
      }
    }
  }
}

export class Components {
  #list = byId("component-names");
  #shown = byId("component-status");

  async open() {
    try {
      const { names } = await (await ask("component-status")).json();
      this.#list.replaceChildren(...names.map((name) => this.#entry(name)));
      setText(byId("components-note"), names.length ? "" : "The app has no components. worker.register_status(name, …) registers one.");
    } catch (failure) {
      setText(byId("components-note"), why(failure));
    }
  }

  close() {}

  #entry(name) {
    const button = el("button", { type: "button", class: "entry" }, name);
    button.addEventListener("click", () => this.#show(name, button));
    return el("li", {}, button);
  }

  async #show(name, button) {
    for (const each of this.#list.querySelectorAll("button")) setAttribute(each, "aria-current", each === button ? "true" : null);
    let found;
    try {
      found = await (await ask(`component-status?component=${encodeURIComponent(name)}`)).json();
    } catch (failure) {
      this.#shown.replaceChildren(el("p", { class: "error" }, why(failure)));
      return;
    }
    const rows = (found.workers ?? []).map(({ pid, value }) => [pid, el("pre", {}, plain(value))]);
    rows.push(...(found.errors ?? []).map(({ pid, error }) => [pid, el("span", { class: "error" }, `▲ ${error}`)]));
    rows.push(...(found.missing ?? []).map((pid) => [pid, el("span", { class: "error" }, "▲ no response in time")]));
    const lines = rows.map(([pid, shown]) => el("tr", {}, el("th", { scope: "row" }, pid), el("td", {}, shown)));
    this.#shown.replaceChildren(
      el("h3", {}, name),
      el("pre", { class: "value" }, plain(found.value)),
      el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "PID"), el("th", { scope: "col" }, "Status"))), el("tbody", {}, ...lines)),
    );
  }
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** A log, read from its end by ranges of bytes. Each begins with the last byte that was read, so a 416 means: truncated. */
export class Logs {
  #names = byId("log-names");
  #text = byId("log-text");
  #note = byId("logs-note");
  #follow = byId("log-follow");
  #name = null;
  #at = 0; // the offset up to which it was read
  #file = null;
  #decoder = null;
  #timer = 0;
  #open = false;
  #turn = 0;

  constructor() {
    this.#follow.addEventListener("change", () => this.#next());
    byId("log-refresh").addEventListener("click", () => this.open(true));
    document.addEventListener("visibilitychange", () => this.#next());
  }

  /** `asking`: a dialog may ask for the token. It would be in the way of a user who only changes tabs. */
  async open(asking = false) {
    this.#open = true;
    if (!asking && needsToken() && session.token === null) {
      setText(this.#note, "Logs need the token: “Refresh list” asks for it.");
      return;
    }
    try {
      const asked = { title: "Logs", confirm: "Show", needsToken: needsToken() };
      const answer = await (asking ? withToken(asked, () => ask("logs")) : ask("logs"));
      if (answer === null) return;
      const { logs } = await answer.json();
      this.#names.replaceChildren(...logs.map((log) => this.#entry(log)));
      setText(this.#note, logs.length ? "" : "There are no log files. They are written with log_to = files, which is the default of cluster2 start.");
      if (this.#name === null && logs.length) await this.#show(logs[0].name);
      else this.#next();
    } catch (failure) {
      setText(this.#note, failure instanceof Refused && failure.status === 404 ? "This cluster writes no log files." : why(failure));
    }
  }

  close() {
    this.#open = false;
    clearTimeout(this.#timer);
  }

  #entry({ name, size, changed }) {
    const button = el("button", { type: "button", class: "entry", "aria-current": name === this.#name ? "true" : null }, name);
    button.addEventListener("click", () => this.#show(name));
    return el("li", {}, button, el("span", { class: "aside" }, `${format.bytes(size)}, ${format.moment(changed)}`));
  }

  async #show(name) {
    this.#name = name;
    this.#at = 0;
    for (const button of this.#names.querySelectorAll("button")) setAttribute(button, "aria-current", button.textContent === name ? "true" : null);
    this.#text.replaceChildren();
    await this.#read();
  }

  /** Show the bytes that were added, or the end of the file if it isn't the same file or too much was added. */
  async #read() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    const first = this.#at === 0;
    const range = first ? `bytes=-${FIRST_BYTES}` : `bytes=${this.#at - 1}-${this.#at + MAX_BYTES}`;
    try {
      const answer = await ask(`logs/${encodeURIComponent(this.#name)}`, { accept: "text/plain", headers: { range } });
      const found = new Uint8Array(await answer.arrayBuffer());
      if (turn !== this.#turn) return;
      const [, start, size] = /^bytes (\d+)-\d+\/(\d+)/.exec(answer.headers.get("content-range")) ?? [0, 0, found.length];
      const file = answer.headers.get("etag")?.split("-")[0]; // its inode: another one after it was rotated
      setText(this.#note, "");
      if (!first && (file !== this.#file || size - this.#at > MAX_BYTES)) this.#again(file !== this.#file ? "new file" : "lines skipped");
      else {
        this.#file = file;
        this.#at = Number(start) + found.length;
        if (first) this.#decoder = new TextDecoder();
        const text = this.#decoder.decode(first ? found : found.subarray(1), { stream: true });
        this.#append(first && start > 0 ? text.slice(text.indexOf("\n") + 1) : text);
      }
    } catch (failure) {
      if (turn !== this.#turn) return;
      if (!(failure instanceof Refused && failure.status === 416)) setText(this.#note, why(failure));
      else if (this.#at > 0) this.#again("truncated"); // else the file is empty
    }
    this.#next();
  }

  #again(how) {
    this.#append(`— ${how} —\n`);
    this.#at = 0;
  }

  #append(text) {
    if (!text) return;
    const end = this.#text.scrollHeight - this.#text.scrollTop - this.#text.clientHeight < 40;
    this.#text.append(text);
    while (this.#text.childNodes.length > 1 && this.#text.textContent.length > MAX_CHARS) this.#text.firstChild.remove();
    if (end) this.#text.scrollTop = this.#text.scrollHeight;
  }

  #next() {
    clearTimeout(this.#timer);
    if (this.#open && this.#follow.checked && this.#name !== null && !document.hidden) {
      this.#timer = setTimeout(() => this.#read(), POLL_MS);
    }
  }
}

export class Dependencies {
  #tree = byId("dependency-tree");
  #found = false;

  async open() {
    if (this.#found) return;
    setText(byId("dependencies-note"), "Loading …");
    try {
      const { distributions, tree } = await (await ask("deps")).json();
      this.#tree.replaceChildren(...tree.map((each) => this.#node(each)));
      setText(byId("dependencies-note"), `${format.count(distributions)} distributions are installed. Those that no other needs come first.`);
      this.#found = true;
    } catch (failure) {
      setText(byId("dependencies-note"), why(failure));
    }
  }

  close() {}

  #node({ name, version, requires }) {
    const label = [name, " ", el("span", { class: "aside" }, requires ? version : `${version}, see above`)];
    if (!requires?.length) return el("li", {}, el("span", { class: "leaf" }, ...label));
    const below = el("ul");
    const details = el("details", {}, el("summary", {}, ...label), below);
    details.addEventListener("toggle", () => {
      if (!below.hasChildNodes()) below.append(...requires.map((each) => this.#node(each)));
    });
    return el("li", {}, details);
  }
}

/** The dialog with the stacks of a worker. */
export class Stacks {
  #dialog = byId("stacks");
  #worker = null;

  constructor() {
    byId("stacks-close").addEventListener("click", () => this.#dialog.close());
    byId("stacks-again").addEventListener("click", () => this.show(this.#worker));
  }

  async show(worker) {
    this.#worker = worker;
    const title = `Stacks of worker ${worker.slot} (pid ${worker.pid})`;
    let text;
    try {
      const answer = await withToken({ title, confirm: "Show", needsToken: needsToken() }, () => ask(`stacks/${worker.pid}`));
      if (answer === null) return;
      const { workers } = await answer.json();
      text = workers.map((each) => each.stacks).join("\n");
    } catch (failure) {
      text = why(failure);
    }
    setText(byId("stacks-title"), title);
    setText(byId("stacks-text"), text);
    if (!this.#dialog.open) this.#dialog.showModal();
  }
}
