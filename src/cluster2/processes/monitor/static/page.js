// The monitor's page. It gets a report each second from the stream, and passes it to the parts that show it.

import { Actions } from "./actions.js";
import { Alarm } from "./alarm.js";
import { Charts } from "./charts.js";
import { announce, byId, el, setAttribute, setText } from "./dom.js";
import { describe, Events } from "./events.js";
import * as format from "./format.js";
import { Components, Dependencies, Logs, Stacks, Tabs } from "./panels.js";
import { ask, sendable, session, Stream } from "./stream.js";
import { Workers } from "./workers.js";

const POINTS = 600; // rows of the history
/** Events that a screen reader says. */
const ANNOUNCED = new Set(["died", "listening", "reload-failed", "enabled", "disabled", "shutdown"]);

const stacks = new Stacks();
const actions = new Actions();
const alarm = new Alarm();
const workers = new Workers(byId("workers"), rowActions);
const charts = new Charts(byId("charts"), byId("pointed"));
const events = new Events(byId("event-list"), byId("events-empty"));
const panels = { components: new Components(), logs: new Logs(), dependencies: new Dependencies() };
new Tabs(byId("tabs"), (name, shown) => (shown ? panels[name]?.open() : panels[name]?.close()));

let report = null;
let leaving = false;

function rowActions(row) {
  const named = (text, act) => {
    const button = el("button", { type: "button", class: "quiet", "aria-label": `${text} of worker ${row.worker.slot}, pid ${row.pid}` }, text);
    button.addEventListener("click", () => act(row.worker));
    return button;
  };
  const recycle = named("Recycle", (worker) => actions.recycle(worker));
  recycle.classList.add("steers");
  return [named("Stacks", (worker) => stacks.show(worker)), recycle];
}

// ------------------------------------------------------------------------------------------------------- at a glance

const STATES = {
  __proto__: null,
  booting: ["warn", "◔", "Starting"],
  serving: ["good", "●", "Serving"],
  degraded: ["bad", "▲", "Degraded"],
  leaving: ["warn", "◑", "Leaving"],
  draining: ["warn", "◑", "Shutting down"],
  stopping: ["warn", "◑", "Stopping"],
  stuck: ["bad", "✕", "Master stuck"],
};

const GLANCE = {
  workers: (f) => [`${f.ready} / ${f.wanted}`, "ready / wanted", f.ready < f.wanted ? "warn" : ""],
  traffic: (f) => (f.leaving ? ["◑ leaving", "", "warn"] : f.traffic === "enabled" ? ["enabled", "", ""] : ["✕ disabled", "", "bad"]),
  generation: (f) => [format.count(f.generation), "", ""],
  uptime: (f) => [format.duration(f.master?.uptime ?? (f.master?.started ? f.time - f.master.started : null)), "", ""],
  requests: (f) => [format.rate(f.rates?.requests), f.rates?.errors > 0 ? `▲ ${format.rate(f.rates.errors)} errors/s` : `${format.count(f.in_flight)} in flight`, f.rates?.errors > 0 ? "bad" : ""],
  latency: (f) => [format.latency(f.recent?.p50 ?? f.latency?.p50), `p99 ${format.latency(f.recent?.p99 ?? f.latency?.p99)}`, ""],
  connections: (f) => [format.count(f.connections?.held), waiting(f.connections), ""],
  cpu: (f) => [format.cores(f.rates?.cpu), `of ${format.count(f.host?.cpus)} cores`, ""],
  load: (f) => [(f.host?.load ?? []).slice(0, 1).map((each) => each.toFixed(2)).join() || format.NONE, (f.host?.load ?? []).slice(1).map((each) => each.toFixed(2)).join("  "), ""],
  memory: (f) => [format.bytes(f.memory?.now), f.memory?.start ? `${format.bytes(f.memory.start)} at start` : "", ""],
};

function waiting({ resting, waiting } = {}) {
  return `${format.count(resting)} at the keeper` + (waiting > 0 ? `, ${format.count(waiting)} waiting` : "");
}

function glance(now) {
  for (const [name, figure] of Object.entries(GLANCE)) {
    const box = byId(`glance-${name}`);
    const [value, aside, tone] = figure(now);
    setText(box.querySelector("b"), value);
    setText(box.querySelector("small"), aside);
    setAttribute(box, "data-tone", tone || null);
  }
  const [tone, glyph, word] = STATES[now.master?.state] ?? ["", "○", now.master?.state ?? "No master"];
  const state = byId("state");
  setText(state, `${glyph} ${word}`);
  setAttribute(state, "data-tone", tone);
  setText(byId("title"), now.title ?? "cluster2");
  setText(byId("place"), [now.host?.name, ...(now.addresses ?? [])].filter(Boolean).join(" · "));
  setText(byId("version"), now.master?.version ? `cluster2 ${now.master.version}` : "cluster2");
  document.title = `${alarm.isOn ? "▲ " : ""}${now.ready}/${now.wanted} ${now.title ?? "cluster2"}`;
  processes(now);
}

