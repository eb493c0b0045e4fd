/** Values as people read them. Prices and sizes stay as they stand on the bus; only what is computed is rounded. */

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const minutes = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const days = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** ms of a time in ns, which is a BigInt. */
export const toMs = (ns) => Number(ns / 1_000_000n);
export const timeOf = (ms) => clock.format(ms);
export const preciseTimeOf = (ms) => `${clock.format(ms)}.${String(Math.floor(ms) % 1000).padStart(3, "0")}`;
export const minuteOf = (ms) => minutes.format(ms);
export const dayOf = (ms) => days.format(ms);
export const count = (value) => whole.format(value);
export const compact = (value) => short.format(value);

/** A duration: `0.3 s`, `12 s`, `4 min`, `2 h`. */
export function duration(ms) {
  if (ms < 0) return "0 s";
  if (ms < 9_950) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

export function bytes(value) {
  return value < 1024 ? `${value} B` : value < 1_048_576 ? `${Math.round(value / 1024)} KB` : `${(value / 1_048_576).toFixed(1)} MB`;
}

/** A change in percent, with its sign. */
export function percent(now, then) {
  if (!(then > 0) || !(now > 0)) return "";
  const value = (now / then - 1) * 100;
  const text = Math.abs(value).toFixed(2);
  return `${text === "0.00" ? "" : value > 0 ? "+" : "−"}${text} %`;
}

const places = (text) => text.length - (text.indexOf(".") + 1 || text.length);

/** The exact difference of two decimals, as text: of ask and bid. */
export function difference(a, b) {
  const digits = Math.max(places(a), places(b));
  const scaled = (text) => BigInt(text.replace(".", "") + "0".repeat(digits - places(text)));
  const value = scaled(a) - scaled(b);
  const text = String(value < 0n ? -value : value).padStart(digits + 1, "0");
  const sign = value < 0n ? "−" : "";
  return digits ? `${sign}${text.slice(0, -digits)}.${text.slice(-digits)}` : sign + text;
}

/** "3 active, 1 refused" */
export function counts(record) {
  return Object.entries(record)
    .map(([name, number]) => `${count(number)} ${name}`)
    .join(", ");
}
