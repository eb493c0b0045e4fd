/** How the bus is: feeds, gaps on a timeline, how far services are behind, latency, subscriptions, relays. */

import { begin, palette } from "../canvas.js";
import { fill, make, tableHead, write } from "../dom.js";
import { bytes, count, counts, duration, minuteOf, timeOf } from "../format.js";

const SPAN_MS = 15 * 60_000;
const GAPS = 30;

function panel(title, head, kind = "") {
  const body = make("tbody");
  const note = make("p", { class: "notice", role: "status" });
  const table = make("table", { "aria-label": title }, tableHead(head), body);
  return { body, note, table, element: make("div", { class: `panel ${kind}` }, make("h2", {}, title), make("div", { class: "scroll" }, table), note) };
}

function show({ body, note, table }, rows, nothing) {
  fill(body, rows);
  table.hidden = rows.length === 0;
  note.hidden = rows.length > 0;
  write(note, nothing);
}

export class HealthView {
  title = "Health";
  #app;
  #feeds = panel("Feeds", [["Feed"], ["State", "left"], ["Newest tick"], ["Streams"], ["Silent"], ["Gaps"], ["Missing"], ["Subscriptions", "left"]], "wide");
  #services = panel("Services: how far each is behind", [["Service"], ["Replicas"], ["Entries"], ["Oldest"], ["Lost"], ["Room", "", "Until an entry that was not read is trimmed"]]);
  #relays = panel("Relays", [["Relay"], ["Clients"], ["Streams"], ["In flight"], ["Subscriptions", "left"]]);
  #gaps = panel("Newest gaps", [["From"], ["For"], ["Stream", "left"], ["Kind", "left"], ["Missing"], ["Source", "left"]], "wide");
  #subscriptions = panel("Subscriptions at the vendor", [["Stream"], ["State", "left"], ["Since"], ["Reason", "left"]], "wide");
  #latency = make("p");
  #faults = make("p", { class: "error" });
  #canvas = make("canvas", { role: "img", "aria-label": "Gaps of the last 15 minutes" });
  #rows = [];
  #asked = null;

