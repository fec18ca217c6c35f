// What an operator must not overlook, across the whole page: for as long as it is so, and for a minute that it is over.

import { announce, byId, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const RELIEF = 60000; // ms

/** What is wrong, by the state of the master that says so. */
const WRONG = {
  __proto__: null,
  degraded: ({ ready, wanted }) => `Degraded: workers crash faster than restart_limit allows, so restarts back off. ${ready} of ${wanted} workers serve.`,
  stuck: () => "The master is stuck: workers serve on, but nobody replaces one that dies.",
};

export class Alarm {
  #box = byId("alarm");
  #state = null; // that is wrong, while there's one
  #over = null; // when the cluster said that it has recovered
  #relief = 0;

  /** Whether something is wrong. */
  get sounds() {
    return this.#state !== null;
  }

  update(facts) {
    const state = facts.master?.state;
    const wrong = WRONG[state]?.(facts);
    if (wrong !== undefined) {
      const anew = state !== this.#state;
      if (anew) this.#over = null;
      this.#say("bad", "▲", wrong, anew);
    } else if (this.sounds && state === "serving") {
      this.#say("good", "●", `Recovered at ${format.clock(this.#over ?? facts.time)}: ${facts.ready} of ${facts.wanted} workers serve.`, true);
      this.#relief = setTimeout(() => this.hide(), RELIEF);
    } else if (this.sounds) this.hide(); // it leaves
    this.#state = wrong === undefined ? null : state;
  }

  /** The cluster knows better than we when that was: the page may have been away. */
  event({ event, time }) {
    if (event === "recovered") this.#over = time;
  }

  /** What was last heard is old. */
  hide() {
    this.#box.hidden = true;
  }

  #say(tone, glyph, text, anew) {
    clearTimeout(this.#relief);
    setAttribute(this.#box, "data-tone", tone);
    setText(this.#box.firstElementChild, glyph);
    setText(byId("alarm-text"), text);
    this.#box.hidden = false;
    if (anew) announce(text);
  }
}
