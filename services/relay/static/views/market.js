/** The table of all symbols. */

import { sparkline } from "../canvas.js";
import { make, setClass, tableHead, write } from "../dom.js";
import { count, difference, duration, percent } from "../format.js";
import { keepWanted, wanted } from "../session.js";
import { STALE_MS } from "../store.js";

const COLUMNS = [
  ["Symbol"], ["Last"], ["Change", "", "Since this page was opened"], ["Bid", "bid"], ["Ask", "ask"], ["Spread", "spread"],
  ["Trades/s", "rate"], ["Age", "", "Since the newest tick was received"], ["2 min", "sparkline"], [""],
];

export class MarketView {
  title = "Market";
  #app;
  #body = make("tbody");
  #notice = make("p", { class: "notice", role: "status" });
  #table;
  #lines = new Map();
  #version = -1;
  #order = [];
  #selected = null;
  #filter = "";
  #feed = make("select", { "aria-label": "Feed" });
  #symbol = make("input", { "aria-label": "Symbol to add", placeholder: "ETH-USDT", size: "12", autocomplete: "off", spellcheck: "false" });
  #form;
  #error = make("span", { class: "error", role: "status" });

  constructor(app) {
    this.#app = app;
    this.#table = make("table", { "aria-label": "Market" }, tableHead(COLUMNS), this.#body);
    this.#form = make(
      "form",
      { class: "row", onsubmit: (event) => this.#add(event) },
      this.#error, this.#symbol, this.#feed, make("button", {}, "Add symbol"),
    );
    this.element = make(
      "section",
      { class: "market" },
      make("div", { class: "head" }, make("h1", {}, "Market"), make("span", { class: "grow" }), this.#form),
      make("div", { class: "panel scroll" }, this.#table, this.#notice),
    );
    this.search(document.getElementById("search").value);
  }

  search(text) {
    this.#filter = text.trim().toUpperCase();
    this.#version = -1;
    this.#app.changed();
  }

  /** Return whether it was of use. */
  key(event) {
    const at = this.#order.findIndex((row) => row.key === this.#selected);
    const last = this.#order.length - 1;
    const to = {
      ArrowDown: Math.min(last, at + 1), ArrowUp: Math.max(0, at - 1), Home: 0, End: last,
      PageDown: Math.min(last, at + 15), PageUp: Math.max(0, at - 15),
    }[event.key];
    if (to !== undefined && last >= 0) {
      this.#select(this.#order[to]);
      return true;
    }
    if (event.key === "Enter" && (at >= 0 || (this.#filter && last >= 0))) {
      this.#open(this.#order[Math.max(0, at)]);
      return true;
    }
    return false;
  }

  paint() {
    const { store } = this.#app;
    if (store.version !== this.#version) this.#arrange();
    const now = store.now();
    const turn = Math.floor(now / 250) % 4;
    this.#order.forEach((row, at) => {
      const line = this.#lines.get(row.key);
      this.#write(row, line, now);
      // each line changes once a second: a quarter of them at a time
      if (at % 4 === turn || !line.drawn) {
        line.drawn = row.spark.length > 1;
        sparkline(line.canvas, [...row.spark]);
      }
    });
    this.#table.hidden = this.#order.length === 0;
    this.#notice.hidden = this.#order.length > 0;
    write(this.#notice, this.#nothing());
    this.#writeFeeds();
  }

  close() {}

  #nothing() {
    const { store } = this.#app;
    if (store.refused.has("trade")) return `Trades cannot be read: ${store.refused.get("trade")}`;
    if (!store.loaded) return "Connecting to the relay …";
    if (this.#filter && store.rows.size) return `No symbol matches ${this.#filter}.`;
    return "No data yet: no gateway has written to this bus. Start one, or add a symbol.";
  }

  #arrange() {
    const { store } = this.#app;
    this.#version = store.version;
    this.#order = [...store.rows.values()]
      .filter((row) => row.symbol.includes(this.#filter))
      .sort((a, b) => (a.symbol === b.symbol ? (a.feed < b.feed ? -1 : 1) : a.symbol < b.symbol ? -1 : 1));
    for (const key of this.#lines.keys()) if (!store.rows.has(key)) this.#lines.delete(key);
    this.#body.replaceChildren(...this.#order.map((row) => this.#line(row).element));
  }

  #line(row) {
    let line = this.#lines.get(row.key);
    if (line === undefined) {
      const feed = make("small", {}, row.feed);
      const cells = {
        symbol: make("td", { class: "symbol" }, make("a", { href: this.#app.addressOf(row) }, row.symbol), feed),
        last: make("td", { class: "last" }), change: make("td"), bid: make("td", { class: "bid" }), ask: make("td", { class: "ask" }),
        spread: make("td", { class: "spread dim" }), rate: make("td", { class: "rate" }), age: make("td", { class: "age" }),
      };
      const canvas = make("canvas", { class: "spark", "aria-hidden": "true" });
      const remove = make("button", { type: "button", "aria-label": `Remove ${row.symbol}`, onclick: (event) => this.#remove(event, row) }, "×");
      const tag = make("span", { class: "tag" });
      const element = make(
        "tr",
        { "data-key": row.key, onclick: (event) => this.#click(event, row) },
        ...Object.values(cells), make("td", { class: "sparkline" }, canvas), make("td", {}, tag, remove),
      );
      line = { ...cells, canvas, tag, remove, element, drawn: false };
      this.#lines.set(row.key, line);
    }
    return line;
  }

  #write(row, line, now) {
    const { store } = this.#app;
    const age = row.received ? now - row.received : null;
    const down = store.isDown(row.feed);
    const stale = age !== null && age > STALE_MS;
    write(line.last, row.last ?? "—");
    setClass(line.last, `last ${row.move > 0 ? "up" : row.move < 0 ? "down" : ""}`);
    const change = percent(Number(row.last), Number(row.first));
    write(line.change, change);
    setClass(line.change, change.startsWith("+") ? "up" : change.startsWith("−") ? "down" : "dim");
    write(line.bid, row.bid ?? "");
    write(line.ask, row.ask ?? "");
    write(line.spread, row.bid && row.ask ? difference(row.ask, row.bid) : "");
    const rate = row.rate(Date.now());
    write(line.rate, rate ? (rate < 10 ? rate.toFixed(1) : count(rate)) : "0");
    write(line.age, age === null ? "—" : duration(age));
    const [text, kind] = this.#state(row, down, stale);
    write(line.tag, text);
    setClass(line.tag, `tag ${kind}`);
    if (line.tag.hidden === Boolean(text)) line.tag.hidden = !text;
    if (line.remove.hidden === (row.want !== null)) line.remove.hidden = row.want === null;
    setClass(line.element, down || stale ? "stale" : "");
    const selected = String(row.key === this.#selected);
    if (line.element.getAttribute("aria-selected") !== selected) line.element.setAttribute("aria-selected", selected);
  }

  #state(row, down, stale) {
    if (row.want !== null && row.want.state !== "active") return [`${row.want.state} ${row.want.reason}`.trim(), "warn"];
    if (down) return ["feed down", "bad"];
    if (row.last === null) return [row.bid === null ? "no data yet" : "no trade yet", ""];
    if (stale) return ["stale", "warn"];
    return row.gaps ? [`${count(row.gaps)} gap${row.gaps > 1 ? "s" : ""}`, "warn"] : ["", ""];
  }

  #writeFeeds() {
    const names = this.#app.store.health?.feeds.map((feed) => feed.name) ?? [];
    if (names.join(" ") !== [...this.#feed.options].map((option) => option.value).join(" ")) {
      this.#feed.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    }
    this.#form.hidden = names.length === 0;
  }

  #select(row) {
    this.#selected = row.key;
    const { element } = this.#lines.get(row.key);
    element.scrollIntoView({ block: "nearest" });
    element.querySelector("a").focus({ preventScroll: true });
    this.#app.changed();
  }

  #click(event, row) {
    if (event.target.closest("button") || event.metaKey || event.ctrlKey) return;
    event.preventDefault();
    this.#open(row);
  }

  #open(row) {
    this.#app.go(this.#app.addressOf(row));
  }

  #add(event) {
    event.preventDefault();
    const symbol = this.#symbol.value.trim().toUpperCase();
    const feed = this.#feed.value;
    if (!/^[A-Z0-9._-]+$/.test(symbol)) {
      write(this.#error, "A symbol is letters, digits, . _ -, e.g. ETH-USDT");
      return;
    }
    write(this.#error, "");
    this.#symbol.value = "";
    keepWanted([...wanted().filter(([name, known]) => name !== feed || known !== symbol), [feed, symbol]]);
    this.#app.data.add(feed, symbol);
  }

  #remove(event, row) {
    event.stopPropagation();
    keepWanted(wanted().filter(([feed, symbol]) => feed !== row.feed || symbol !== row.symbol));
    this.#app.data.remove(row);
  }
}
