// The charts, which uPlot draws. They share a time line, which ends now, a cursor, and marks where workers ended and generations
// changed.

import { el, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();
const BINARY = Array.from({ length: 45 }, (_, power) => 2 ** power);

const CHARTS = [
  {
    key: "requests",
    title: "Requests per second",
    text: format.rate,
    lines: [
      { key: "requests", label: "requests", tone: "accent", filled: true },
      { key: "errors", label: "errors", tone: "bad", dashed: true },
    ],
  },
  {
    key: "latency",
    title: "Latency",
    text: format.latency,
    lines: [
      { key: "p50", label: "p50", tone: "accent" },
      { key: "p99", label: "p99", tone: "ink" },
    ],
  },
  {
    key: "connections",
    title: "Connections",
    text: format.count,
    incrs: WHOLE,
    lines: [
      { key: "held", label: "at workers", tone: "accent", filled: true },
      { key: "resting", label: "at the keeper", tone: "ink", dashed: true },
    ],
  },
  { key: "cpu", title: "CPU, cores", text: format.cores, lines: [{ key: "cpu", label: "used", tone: "accent", filled: true }] },
  { key: "memory", title: "Memory", text: format.bytes, incrs: BINARY, lines: [{ key: "memory", label: "used", tone: "accent", filled: true }] },
  {
    key: "work",
    title: "In flight",
    text: format.count,
    incrs: WHOLE,
    lines: [
      { key: "in_flight", label: "requests", tone: "accent", filled: true },
      { key: "ready", label: "workers ready", tone: "ink", dashed: true },
    ],
  },
];

// Ends of workers that aren't marked: the action that caused them has a mark of its own, and many marks would hide others.
const EXPLAINED = new Set(["reload", "scale", "shutdown"]);
const KINDS = { __proto__: null, died: "ended", "reload-failed": "failed", reloading: "began", reloaded: "changed", scaled: "scaled" };
const HEIGHT = 120;
const GAP = 3; // times the usual distance of two points, beyond which the line is interrupted
const MAX_MARKS = 500;
const tones = { accent: "", ink: "", bad: "", line: "", muted: "", warn: "" };
const marks = (name, reason) => name in KINDS && !EXPLAINED.has(reason);
const dpr = () => window.devicePixelRatio || 1;

const WORDS = { __proto__: null, died: "ended", reloading: "reload began", "reload-failed": "reload failed" };

/** Describe a mark under the cursor. */
function describe(mark) {
  const worker = typeof mark.slot === "number" ? `worker ${mark.slot} ` : "";
  const reason = mark.reason ? ` (${mark.reason})` : "";
  return `${format.clock(mark.time)} ${worker}${WORDS[mark.name] ?? mark.name}${reason}`;
}

/** The points of all charts, as columns by name. */
class Series {
  constructor() {
    this.columns = [];
    this.clear();
  }

  clear() {
    this.data = Object.fromEntries(["time", ...CHARTS.flatMap((each) => each.lines.map((line) => line.key))].map((key) => [key, []]));
  }

  get end() {
    return this.data.time.at(-1) ?? Date.now() / 1000;
  }

  add(row, gap) {
    const at = this.columns.indexOf("time");
    const time = row[at];
    const last = this.data.time.at(-1);
    if (typeof time !== "number" || time <= last) return;
    if (time - last > gap) this.#push((key) => (key === "time" ? last + gap / 2 : null));
    this.#push((key) => row[this.columns.indexOf(key)] ?? null);
  }

  #push(value) {
    for (const [key, column] of Object.entries(this.data)) column.push(value(key));
  }

  /** Remove the points that are older than `start`. */
  trim(start) {
    const { time } = this.data;
    let old = 0;
    while (old < time.length && time[old] < start) old++;
    // Only many at a time: each removal moves all points that follow.
    if (old > 60) for (const column of Object.values(this.data)) column.splice(0, old);
  }
}

/** Hours and minutes. The corner stays empty, since the other axis has its zero there. */
function timeLabels(plot, times) {
  return times.map((time) => (plot.valToPos(time, "x") < 20 ? "" : format.clock(time).slice(0, 5)));
}

