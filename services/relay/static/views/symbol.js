/** One symbol: candles, tape, volume by price, its signals. */

import { Candles, lengthOf, volumeProfile } from "../candles.js";
import { CanvasChart, drawProfile } from "../chart.js";
import { fill, make, setClass, tableHead, write } from "../dom.js";
import { compact, count, difference, duration, percent, preciseTimeOf, timeOf, toMs } from "../format.js";
import { Ring } from "../ring.js";
import { STALE_MS } from "../store.js";

const TAPE = 500;
const ROWS = 50;
const BINS = 20;
const HISTORY_BARS = 300;

export class SymbolView {
  #app;
  #feed;
  #symbol;
  #stop = [];
  #stopBars = null;
  #tape = new Ring(TAPE);
  #dropped = 0;
  #candles = new Candles("time:1m");
  #specs = [];
  #generation = 0;
  #chart;
  #drawn = 0;
  #parts;

  constructor(app, feed, symbol) {
    this.#app = app;
    this.#feed = feed;
    this.#symbol = symbol;
    this.title = symbol;
    const canvas = make("canvas", { role: "img", "aria-label": `Candles of ${symbol}` });
    this.#chart = new CanvasChart(canvas, () => app.changed());
    const parts = (this.#parts = {
      price: make("span", { class: "price" }), change: make("span"), tag: make("span", { class: "tag" }), facts: make("div", { class: "facts" }),
      specs: make("div", { class: "segments", role: "group", "aria-label": "Bars" }), canvas, legend: make("span", { class: "dim" }),
      notice: make("p", { class: "notice", role: "status" }), tape: make("tbody"), dropped: make("span", { class: "warn" }),
      profile: make("canvas", { role: "img", "aria-label": `Volume by price of ${symbol}` }), profileNote: make("small"),
      signals: make("tbody"), noSignals: make("p", { class: "notice" }, "No signal yet."), facts_: {},
    });
    for (const name of ["Bid", "Ask", "Spread", "Trades/s", "Age", "Gaps"]) {
      parts.facts_[name] = make("b");
      parts.facts.append(make("span", {}, `${name} `, parts.facts_[name]));
    }
    const zoom = (sign, factor, label) =>
      make("button", { type: "button", "aria-label": label, onclick: () => (this.#chart.zoom(factor), app.changed()) }, sign);
    this.element = make(
      "section",
      {},
      make("div", { class: "head" }, make("h1", {}, symbol, make("small", {}, feed)), parts.price, parts.change, parts.tag),
      make("div", { class: "head" }, parts.facts, make("span", { class: "grow" }), parts.specs, zoom("−", 1.3, "Show more candles"), zoom("+", 1 / 1.3, "Show fewer candles")),
      make(
        "div",
        { class: "symbol-view" },
        make(
          "div",
          { class: "panel chart" }, make("h2", {}, parts.legend), canvas, parts.notice,
          make("div", { class: "legend" },
            make("span", {}, make("span", { class: "swatch" }), "gap: data are missing"),
            make("span", {}, make("span", { class: "swatch open" }), "open hole: the feed is down")),
        ),
        make("div", { class: "panel" }, make("h2", {}, "Tape ", parts.dropped),
          make("div", { class: "tape", tabindex: "0", "aria-label": "Newest trades" },
            make("table", {}, tableHead([["Time"], ["Price"], ["Size"], ["Side"]]), parts.tape))),
        make("div", { class: "panel" }, make("h2", {}, "Signals"),
          make("div", { class: "scroll" }, make("table", {}, parts.signals)), parts.noSignals),
        make("div", { class: "panel profile" }, make("h2", {}, "Volume by price ", parts.profileNote), parts.profile),
      ),
    );
    this.#stop.push(
      app.data.follow(
        "trade",
        { symbols: [symbol], feeds: [feed], policy: "drop", from: "last:500", onDropped: (number) => (this.#dropped += number) },
        (element) => this.#take(element),
      ),
    );
    this.#findSpecs();
  }

  search() {}

  key(event) {
    if (event.key !== "Escape") return false;
    this.#app.go("/");
    return true;
  }

  close() {
    this.#generation += 1;
    this.#stopBars?.();
    for (const stop of this.#stop) stop();
  }

  #take(element) {
    if (element.type === "gap") {
      this.#app.store.takeGap(element);
      return;
    }
    this.#tape.push(element);
    this.#candles.takeTrade(element);
  }

  async #findSpecs() {
    const generation = this.#generation;
    const streams = await this.#app.data.ask("symbols", (bus) =>
      bus.symbols({ kind: "bar", symbols: [this.#symbol], feeds: [this.#feed] }),
    );
    if (generation !== this.#generation) return;
    this.#specs = (streams ?? []).map((stream) => stream.spec).sort((a, b) => (lengthOf(a) ?? Infinity) - (lengthOf(b) ?? Infinity));
    const asked = new URLSearchParams(location.search).get("bars");
    const first = this.#specs.includes(asked) ? asked : this.#specs.includes("time:1m") ? "time:1m" : (this.#specs[0] ?? "time:1m");
    this.#parts.specs.replaceChildren(
      ...this.#specs.map((spec) =>
        make("button", { type: "button", "data-spec": spec, onclick: () => this.#show(spec, true) }, spec.replace(/^time:/, ""))),
    );
    this.#show(first, false);
  }

  async #show(spec, chosen) {
    const generation = (this.#generation += 1);
    if (chosen) history.replaceState(null, "", `${location.pathname}?bars=${encodeURIComponent(spec)}`);
    for (const button of this.#parts.specs.children) button.setAttribute("aria-pressed", String(button.dataset.spec === spec));
    this.#stopBars?.();
    const candles = (this.#candles = new Candles(spec));
    for (const trade of this.#tape) candles.takeTrade(trade);
    if (!this.#specs.includes(spec)) return;
    const selection = { symbols: [this.#symbol], feeds: [this.#feed], specs: [spec] };
    this.#stopBars = this.#app.data.follow("bar", { ...selection, policy: "conflate" }, (bar) => {
      if (bar.type === "bar") candles.takeBar(bar);
    });
    const length = candles.length;
    const from = length === null ? undefined : new Date(this.#app.store.now() - HISTORY_BARS * length);
    const answer = await this.#app.data.ask("bars", (bus) => bus.bars({ symbol: this.#symbol, feed: this.#feed, spec, from }));
    if (generation !== this.#generation) return;
    for (const bar of answer?.data ?? []) candles.takeBar(bar);
    this.#app.changed();
  }

  paint() {
    const { store } = this.#app;
    const parts = this.#parts;
    const row = store.row(this.#feed, this.#symbol);
    const now = store.now();
    const down = store.isDown(this.#feed);
    const age = row.received ? now - row.received : null;
    write(parts.price, row.last ?? "—");
    setClass(parts.price, `price ${row.move > 0 ? "up" : row.move < 0 ? "down" : ""}`);
    const change = percent(Number(row.last), Number(row.first));
    write(parts.change, change);
    setClass(parts.change, change.startsWith("+") ? "up" : change.startsWith("−") ? "down" : "dim");
    const facts = parts.facts_;
    write(facts.Bid, row.bid ?? "—");
    write(facts.Ask, row.ask ?? "—");
    write(facts.Spread, row.bid && row.ask ? difference(row.ask, row.bid) : "—");
    write(facts["Trades/s"], row.rate(Date.now()).toFixed(1));
    write(facts.Age, age === null ? "—" : duration(age));
    write(facts.Gaps, count(row.gaps));
    const state = down ? ["feed down", "bad"] : age === null ? ["no data yet", ""] : age > STALE_MS ? ["stale", "warn"] : ["live", ""];
    write(parts.tag, state[0]);
    setClass(parts.tag, `tag ${state[1]}`);

    const holes = [];
    for (const gap of store.gaps) {
      if (gap.feed === this.#feed && gap.symbol === this.#symbol && gap.stream === "trade" && !gap.repaired) holes.push(gap);
    }
    // there is no Gap before the first tick behind the hole: until then it is shown from the last tick to now
    if (down && row.event) holes.push({ from: row.event, to: now, open: true });
    const candles = this.#candles.list();
    const digits = (candles.at(-1)?.close.split(".")[1] ?? "").length;
    this.#chart.draw(candles, this.#candles.length, holes, now, digits);
    parts.notice.hidden = candles.length > 0;
    parts.canvas.hidden = candles.length === 0;
    write(parts.notice, store.refused.has("bars") ? `Bars cannot be read: ${store.refused.get("bars")}` : "No candle yet: it begins with the next trade.");
    this.#writeLegend(this.#chart.at ?? candles.at(-1), holes);
    this.#writeTape();
    // what takes longer, and changes slowly
    if (Date.now() - this.#drawn > 900) {
      this.#drawn = Date.now();
      drawProfile(parts.profile, volumeProfile([...this.#tape], BINS), digits);
      write(parts.profileNote, `last ${count(this.#tape.length)} trades`);
      this.#writeSignals();
    }
  }

  #writeLegend(candle, holes) {
    const { legend, canvas } = this.#parts;
    if (candle === undefined || candle === null) {
      write(legend, "Candles");
      return;
    }
    const notes = [...candle.quality, ...(candle.bar ? [] : ["being made"]), ...(holes.some((hole) => hole.open) ? ["open hole"] : [])];
    const text = `${timeOf(candle.start)}   O ${candle.open}  H ${candle.high}  L ${candle.low}  C ${candle.close}  V ${compact(candle.volume)}`;
    write(legend, notes.length ? `${text}   ${notes.join(", ").replaceAll("_", " ")}` : text);
    const label = `Candles of ${this.#symbol}: ${this.#candles.list().length}; ${text}; gaps: ${holes.filter((hole) => !hole.open).length}${holes.some((hole) => hole.open) ? ", open hole" : ""}`;
    if (canvas.getAttribute("aria-label") !== label && this.#drawn + 900 < Date.now()) canvas.setAttribute("aria-label", label);
  }

  #writeTape() {
    const rows = [];
    for (let at = 0; at < Math.min(ROWS, this.#tape.length); at += 1) {
      const trade = this.#tape.newest(at);
      const side = { buy: "up", sell: "down" }[trade.side] ?? "dim";
      rows.push([[preciseTimeOf(toMs(trade.ts_event)), "dim"], [trade.price, side], trade.size, [trade.side === "unknown" ? "—" : trade.side, side]]);
    }
    fill(this.#parts.tape, rows);
    write(this.#parts.dropped, this.#dropped ? `${count(this.#dropped)} not shown: this browser is slow` : "");
  }

  #writeSignals() {
    const rows = [];
    for (let at = 0; at < this.#app.store.signals.length && rows.length < 12; at += 1) {
      const signal = this.#app.store.signals.newest(at);
      if (signal.symbol !== this.#symbol || signal.feed !== this.#feed) continue;
      rows.push([[timeOf(toMs(signal.ts_event)), "left dim"], [signal.name, "left"], [signal.state, "left dim"], [`${signal.value} ${signal.unit}`, ""], [signal.message, "words"]]);
    }
    fill(this.#parts.signals, rows);
    this.#parts.noSignals.hidden = rows.length > 0;
  }
}
