/** Alerts: what the signals service found, the newest first. */

import { fill, make, tableHead, write } from "../dom.js";
import { duration, timeOf, toMs } from "../format.js";

const ROWS = 200;
const WORDS = { start: ["began", "warn"], end: ["ended", "dim"], indicator: ["value", "dim"] };
const ARROWS = { 1: "▲", "-1": "▼", 0: "" };

export class AlertsView {
  title = "Alerts";
  #app;
  #filter = "";
  #all = false;
  #open = make("tbody");
  #rows = make("tbody");
  #noneOpen = make("p", { class: "notice", role: "status" });
  #none = make("p", { class: "notice", role: "status" });

  constructor(app) {
    this.#app = app;
    const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
      this.#all = !this.#all;
      toggle.setAttribute("aria-pressed", String(this.#all));
      app.changed();
    } }, "With indicators");
    this.element = make(
      "section", {},
      make("div", { class: "head" }, make("h1", {}, "Alerts"), make("span", { class: "grow" }), toggle),
      make("div", { class: "panel" }, make("h2", {}, "Open now"), make("div", { class: "scroll" }, make("table", { "aria-label": "Open alerts" },
        tableHead([["Since"], ["Symbol", "left"], ["Rule", "left"], ["Value"], ["Threshold"], ["What", "left"]]), this.#open)), this.#noneOpen),
      make("p"),
      make("div", { class: "panel" }, make("h2", {}, "Newest first"), make("div", { class: "scroll" }, make("table", { "aria-label": "Alerts" },
        tableHead([["Time"], ["", "left"], ["Symbol", "left"], ["Rule", "left"], ["Value"], ["Threshold"], ["Window", "left"], ["What", "left"]]), this.#rows)), this.#none),
    );
    this.search(document.getElementById("search").value);
  }

  search(text) {
    this.#filter = text.trim().toUpperCase();
    this.#app.changed();
  }

  key() {
    return false;
  }

  close() {}

  paint() {
    const { store } = this.#app;
    const now = store.now();
    const open = [...store.episodes.values()].filter((signal) => signal.symbol.includes(this.#filter)).reverse();
    fill(this.#open, open.slice(0, ROWS).map((signal) => [
      [duration(now - toMs(signal.ts_event)), "left dim"], [signal.symbol, "left"], [this.#name(signal), "left"],
      [`${signal.value} ${signal.unit}`, "warn"], signal.threshold, [this.#words(signal), "words"],
    ]));
    this.#open.parentElement.hidden = open.length === 0;
    this.#noneOpen.hidden = open.length > 0;
    write(this.#noneOpen, store.refused.has("signal") ? `Signals cannot be read: ${store.refused.get("signal")}` : "Nothing is out of the ordinary.");
    const rows = [];
    for (let at = 0; at < store.signals.length && rows.length < ROWS; at += 1) {
      const signal = store.signals.newest(at);
      if ((signal.state === "indicator" && !this.#all) || !signal.symbol.includes(this.#filter)) continue;
      const [word, kind] = WORDS[signal.state] ?? [signal.state, "dim"];
      rows.push([
        [timeOf(toMs(signal.ts_event)), "left dim"], [word, `left ${kind}`], [signal.symbol, "left"], [this.#name(signal), "left"],
        `${signal.value} ${signal.unit}`, signal.threshold, [signal.window, "left dim"], [this.#words(signal), "words"],
      ]);
    }
    fill(this.#rows, rows);
    this.#rows.parentElement.hidden = rows.length === 0;
    this.#none.hidden = rows.length > 0;
    write(this.#none, "No alert yet. They come from the signals service.");
  }

  #name(signal) {
    return `${ARROWS[signal.direction] ?? ""} ${signal.name}`.trim();
  }

  #words(signal) {
    return signal.quality.length ? `${signal.message} (${signal.quality.join(", ").replaceAll("_", " ")})` : signal.message;
  }
}