class Chart {
  #plot;
  #readouts;
  #figure;
  #spec;

  constructor(spec, series, view) {
    this.#spec = spec;
    this.#readouts = spec.lines.map(() => el("span", { class: "value" }, format.NONE));
    const legend = spec.lines.map((line, index) =>
      el("span", { class: "key" }, el("span", { class: `swatch ${line.tone}${line.dashed ? " dashed" : ""}`, "aria-hidden": "true" }), line.label, " ", this.#readouts[index]),
    );
    const box = el("div", { class: "plot", role: "img", "aria-label": spec.title });
    this.#figure = el("figure", { class: "chart", "data-chart": spec.key }, el("figcaption", {}, el("h3", {}, spec.title), el("span", { class: "legend" }, ...legend)), box);
    this.box = box;
    this.element = this.#figure;
    this.#plot = new window.uPlot(this.#options(series, view), this.#points(series), box);
  }

  #points(series) {
    return [series.data.time, ...this.#spec.lines.map((line) => series.data[line.key])];
  }

  #options(series, view) {
    const axis = { stroke: () => tones.muted, font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: () => tones.line, width: 1 } };
    const { text, lines, incrs } = this.#spec;
    return {
      width: 300,
      height: HEIGHT,
      padding: [8, 4, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { setScale: false, x: false, y: false }, points: { size: 6 }, sync: { key: "cluster2", setSeries: false } },
      scales: {
        x: { time: true, range: () => [series.end - view.seconds, series.end] },
        y: { range: (plot, low, high) => [0, high > 0 ? high * 1.1 : 1] },
      },
      axes: [
        { ...axis, size: 20, gap: 2, space: 70, values: timeLabels, incrs: [60, 120, 300, 600, 900, 1800] },
        { ...axis, size: 56, gap: 4, space: 32, values: (plot, splits) => splits.map((each) => text(each)), ...(incrs && { incrs }) },
      ],
      series: [
        {},
        ...lines.map((line) => ({
          stroke: () => tones[line.tone],
          fill: line.filled ? () => tones.fill : undefined,
          width: 1.5,
          dash: line.dashed ? [4, 3] : undefined,
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: { drawAxes: [(plot) => drawMarks(plot, view.marks)], setCursor: [() => this.read(series, view)] },
    };
  }

  /** Draw the points. */
  draw(series) {
    this.#plot.setData(this.#points(series), true);
  }

  repaint() {
    this.#plot.redraw(false, true);
  }

  fit() {
    const width = Math.floor(this.box.clientWidth);
    if (width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }

  /** Show the values under the cursor, or the last ones. */
  read(series, view) {
    const { idx, left } = this.#plot?.cursor ?? {};
    const pointed = typeof idx === "number" && left >= 0;
    this.#spec.lines.forEach((line, index) => {
      const column = series.data[line.key];
      setText(this.#readouts[index], this.#spec.text(pointed ? column[idx] : column.at(-1)));
    });
    view.pointed(pointed ? series.data.time[idx] : null);
  }

  describe(series, view) {
    const parts = this.#spec.lines.map((line) => {
      const column = series.data[line.key];
      const highest = column.reduce((most, each) => (each > most ? each : most), 0);
      return `${line.label} now ${this.#spec.text(column.at(-1))}, at most ${this.#spec.text(highest)}`;
    });
    setAttribute(this.box, "aria-label", `${this.#spec.title}, last ${view.seconds / 60} minutes: ${parts.join("; ")}`);
  }
}

/** Marks differ in shape: a cross for an end, a triangle for a new generation, a square for one that failed, a ring for a scale. */
function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  const size = 3.5 * dpr();
  const top = bbox.top - size;
  const { min, max } = plot.scales.x;
  ctx.save();
  for (const mark of marks) {
    if (!(mark.time >= min && mark.time <= max)) continue;
    const x = Math.round(plot.valToPos(mark.time, "x", true)) + 0.5;
    const kind = KINDS[mark.name];
    ctx.strokeStyle = ctx.fillStyle = kind === "failed" ? tones.bad : kind === "ended" ? tones.warn : tones.accent;
    ctx.lineWidth = dpr();
    ctx.setLineDash(kind === "ended" ? [2 * dpr(), 2 * dpr()] : []);
    ctx.globalAlpha = 0.7;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top + size);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.globalAlpha = 1;
    ctx.lineWidth = 1.5 * dpr();
    ctx.beginPath();
    if (kind === "ended") {
      ctx.moveTo(x - size, top);
      ctx.lineTo(x + size, top + 2 * size);
      ctx.moveTo(x + size, top);
      ctx.lineTo(x - size, top + 2 * size);
      ctx.stroke();
    } else if (kind === "scaled") {
      ctx.arc(x, top + size, 0.9 * size, 0, 2 * Math.PI);
      ctx.stroke();
    } else if (kind === "failed") ctx.fillRect(x - size, top, 2 * size, 2 * size);
    else {
      ctx.moveTo(x - size, top);
      ctx.lineTo(x + size, top);
      ctx.lineTo(x, top + 2 * size);
      ctx.closePath();
      if (kind === "changed") ctx.fill();
      ctx.stroke();
    }
  }
  ctx.restore();
}

