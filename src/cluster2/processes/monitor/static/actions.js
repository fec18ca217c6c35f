// Actions that change the cluster. A dialog asks for a token, a number or a confirmation, if the action needs one. A line shows the
// progress of the action until it is done.

import { announce, byId, el, setText } from "./dom.js";
import * as format from "./format.js";
import { ask, messages, Refused, sendable, session, Unauthorized } from "./stream.js";

const SUCCESS_SHOWN_MS = 12000;

/** The dialog, one for all questions. `open` returns the values that were entered, or null. */
class Question {
  #dialog = byId("question");
  #answer = () => {};

  constructor() {
    const form = this.#dialog.querySelector("form");
    form.addEventListener("submit", (submitted) => {
      submitted.preventDefault();
      const token = byId("question-token").value.trim();
      if (!byId("question-token-field").hidden && !sendable(token)) {
        this.#error("A token has printable characters and no spaces.");
        return;
      }
      this.#answer({ token, number: byId("question-number").value });
      this.#dialog.close();
    });
    byId("question-cancel").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#answer(null)); // without effect if there was an answer
  }

  open({ title, text, confirm, danger = false, number = null, token, error = "" }) {
    setText(byId("question-title"), title);
    setText(byId("question-text"), text ?? "");
    byId("question-text").hidden = !text;
    setText(byId("question-confirm"), confirm);
    byId("question-confirm").classList.toggle("danger", danger);
    byId("question-number-field").hidden = number === null;
    byId("question-number").disabled = number === null;
    if (number !== null) byId("question-number").value = number;
    byId("question-token-field").hidden = !token;
    byId("question-token").disabled = !token;
    byId("question-token").value = "";
    this.#error(error);
    this.#dialog.showModal();
    (token ? byId("question-token") : number !== null ? byId("question-number") : byId("question-cancel")).focus();
    return new Promise((resolve) => (this.#answer = resolve));
  }

  #error(text) {
    setText(byId("question-error"), text);
    byId("question-error").hidden = !text;
  }
}

let question = null;

/**
 * Do something that needs the token, after the questions that have to be asked first. Returns null if the dialog was cancelled.
 *
 * `attempt(number)` does it. It is repeated as long as the monitor refuses the token.
 */
export async function withToken(asked, attempt) {
  question ??= new Question();
  let error = "";
  let { number = null } = asked;
  for (;;) {
    const token = asked.needsToken && session.token === null;
    if (token || error || asked.text || number !== null) {
      const answer = await question.open({ ...asked, number, token: token || Boolean(error), error });
      if (answer === null) return null;
      if (number !== null) ({ number } = answer);
      if (answer.token) session.keep(answer.token);
    }
    try {
      const result = await attempt(number);
      if (session.token !== null) session.proved();
      return result;
    } catch (failure) {
      if (!(failure instanceof Unauthorized)) throw failure;
      error = session.token === null ? "This needs the token." : "That token isn't valid.";
      session.keep(null);
    }
  }
}

/** A line that shows the progress of an action. */
class Activity {
  #bar = el("progress", { "aria-label": "Progress" });
  #text = el("span", { class: "what" });
  #time = el("span", { class: "elapsed" });
  #close = el("button", { type: "button", class: "quiet", "aria-label": "Dismiss" }, "✕");
  #began = performance.now();
  #timer;
  running = true;

