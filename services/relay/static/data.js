/** What comes from the relay, by its JavaScript client, into the store. Nothing is polled. */

import { connect } from "./tickbus.js";

const RATE = 4;
const AGAIN_MS = 500;

const pause = (ms) => new Promise((go) => setTimeout(go, ms));

export class Data {
  #store;
  #changed;
  #unauthorized;
  #wants = new Map();
  #bus;

  /** changed: told that there is something to draw. unauthorized: told why a token is needed. */
  constructor(store, token, changed, unauthorized) {
    this.#store = store;
    this.#changed = changed;
    this.#unauthorized = unauthorized;
    this.#bus = connect(location.origin, { token });
  }

  get bus() {
    return this.#bus;
  }

  start() {
    const store = this.#store;
    for (const kind of ["trade", "quote"]) {
      this.follow(kind, { policy: "conflate", rate: RATE }, (element) => store.take(kind, element, true), {
        onOpen: () => this.#load(kind),
        onState: kind === "trade" ? (event) => this.#show(event) : undefined,
      });
    }
    this.follow("signal", { from: "last:20", policy: "drop" }, (signal) => store.takeSignal(signal));
    this.#watch();
  }

  /**
   * Read until the function that this returns is called. A read that was lost begins anew, with what is there
   * then: a page shows the present, and is not to be flooded with what it missed.
   */
  follow(kind, options, take, { onOpen, onState, onRefused } = {}) {
    let read = null;
    let stopped = false;
    const run = async () => {
      while (!stopped) {
        read = this.#bus.read(kind, {
          ...options,
          onState: (event) => {
            onState?.(event);
            if (event.state === "open") onOpen?.();
            if (event.state === "resuming") read.close();
          },
        });
        try {
          for await (const element of read) {
            take(element);
            this.#changed();
          }
        } catch (error) {
          if (!stopped && !this.#fail(error)) {
            if (options.from !== undefined && options.from !== "now" && error.code === undefined) {
              options = { ...options, from: "now" }; // a token without history
              continue;
            }
            this.#store.refused.set(kind, error.message);
            onRefused?.(error);
            this.#changed();
            return;
          }
          return;
        }
        if (!stopped) await pause(AGAIN_MS * (0.5 + Math.random()));
      }
    };
    run();
    return () => {
      stopped = true;
      read?.close();
    };
  }

  /** Ask that the gateway of a feed subscribes to a symbol, as long as this page is open. */
  add(feed, symbol) {
    const row = this.#store.row(feed, symbol);
    if (this.#wants.has(row.key)) return;
    row.want = { state: "asked", reason: "" };
    const want = this.#bus.want([symbol], { kind: ["trade", "quote"], feed });
    this.#wants.set(row.key, want);
    this.#changed();
    const listen = async () => {
      try {
        for await (const { stream, state, reason } of want.states) {
          if (stream.startsWith("trade:") || state === "refused") row.want = { state, reason };
          this.#changed();
        }
      } catch (error) {
        row.want = { state: "refused", reason: error.message };
        this.#wants.delete(row.key);
        this.#changed();
      }
    };
    listen();
  }

  /** Want it no more. A symbol that never ticked leaves the table. */
  remove(row) {
    this.#wants.get(row.key)?.close();
    this.#wants.delete(row.key);
    row.want = null;
    if (row.last === null) {
      this.#store.rows.delete(row.key);
      this.#store.version += 1;
    }
    this.#changed();
  }

  /** Run a request; null if it fails, with the reason in `refused` under a name. */
  async ask(name, request) {
    try {
      const answer = await request(this.#bus);
      this.#store.refused.delete(name);
      return answer;
    } catch (error) {
      if (!this.#fail(error)) this.#store.refused.set(name, error.message);
      return null;
    } finally {
      this.#changed();
    }
  }

  async #load(kind) {
    this.#store.refused.delete(kind);
    const answer = await this.ask(`snapshot of ${kind}s`, (bus) => bus.snapshot(kind));
    for (const element of answer?.data ?? []) this.#store.take(kind, element, false);
    if (kind === "trade" && answer !== null) {
      const streams = await this.ask("symbols", (bus) => bus.symbols({ kind: "trade" }));
      for (const { feed, symbol } of streams ?? []) this.#store.row(feed, symbol); // also those that never ticked
      this.#store.loaded = true;
    }
    this.#changed();
  }

  #show({ state, reason }) {
    const link = this.#store.link;
    if (state === "open") {
      this.#store.link = { state: "open", since: Date.now(), reason: "" };
      for (const row of this.#store.rows.values()) row.forgetPositions(); // Redis may be another one since
    } else if (state !== "closed" && link.state === "open") {
      this.#store.link = { state: "lost", since: Date.now(), reason: reason ?? "" };
    } else if (reason && link.state !== "open") {
      link.reason = reason;
    }
    this.#changed();
  }

  async #watch() {
    try {
      for await (const health of this.#bus.watch()) {
        this.#store.takeHealth(health);
        this.#changed();
      }
    } catch (error) {
      if (!this.#fail(error)) this.#store.refused.set("health", error.message);
    }
  }

  /** Return whether an error is one of the token, which is told. */
  #fail(error) {
    const denied = error.code === 4401 || error.code === 4403 || error.status === 401;
    if (denied) {
      this.#bus.close();
      this.#unauthorized(error.message);
    }
    return denied;
  }
}