export class Charts {
  #series = new Series();
  #charts;
  #view;
  #described = 0;

  /** `pointedAt` is the element for the time and the marks under the cursor. */
  constructor(box, pointedAt) {
    this.#view = { seconds: 900, marks: [], pointed: (time) => setText(pointedAt, this.#pointed(time)) };
    this.#theme();
    this.#charts = CHARTS.map((spec) => new Chart(spec, this.#series, this.#view));
    box.append(...this.#charts.map((each) => each.element));
    new ResizeObserver(() => this.#charts.forEach((each) => each.fit())).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#theme();
      this.#charts.forEach((each) => each.repaint());
    });
  }

  get seconds() {
    return this.#view.seconds;
  }

  #theme() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["accent", "ink", "bad", "warn", "line", "muted", "fill"]) {
      tones[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }

  #pointed(time) {
    if (time === null) return "";
    const near = this.#view.marks
      .filter((mark) => Math.abs(mark.time - time) <= this.#view.seconds / 150)
      .sort((a, b) => Math.abs(a.time - time) - Math.abs(b.time - time))
      .slice(0, 2);
    return [format.clock(time), ...near.map((mark) => describe(mark))].join(" · ");
  }

  /** Show a response of /history for so many seconds. */
  load(history, seconds) {
    this.#view.seconds = seconds;
    this.#described = -Infinity;
    this.#view.marks.length = 0;
    this.#view.marks.push(...history.marks.filter(({ name, reason }) => marks(name, reason)));
    this.#series.clear();
    this.#series.columns = history.columns;
    const rows = history.rows;
    const time = history.columns.indexOf("time");
    const usual = median(rows.slice(1).map((row, index) => row[time] - rows[index][time])) ?? 1;
    for (const row of rows) this.#series.add(row, Math.max(5, GAP * usual));
    this.#draw();
  }

  /** Add a point, whose values are in the order of the history's columns. */
  add(row) {
    if (!this.#series.columns.length) return;
    this.#series.add(row, 5);
    this.#series.trim(this.#series.end - this.#view.seconds);
    this.#draw();
  }

  mark(event) {
    if (!marks(event.event, event.reason) || this.#view.marks.some((each) => each.time === event.time && each.name === event.event)) return;
    this.#view.marks.push({ time: event.time, name: event.event, slot: event.slot, reason: event.reason });
    if (this.#view.marks.length > MAX_MARKS) this.#view.marks.shift();
  }

  #draw() {
    const describe = performance.now() - this.#described > 10000;
    if (describe) this.#described = performance.now();
    for (const chart of this.#charts) {
      chart.draw(this.#series);
      chart.read(this.#series, this.#view);
      if (describe) chart.describe(this.#series, this.#view);
    }
  }
}

function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : undefined;
}