/** Show the processes beside the workers, in a line. */
function processes({ master, keeper, monitor }) {
  const parts = [];
  if (master?.pid) parts.push(`master ${master.pid}${master.memory ? `, ${format.bytes(master.memory)}` : ""}`);
  for (const [name, each] of Object.entries({ keeper, monitor })) {
    if (!each?.pid) continue;
    const restarts = each.restarts ? `, ${format.counted(each.restarts, "restart", "restarts")}` : "";
    parts.push(`${name} ${each.pid}${each.memory ? `, ${format.bytes(each.memory)}` : ""}${restarts}`);
  }
  setText(byId("processes"), parts.join("  ·  "));
}

function show(now) {
  if (report !== null && report.wanted !== now.wanted) {
    charts.mark({ event: "scaled", time: now.time, reason: `${report.wanted} → ${now.wanted}` });
  }
  const first = report === null;
  if (report?.master?.started !== now.master?.started) leaving = false; // another cluster has taken the place of one that ended
  report = now;
  if (first) begin(now.master?.uptime ?? Infinity);
  leaving ||= Boolean(now.leaving);
  alarm.update(now);
  glance(now);
  workers.update(now.workers ?? []);
  actions.update(now);
  setAttribute(document.body, "data-actions", now.actions ? "" : null);
  byId("tab-logs").hidden = now.logs === false;
  byId("main").hidden = false;
  byId("signin").hidden = true;
}

// ------------------------------------------------------------------------------------------------------ the stream

const stream = new Stream({
  open(anew) {
    if (anew) events.clear();
    if (report !== null) load(charts.seconds); // the first report decides how much of it is worth showing
  },
  report(now) {
    if (document.body.dataset.link !== "live") linked("live", "● Live");
    byId("banner").hidden = true;
    show(now);
  },
  sample: (row) => charts.add(row),
  event(event, first) {
    events.add(event);
    if (!first) return;
    charts.mark(event);
    actions.event(event);
    alarm.event(event);
    if (event.event === "shutdown") leaving = true;
    if (ANNOUNCED.has(event.event) && report !== null && event.time > report.time - 5) announce(describe(event));
  },
  leaving: () => leaving,
  back: () => linked("connecting", "Connecting …"),
  lost(reason, pause) {
    linked("lost", "✕ Lost");
    alarm.hide();
    const since = report === null ? "" : ` The figures are from ${format.clock(report.time)}.`;
    const text = leaving ? "The cluster has shut down, and the monitor with it." : `Connection lost: ${reason}.`;
    setText(byId("banner-text"), `${text}${since} Trying again ${pause < 1 ? "now" : `every ${Math.round(pause)} s`}.`);
    if (byId("banner").hidden) announce(text);
    byId("banner").hidden = false;
  },
  signedOut() {
    linked("out", "○ Signed out");
    byId("signin-error").hidden = session.token === null;
    setText(byId("signin-error"), session.token === null ? "" : "That token isn't valid.");
    session.keep(null);
    byId("main").hidden = true;
    byId("actions").hidden = true;
    byId("banner").hidden = true;
    alarm.hide();
    byId("signin").hidden = false;
    byId("signin-token").focus();
  },
});

function linked(state, text) {
  document.body.dataset.link = state;
  for (const button of byId("actions").querySelectorAll("button")) button.disabled = state !== "live";
  setText(byId("link"), text);
}

/** Load the history for the first time. A young cluster gets a short range, in which its few minutes aren't a sliver. */
function begin(uptime) {
  const usual = uptime <= 300 ? 300 : 900;
  byId("ranges").querySelector(`input[value='${usual}']`).checked = true;
  load(usual);
}

let turns = 0;
async function load(seconds) {
  const turn = ++turns;
  try {
    const history = await (await ask(`history?seconds=${seconds}&points=${POINTS}`)).json();
    if (turn === turns) charts.load(history, seconds); // else another range was chosen meanwhile
  } catch {
    // The stream reports that the monitor is gone. The charts keep what they have.
  }
}

byId("ranges").addEventListener("change", (changed) => load(Number(changed.target.value)));
byId("banner-now").addEventListener("click", () => stream.wake());
byId("signin-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const token = byId("signin-token").value.trim();
  byId("signin-token").value = "";
  if (!sendable(token)) {
    setText(byId("signin-error"), "A token has printable characters and no spaces.");
    byId("signin-error").hidden = false;
    return;
  }
  session.keep(token);
  stream.wake();
});
stream.run();