  constructor(title) {
    this.title = title;
    this.element = el("li", { class: "activity" }, this.#text, this.#bar, this.#time, this.#close);
    this.#close.hidden = true;
    this.#close.addEventListener("click", () => this.element.remove());
    byId("activities").append(this.element);
    setText(this.#text, `${title} …`);
    announce(`${title} …`);
    this.#timer = setInterval(() => setText(this.#time, format.seconds(this.elapsed)), 500);
  }

  get elapsed() {
    return (performance.now() - this.#began) / 1000;
  }

  progress(done, of, what) {
    if (!this.running) return;
    if (of > 0) {
      this.#bar.max = of;
      this.#bar.value = done;
      setText(this.#text, `${this.title}: ${done} of ${of} ${what}`);
    } else if (what) setText(this.#text, `${this.title}: ${what}`);
  }

  succeed(text) {
    this.#end("done", `✓ ${text}`);
    setTimeout(() => this.element.remove(), SUCCESS_SHOWN_MS);
  }

  fail(text) {
    this.#end("failed", `✕ ${this.title}: ${text}`);
  }

  /** Remove the line: the action was not started. */
  withdraw() {
    clearInterval(this.#timer);
    this.element.remove();
  }

  #end(kind, text) {
    if (!this.running) return;
    this.running = false;
    clearInterval(this.#timer);
    this.#bar.remove();
    this.#close.hidden = false;
    this.element.classList.add(kind);
    setText(this.#text, text);
    setText(this.#time, format.seconds(this.elapsed));
    announce(text);
  }
}

/** The progress of an action as reports show it, for when the monitor doesn't send any: [done, of, what]. */
const MEASURES = {
  __proto__: null,
  reload: ({ generation }) => (report) => {
    if (generation === undefined) return null;
    return [report.workers.filter((each) => each.generation === generation && each.state === "ready").length, report.wanted, "workers are new"];
  },
  scale: () => (report) => [report.ready, report.wanted, "workers are ready"],
  recycle: ({ pids }) => (report) => {
    const left = report.workers.filter((each) => pids.has(each.pid)).length;
    return [pids.size - left, pids.size, "workers are replaced"];
  },
};

const DONE = {
  __proto__: null,
  reload: ({ generation }) => `Generation ${generation} serves`,
  scale: ({ workers }) => `${format.counted(workers, "worker is", "workers are")} ready`,
  recycle: ({ replaced }) => (replaced === 1 ? "The worker is replaced" : `${replaced} workers are replaced`),
  enable: () => "Traffic is enabled",
  disable: () => "Traffic is disabled",
  shutdown: () => "The cluster shuts down",
};

export class Actions {
  #report = null;
  #running = new Set(); // activities

  constructor() {
    const verbs = { reload: this.reload, scale: this.scale, recycle: this.recycle, traffic: this.traffic, shutdown: this.shutdown };
    for (const [name, act] of Object.entries(verbs)) byId(`do-${name}`).addEventListener("click", () => act.call(this));
  }

  update(report) {
    this.#report = report;
    byId("actions").hidden = !report.actions;
    setText(byId("do-traffic"), report.traffic === "enabled" ? "Disable traffic…" : "Enable traffic");
    for (const activity of this.#running) activity.measure(report);
  }

  /** Follow a reload by its events, also one that was started elsewhere. */
  event(event) {
    const { event: name, generation } = event;
    const reload = [...this.#running].find((each) => each.verb === "reload" && [undefined, generation].includes(each.about.generation));
    if (name === "reloading") {
      if (reload) reload.about.generation = generation;
      else if (event.time > (this.#report?.time ?? Infinity) - 5) this.#begin("Reload", "reload", { generation, others: true });
    } else if (reload?.about.others && name === "reloaded") this.#end(reload, DONE.reload(event));
    else if (reload?.about.others && name === "reload-failed") this.#end(reload, null, event.reason);
  }

  reload() {
    return this.#act("reload", { title: "Reload", confirm: "Reload" });
  }

  scale() {
    const asked = { title: "Scale", text: "Number of workers that should serve:", confirm: "Scale", number: String(this.#report.wanted) };
    return this.#act("scale", asked, (number) => `?workers=${encodeURIComponent(number)}`);
  }

  /** Recycle one worker, or all in turn. */
  recycle(worker = null) {
    const title = worker ? `Recycle worker ${worker.slot} (pid ${worker.pid})` : "Recycle all";
    const pids = new Set((worker ? [worker] : this.#report.workers).map((each) => each.pid));
    return this.#act("recycle", { title, confirm: "Recycle" }, () => (worker ? `?worker=${worker.pid}` : ""), { pids });
  }

  traffic() {
    if (this.#report.traffic !== "enabled") return this.#act("enable", { title: "Enable traffic", confirm: "Enable traffic" });
    const text = "Health checks will fail, so load balancers stop sending traffic to this server. Its workers go on serving.";
    return this.#act("disable", { title: "Disable traffic", text, confirm: "Disable traffic", danger: true });
  }

  shutdown() {
    const text = "Workers finish the requests in progress, then the cluster ends, and this page with it. The page can't start it again.";
    return this.#act("shutdown", { title: "Shut down", text, confirm: "Shut down", danger: true });
  }

  async #act(verb, asked, query = () => "", about = {}) {
    let activity = null;
    try {
      const result = await withToken({ ...asked, needsToken: true }, async (number) => {
        activity = this.#begin(asked.title, verb, about);
        try {
          return await post(`control/${verb}${query(number)}`, activity);
        } catch (failure) {
          if (failure instanceof Unauthorized) this.#withdraw(activity);
          throw failure;
        }
      });
      if (result !== null) this.#end(activity, DONE[verb](result));
    } catch (failure) {
      const lost = verb === "shutdown" ? null : "the connection broke: check whether it was done";
      const why = failure instanceof Refused ? failure.message : lost;
      this.#end(activity, why === null ? DONE.shutdown() : null, why);
    }
  }

  #begin(title, verb, about) {
    const activity = new Activity(title);
    const measure = MEASURES[verb];
    Object.assign(activity, { verb, about });
    activity.measure = (report) => {
      const far = measure && !activity.counted && measure(about)(report);
      if (far) activity.progress(...far);
    };
    this.#running.add(activity);
    return activity;
  }

  #withdraw(activity) {
    this.#running.delete(activity);
    activity.withdraw();
  }

  #end(activity, success, failure) {
    this.#running.delete(activity);
    if (success === null) activity.fail(failure);
    else activity.succeed(success);
  }
}

/** POST, and show the monitor's progress. Returns the result; throws Unauthorized, Refused or TypeError. */
async function post(path, activity) {
  const answer = await ask(path, { method: "POST", accept: "text/event-stream, application/json" });
  let outcome = null;
  if (answer.headers.get("content-type")?.startsWith("text/event-stream")) {
    for await (const { name, data } of messages(answer)) {
      if (name === "progress") {
        // The monitor's own counts are better than those that are made of reports.
        activity.counted = typeof data.done === "number" && data.of > 0;
        if (activity.counted || data.text) activity.progress(data.done, data.of, data.text ?? data.what);
      } else if (name === "result") outcome = data;
    }
    if (outcome === null) throw new TypeError("no result");
  } else outcome = await answer.json();
  if (!outcome.ok) throw new Refused(answer.status, String(outcome.error));
  return outcome.result;
}
