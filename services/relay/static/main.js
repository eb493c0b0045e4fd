/** Wires the page: one store, one stream of data into it, one painter, and the view that the address names. */

import { forgetColours } from "./canvas.js";
import { Data } from "./data.js";
import { make, setClass, write } from "./dom.js";
import { timeOf } from "./format.js";
import { Painter } from "./paint.js";
import { applyTheme, forgetToken, keepToken, switchTheme, takeToken, token, wanted } from "./session.js";
import { Store } from "./store.js";
import { AlertsView } from "./views/alerts.js";
import { HealthView } from "./views/health.js";
import { MarketView } from "./views/market.js";
import { SymbolView } from "./views/symbol.js";

const $ = (id) => document.getElementById(id);

class App {
  store = new Store();
  #painter = new Painter(() => this.#paint());
  #view = null;
  #banner = "";

  constructor() {
    this.data = new Data(this.store, token(), () => this.changed(), (reason) => this.#askForToken(reason));
    document.addEventListener("click", (event) => this.#follow(event));
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("popstate", () => this.#route());
    addEventListener("hashchange", () => {
      takeToken();
      location.reload();
    });
    addEventListener("resize", () => this.changed());
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.#recolour());
    $("theme").addEventListener("click", () => this.#switchTheme());
    $("help").addEventListener("click", () => $("keys").showModal());
    $("search").addEventListener("input", (event) => this.#search(event.target.value));
    setInterval(() => this.changed(), 1_000); // ages pass without news
    this.#route();
    this.data.start();
    for (const [feed, symbol] of wanted()) this.data.add(feed, symbol);
  }

  changed() {
    this.#painter.request();
  }

  addressOf(row) {
    return `/page/symbol/${encodeURIComponent(row.feed)}/${encodeURIComponent(row.symbol)}`;
  }

  go(address) {
    if (address !== location.pathname) history.pushState(null, "", address);
    this.#route();
  }

  #route() {
    const [, , name = "market", feed, symbol] = location.pathname.split("/");
    this.#view?.close();
    if (name === "symbol") this.#view = new SymbolView(this, decodeURIComponent(feed), decodeURIComponent(symbol));
    else this.#view = new ({ alerts: AlertsView, health: HealthView }[name] ?? MarketView)(this);
    const current = name === "symbol" || !name ? "market" : name;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${this.#view.title} · tickbus`;
    $("view").replaceChildren(this.#view.element);
    scrollTo(0, 0);
    this.changed();
  }

  #follow(event) {
    const link = event.target.closest("a[data-view]");
    if (link === null || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    this.go(link.getAttribute("href"));
  }

  #search(text) {
    if (text && this.#view instanceof SymbolView) this.go("/");
    this.#view.search(text);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const typing = event.target.closest("input, select, textarea") !== null;
    if (event.target === $("search") && event.key === "Escape") {
      $("search").value = "";
      this.#search("");
      $("search").blur();
    } else if (event.target === $("search") && ["ArrowDown", "ArrowUp", "Enter"].includes(event.key)) {
      if (this.#view.key(event)) event.preventDefault();
    } else if (!typing) {
      const act = {
        "/": () => $("search").focus(), "?": () => $("keys").showModal(), t: () => this.#switchTheme(),
        m: () => this.go("/"), a: () => this.go("/page/alerts"), h: () => this.go("/page/health"),
      }[event.key];
      const onButton = event.key === "Enter" && event.target.closest("button, nav a, footer a") !== null;
      if (act) act();
      else if (onButton || !this.#view.key(event)) return;
      event.preventDefault();
    }
  }

  #switchTheme() {
    switchTheme();
    this.#recolour();
  }

  #recolour() {
    forgetColours();
    this.changed();
  }

  #askForToken(reason) {
    const had = token() !== undefined;
    forgetToken();
    const input = make("input", { type: "password", autocomplete: "off", "aria-label": "Token", required: true });
    const form = make(
      "form",
      { class: "panel card", onsubmit: (event) => {
        event.preventDefault();
        keepToken(input.value.trim());
        location.reload();
      } },
      make("h1", {}, "A token is needed"),
      make("p", { class: "dim" }, "This relay answers only who has one. It is kept in this tab and sent with each connection, never in an address."),
      input, make("button", {}, "Connect"), make("span", { class: "error", role: "alert" }, had ? reason : ""),
    );
    this.#view?.close();
    this.#view = { title: "Token", element: form, paint() {}, key: () => false, search() {}, close() {} };
    $("view").replaceChildren(form);
    input.focus();
    this.store.link = { state: "no token", since: Date.now(), reason };
    this.changed();
  }

  #paint() {
    const { store } = this;
    this.#view.paint();
    const { link } = store;
    write($("link"), link.state === "open" ? "connected" : link.state === "lost" ? `connection lost at ${timeOf(link.since)}, trying again` : link.state);
    const latency = store.latency();
    write($("latency"), latency === null ? "" : `event to screen ${Math.round(latency[0])} / ${Math.round(latency[1])} ms`);
    const { recent } = this.#painter;
    const span = recent.at(-1) - recent[0];
    write($("paints"), span > 1_000 ? `${(((recent.length - 1) / span) * 1_000).toFixed(1)} paints/s` : "");
    const open = store.episodes.size;
    write($("alert-count"), String(open));
    $("alert-count").hidden = open === 0;
    this.#paintFeeds();
    this.#paintBanner();
  }

  #paintFeeds() {
    const feeds = this.store.health?.feeds ?? [];
    const place = $("feeds");
    while (place.children.length > feeds.length) place.lastElementChild.remove();
    feeds.forEach(({ name, state }, at) => {
      const chip = place.children[at] ?? place.appendChild(make("span", {}, make("span", { class: "dot" }), make("span")));
      setClass(chip.firstChild, `dot ${state}`);
      write(chip.lastChild, `${name} ${state}`);
    });
  }

  #paintBanner() {
    const { store } = this;
    const lines = [];
    if (store.link.state === "lost") lines.push(`The relay does not answer since ${timeOf(store.link.since)}: what is shown is as of then.`);
    if (store.health?.time === null) lines.push(`The bus cannot be read: ${store.health.reason}`);
    for (const feed of store.health?.feeds ?? []) {
      if (!store.isDown(feed.name)) continue;
      const what = feed.state === "gone" ? "has no gateway" : "is down: its gateway is not connected to the vendor";
      const since = feed.since === null ? "" : ` since ${timeOf(feed.since)}`;
      const tick = feed.last_tick_age === null ? "it never had a tick" : `its last tick came at ${timeOf(store.health.time - feed.last_tick_age * 1000)}`;
      lines.push(`Feed ${feed.name} ${what}${since}; ${tick}.`);
    }
    const text = lines.join(" ");
    if (text === this.#banner) return;
    this.#banner = text;
    write($("banner"), text);
    $("banner").hidden = !text;
  }
}

takeToken();
applyTheme();
new App();
