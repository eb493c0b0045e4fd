/** What the page knows, all of it bounded: rows of the table, signals, gaps, how the bus is. Nothing here draws. */

import { toMs } from "./format.js";
import { Ring } from "./ring.js";

const SPARK_SECONDS = 120;
const RATE_SECONDS = 10;
export const STALE_MS = 30_000;

/** The counter of a cursor: each stream's is dense. */
const counterOf = (cursor) => BigInt(cursor.slice(cursor.indexOf("-") + 1));

export class Row {
  last = null;
  bid = null;
  ask = null;
  first = null;
  /** 1 up, -1 down, 0 unknown: the newest move. */
  move = 0;
  /** ms, of the newest tick: event and receive time. */
  event = 0;
  received = 0;
  spark = new Ring(SPARK_SECONDS);
  gaps = 0;
  /** What became of the wish for it, if this page made one. */
  want = null;
  #counters = { trade: -1n, quote: -1n };
  #counts = new Array(RATE_SECONDS).fill(0);
  #second = 0;
  #sparkSecond = 0;

  constructor(feed, symbol) {
    this.feed = feed;
    this.symbol = symbol;
    this.key = `${feed} ${symbol}`;
  }

  /** Whether an element is newer than what is shown. */
  isNews(kind, cursor) {
    const counter = counterOf(cursor);
    if (counter <= this.#counters[kind]) return false;
    this.#counters[kind] = counter;
    return true;
  }

  forgetPositions() {
    this.#counters = { trade: -1n, quote: -1n };
  }

  price(text, event, received, trades, now) {
    if (this.last !== null && text !== this.last) this.move = Number(text) > Number(this.last) ? 1 : -1;
    this.last = text;
    this.first ??= text;
    this.tick(event, received);
    this.#turn(now);
    this.#counts[this.#second % RATE_SECONDS] += trades;
    const second = Math.floor(now / 1000);
    if (second !== this.#sparkSecond) {
      this.#sparkSecond = second;
      this.spark.push(Number(text));
    }
  }

  tick(event, received) {
    this.event = Math.max(this.event, event);
    this.received = Math.max(this.received, received);
  }

  /** Trades a second, over the last seconds. */
  rate(now) {
    this.#turn(now);
    return this.#counts.reduce((sum, each) => sum + each, 0) / RATE_SECONDS;
  }

  #turn(now) {
    const second = Math.floor(now / 1000);
    for (let at = Math.max(this.#second + 1, second - RATE_SECONDS + 1); at <= second; at += 1) {
      this.#counts[at % RATE_SECONDS] = 0;
    }
    this.#second = Math.max(this.#second, second);
  }
}

export class Store {
  /** "feed symbol" -> Row. `version` changes when one comes. */
  rows = new Map();
  version = 0;
  signals = new Ring(500);
  gaps = new Ring(500);
  /** "feed symbol name" -> the start of an episode that has not ended. */
  episodes = new Map();
  health = null;
  /** Of this browser's clock less that of the bus, in ms; null: unknown. */
  clockAhead = null;
  link = { state: "connecting", since: Date.now(), reason: "" };
  loaded = false;
  /** Kinds that cannot be read, and why. */
  refused = new Map();
  latencies = new Ring(2_000);
  #latency = { at: 0, value: null };
  #seen = new Ring(2_000);
  #seenSet = new Set();

  row(feed, symbol) {
    const key = `${feed} ${symbol}`;
    let row = this.rows.get(key);
    if (row === undefined) {
      row = new Row(feed, symbol);
      this.rows.set(key, row);
      this.version += 1;
    }
    return row;
  }

  /** Now, in ms: by the clock of the bus where this browser's is off by more than the way to it explains. */
  now() {
    const ahead = this.clockAhead ?? 0;
    return Date.now() - (Math.abs(ahead) > 500 ? ahead : 0);
  }

  feed(name) {
    return this.health?.feeds.find((feed) => feed.name === name) ?? null;
  }

  isDown(name) {
    const feed = this.feed(name);
    return feed !== null && (feed.state === "down" || feed.state === "gone");
  }

  /** Take an element of trades or quotes, live or from a snapshot. */
  take(kind, element, live) {
    if (element.type === "gap") {
      this.takeGap(element);
      return;
    }
    const row = this.row(element.feed, element.symbol);
    if (!row.isNews(kind, element.cursor)) return;
    const now = Date.now();
    if (element.type === "quote") {
      row.bid = element.bid;
      row.ask = element.ask;
      row.tick(toMs(element.ts_event), toMs(element.ts_recv));
      return;
    }
    const text = element.type === "summary" ? element.last : element.price;
    const aside = element.flags?.some((flag) => flag === "late" || flag === "cancelled" || flag === "off_book");
    if (text === null || aside) return;
    const event = toMs(element.ts_event);
    row.price(text, event, toMs(element.ts_recv), live ? (element.count ?? 1) : 0, now);
    if (element.type === "trade" && element.bid !== null && row.bid === null) {
      row.bid = element.bid;
      row.ask = element.ask;
    }
    if (live) this.latencies.push([now, now - event]);
  }

  takeGap(gap) {
    const id = `${gap.stream} ${gap.cursor}`;
    if (this.#seenSet.has(id)) return;
    if (this.#seen.length === 2_000) this.#seenSet.delete(this.#seen.newest(1_999));
    this.#seen.push(id);
    this.#seenSet.add(id);
    const [kind] = gap.stream.split(":", 1);
    const symbol = gap.stream.slice(gap.stream.lastIndexOf(":") + 1);
    const from = toMs(gap.from_ts);
    this.gaps.push({
      stream: kind, feed: gap.feed, symbol, kind: gap.kind, source: gap.source, from, to: Math.max(from, toMs(gap.to_ts)),
      count: gap.count, repaired: gap.repaired,
    });
    if (!gap.repaired && kind === "trade") this.row(gap.feed, symbol).gaps += 1;
  }

  takeSignal(signal) {
    if (signal.type === "gap") {
      this.takeGap(signal);
      return;
    }
    this.signals.push(signal);
    const key = `${signal.feed} ${signal.symbol} ${signal.name}`;
    if (signal.state === "start") {
      this.episodes.delete(key);
      this.episodes.set(key, signal);
      if (this.episodes.size > 500) this.episodes.delete(this.episodes.keys().next().value);
    } else if (signal.state === "end") {
      this.episodes.delete(key);
    }
  }

  takeHealth(health) {
    this.health = health;
    if (health.time === null) return;
    const ahead = Date.now() - health.time;
    // the way takes time: the smallest difference is the nearest to the truth, and clocks drift
    this.clockAhead = this.clockAhead === null ? ahead : Math.min(this.clockAhead + 1, ahead);
  }

  /** The median and the 99th percentile of the last minute, in ms; null: nothing came. */
  latency() {
    const now = Date.now();
    if (now - this.#latency.at > 1_000) this.#latency = { at: now, value: this.#computeLatency(now - 60_000) };
    return this.#latency.value;
  }

  #computeLatency(since) {
    const values = [];
    for (const [at, value] of this.latencies) if (at >= since) values.push(value);
    if (!values.length) return null;
    values.sort((a, b) => a - b);
    return [values[values.length >> 1], values[Math.floor(values.length * 0.99)]];
  }
}