  constructor(app) {
    this.#app = app;
    const refresh = make("button", { type: "button", onclick: () => this.#ask() }, "Look again");
    this.#subscriptions.element.firstChild.append(" ", refresh);
    this.element = make(
      "section", {},
      make("div", { class: "head" }, make("h1", {}, "Health")),
      this.#faults,
      make(
        "div", { class: "grid" }, this.#feeds.element,
        make("div", { class: "panel wide timeline" }, make("h2", {}, "Gaps of the last 15 minutes, as far as this page has seen them"), this.#canvas,
          make("div", { class: "legend" }, make("span", {}, make("span", { class: "swatch" }), "gap"), make("span", {}, make("span", { class: "swatch open" }), "open hole"))),
        this.#services.element,
        make("div", { class: "panel" }, make("h2", {}, "From event to screen"), this.#latency),
        this.#relays.element, this.#gaps.element, this.#subscriptions.element,
      ),
    );
  }

  search() {}

  key() {
    return false;
  }

  close() {}

  paint() {
    const { store } = this.#app;
    const health = store.health;
    const unknown = health === null ? (store.refused.get("health") ?? "Not known yet.") : health.reason || "There is none.";
    show(this.#feeds, (health?.feeds ?? []).map((feed) => [
      feed.name,
      [`${feed.state}${feed.since === null ? "" : ` since ${timeOf(feed.since)}`}${feed.standby ? ", one stands by" : ""}`, `left ${feed.state}`],
      feed.last_tick_age === null ? "—" : `${duration(feed.last_tick_age * 1000)} ago`,
      count(feed.streams), [count(feed.silent), feed.silent ? "warn" : ""], counts(feed.gaps) || "0",
      [count(feed.missing), feed.missing ? "warn" : ""], [counts(feed.subscriptions), "left dim"],
    ]), unknown);
    show(this.#services, (health?.services ?? []).map((service) => [
      service.name, [`${service.replicas}${service.free ? `, ${service.free} shards free` : ""}`, service.replicas ? "" : "down"],
      count(service.ticks), [duration(service.seconds * 1000), service.seconds > 10 ? "warn" : ""],
      [count(service.lost), service.lost ? "down" : ""], service.headroom === null ? "—" : duration(service.headroom * 1000),
    ]), unknown);
    show(this.#relays, (health?.relays ?? []).map((relay, at) => [
      String(at + 1), count(relay.clients), count(relay.streams), bytes(relay.in_flight), [counts(relay.subscriptions), "left dim"],
    ]), unknown);
    write(this.#faults, health?.faults.join("\n") ?? "");
    this.#faults.hidden = !health?.faults.length;

    const latency = store.latency();
    const ahead = store.clockAhead;
    write(this.#latency, latency === null
      ? "No trade came in the last minute."
      : `Median ${Math.round(latency[0])} ms, 99th percentile ${Math.round(latency[1])} ms in the last minute: from the vendor's time of a trade to this page, which asks four times a second.` +
        (ahead !== null && Math.abs(ahead) > 500 ? ` This browser's clock differs from the bus's by ${duration(Math.abs(ahead))}: the figures are off by as much.` : ""));

    const newest = [];
    for (let at = 0; at < store.gaps.length && newest.length < GAPS; at += 1) {
      const gap = store.gaps.newest(at);
      newest.push([
        timeOf(gap.from), duration(gap.to - gap.from), [`${gap.feed} ${gap.symbol} ${gap.stream}s`, "left"],
        [gap.repaired ? `repaired (${gap.kind})` : gap.kind, `left ${gap.repaired ? "up" : "warn"}`], gap.count === null ? "unknown" : count(gap.count), [gap.source, "left dim"],
      ]);
    }
    show(this.#gaps, newest, "None since this page was opened.");
    this.#drawTimeline(store.now());
    const feeds = (health?.feeds ?? []).map((feed) => feed.name).join(" ");
    if (feeds && feeds !== this.#asked) {
      this.#asked = feeds;
      this.#ask();
    }
    show(this.#subscriptions, this.#rows, this.#app.store.refused.get("subscriptions") ?? "None is known.");
  }

  async #ask() {
    const rows = [];
    for (const { name } of this.#app.store.health?.feeds ?? []) {
      const found = await this.#app.data.ask("subscriptions", (bus) => bus.subscriptions(name));
      for (const { stream, state, since, reason, fixed } of found ?? []) {
        rows.push([stream, [`${state}${fixed ? ", fixed" : ""}`, `left ${state === "refused" ? "down" : state === "active" ? "" : "warn"}`], timeOf(since), [reason, "words"]]);
      }
    }
    this.#rows = rows.slice(0, 500);
    this.#app.changed();
  }

  #drawTimeline(now) {
    const drawing = begin(this.#canvas);
    if (drawing === null) return;
    const [context, width, height] = drawing;
    const colour = palette();
    const { store } = this.#app;
    const names = [...new Set([...(store.health?.feeds ?? []).map((feed) => feed.name), ...[...store.gaps].map((gap) => gap.feed)])].sort();
    const left = 90;
    const x = (ms) => left + (1 - (now - ms) / SPAN_MS) * (width - left - 8);
    context.strokeStyle = colour.line;
    context.fillStyle = colour.dim;
    context.textAlign = "center";
    for (let ms = Math.ceil((now - SPAN_MS) / 180_000) * 180_000; ms <= now; ms += 180_000) {
      context.fillText(minuteOf(ms), x(ms), height - 8);
      context.beginPath();
      context.moveTo(x(ms), 0);
      context.lineTo(x(ms), height - 20);
      context.stroke();
    }
    context.textAlign = "left";
    const tall = Math.min(34, (height - 24) / Math.max(1, names.length));
    names.forEach((name, at) => {
      const middle = at * tall + tall / 2;
      context.fillStyle = colour.text;
      context.fillText(name.slice(0, 12), 4, middle);
      context.fillStyle = colour.raised;
      context.fillRect(left, middle - tall * 0.3, width - left - 8, tall * 0.6);
      for (const gap of store.gaps) {
        if (gap.feed !== name || gap.to < now - SPAN_MS) continue;
        context.fillStyle = gap.repaired ? colour.up : colour.warn;
        const from = Math.max(left, x(gap.from));
        context.fillRect(from, middle - tall * 0.3, Math.max(3, x(gap.to) - from), tall * 0.6);
      }
      const feed = store.feed(name);
      if (feed !== null && store.isDown(name) && feed.last_tick_age !== null) {
        context.fillStyle = colour.down;
        const from = Math.max(left, x(now - feed.last_tick_age * 1000));
        context.fillRect(from, middle - tall * 0.3, x(now) - from, tall * 0.6);
      }
    });
  }
}
