/** Candles of one symbol: those of the bus, and the one that is being made, from trades. */

import { toMs } from "./format.js";

const UNITS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const MOST = 600;

/** The length of a time bar in ms; null for bars of another kind. */
export function lengthOf(spec) {
  const match = /^time:(\d+)([smhd])$/.exec(spec);
  return match === null ? null : Number(match[1]) * UNITS[match[2]];
}

export class Candles {
  #byStart = new Map();
  #sorted = null;

  constructor(spec) {
    this.spec = spec;
    this.length = lengthOf(spec);
  }

  /** Take a bar of the bus: a later revision replaces an earlier one, and any replaces our own. */
  takeBar(bar) {
    const start = toMs(bar.start);
    const known = this.#byStart.get(start);
    if (known?.bar && known.revision > bar.revision) return;
    this.#put({
      bar: true, revision: bar.revision, start, end: toMs(bar.end), open: bar.open, high: bar.high, low: bar.low, close: bar.close,
      volume: Number(bar.volume), trades: bar.trades, quality: bar.quality,
    });
  }

  /** Take a trade into the candle of its time, unless the bus has that one already. */
  takeTrade(trade) {
    if (this.length === null || trade.flags.some((flag) => flag === "late" || flag === "cancelled" || flag === "off_book")) return;
    const time = toMs(trade.ts_event);
    const start = Math.floor(time / this.length) * this.length;
    const known = this.#byStart.get(start);
    if (known?.bar) return;
    if (known === undefined) {
      this.#put({
        bar: false, revision: -1, start, end: start + this.length, open: trade.price, high: trade.price, low: trade.price,
        close: trade.price, volume: Number(trade.size), trades: 1, quality: [],
      });
      return;
    }
    const price = Number(trade.price);
    if (price > Number(known.high)) known.high = trade.price;
    if (price < Number(known.low)) known.low = trade.price;
    known.close = trade.price;
    known.volume += Number(trade.size);
    known.trades += 1;
  }

  /** Oldest first. */
  list() {
    this.#sorted ??= [...this.#byStart.values()].sort((a, b) => a.start - b.start);
    return this.#sorted;
  }

  #put(candle) {
    this.#byStart.set(candle.start, candle);
    this.#sorted = null;
    if (this.#byStart.size > MOST) this.#byStart.delete(this.list()[0].start);
    this.#sorted = null;
  }
}

/** Volume by price of some trades, in `bins` steps: [{ low, high, buy, sell, other }], lowest first. */
export function volumeProfile(trades, bins) {
  let low = Infinity;
  let high = -Infinity;
  for (const trade of trades) {
    const price = Number(trade.price);
    low = Math.min(low, price);
    high = Math.max(high, price);
  }
  if (low > high) return [];
  const step = (high - low) / bins || 1;
  const profile = Array.from({ length: high > low ? bins : 1 }, (_, at) => ({
    low: low + at * step, high: low + (at + 1) * step, buy: 0, sell: 0, unknown: 0,
  }));
  for (const trade of trades) {
    const at = Math.min(profile.length - 1, Math.floor((Number(trade.price) - low) / step));
    profile[at][trade.side] += Number(trade.size);
  }
  return profile;
}
