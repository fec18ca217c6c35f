// Figures as people read them. "–" stands for an unknown value.

export const NONE = "–";

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A whole number with a comma between thousands. */
export const count = (value) => (known(value) ? whole.format(value) : NONE);

/** A count with the word for it: `counted(1, "worker is", "workers are")`. */
export const counted = (value, one, many) => `${count(value)} ${value === 1 ? one : many}`;

/** A rate per second. */
export function rate(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  if (value < 0.1) return "< 0.1";
  return value < 10 ? value.toFixed(1) : whole.format(value);
}

/** Bytes, in units of 1024. */
export function bytes(value) {
  if (!known(value)) return NONE;
  if (value < 1024) return `${Math.round(value)} B`;
  let unit = -1;
  for (; value >= 1024 && unit < 3; unit++) value /= 1024;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${["KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** A short time in seconds, such as a latency. */
export function latency(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0 ms";
  if (value < 0.01) return `${(value * 1000).toFixed(2)} ms`;
  if (value < 0.1) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 1) return `${(value * 1000).toFixed(0)} ms`;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} s`;
}

/** A long time in seconds, such as an age, in its two largest units. */
export function duration(value) {
  if (!known(value)) return NONE;
  const seconds = Math.max(0, Math.floor(value));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${pad(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${pad(Math.floor((seconds % 3600) / 60))} m`;
  return `${Math.floor(seconds / 86400)} d ${pad(Math.floor((seconds % 86400) / 3600))} h`;
}

/** Seconds, with one decimal below ten. */
export const seconds = (value) => (known(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} s` : NONE);

/** A share, such as 0.5 of a core, in percent. */
export const percent = (value) => (known(value) ? `${Math.round(value * 100)} %` : NONE);

/** A number of cores. */
export const cores = (value) => (known(value) ? value.toFixed(2) : NONE);

/** The time of day in the viewer's zone. `time` is in seconds since the epoch. */
export const clock = (time) => (known(time) ? clockFormat.format(time * 1000) : NONE);

/** The time of day, with the day unless it is today. */
export function moment(time) {
  if (!known(time)) return NONE;
  const today = new Date().toDateString() === new Date(time * 1000).toDateString();
  return today ? clock(time) : `${dayFormat.format(time * 1000)}, ${clock(time)}`;
}

const pad = (value) => String(value).padStart(2, "0");
