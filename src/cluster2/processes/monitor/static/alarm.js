// The alarm across the page: it shows while the cluster is degraded or the master is stuck, and for a minute after the end of that.

import { announce, byId, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const RECOVERED_MS = 60000;

/** The text of the alarm, by the master's state. */
const ALARMS = {
  __proto__: null,
  degraded: ({ ready, wanted }) => `Degraded: workers crash faster than restart_limit allows, so restarts back off. ${ready} of ${wanted} workers serve.`,
  stuck: () => "The master is stuck: workers go on serving, but one that ends isn't replaced.",
};

export class Alarm {
  #box = byId("alarm");
  #state = null; // the state of the alarm that is on, or null
  #recoveredAt = null; // the time of the last event `recovered`
  #timer = 0;

  /** True while the alarm is on. */
  get isOn() {
    return this.#state !== null;
  }

  update(report) {
    const state = report.master?.state;
    const text = ALARMS[state]?.(report);
    if (text !== undefined) {
      const isNew = state !== this.#state;
      if (isNew) this.#recoveredAt = null;
      this.#show("bad", "▲", text, isNew);
    } else if (this.isOn && state === "serving") {
      this.#show("good", "●", `Recovered at ${format.clock(this.#recoveredAt ?? report.time)}: ${report.ready} of ${report.wanted} workers serve.`, true);
      this.#timer = setTimeout(() => this.hide(), RECOVERED_MS);
    } else if (this.isOn) this.hide(); // the cluster shuts down
    this.#state = text === undefined ? null : state;
  }

  /** Take the time of recovery from the event: the page may not have been open then. */
  event({ event, time }) {
    if (event === "recovered") this.#recoveredAt = time;
  }

  /** Hide the alarm, since the last report is old or the cluster has recovered. */
  hide() {
    this.#box.hidden = true;
  }

  #show(tone, glyph, text, isNew) {
    clearTimeout(this.#timer);
    setAttribute(this.#box, "data-tone", tone);
    setText(this.#box.firstElementChild, glyph);
    setText(byId("alarm-text"), text);
    this.#box.hidden = false;
    if (isNew) announce(text);
  }
}
