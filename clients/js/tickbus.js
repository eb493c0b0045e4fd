/**
 * tickbus for JavaScript: market data from a `tickbus relay`, in browsers and in Node.
 *
 *     import { connect } from "tickbus";
 *     const bus = connect("ws://127.0.0.1:9400");
 *     for await (const tick of bus.read("trade", { symbols: ["BTC-USDT"] })) console.log(tick.price);
 *
 * Prices, sizes and ids are text, exactly as they stand on the bus; times are BigInt, ns since the epoch.
 */

/** Most bytes of a request: a relay ends a connection above 16 KB. */
const MAX_REQUEST = 15_000;
const FIRST_DELAY = 250;
const MAX_DELAY = 10_000;
/** A connection that lasted this long, in ms, or that brought data, was a good one: the delays begin anew. */
const GOOD = 10_000;
/** Close codes that connecting again does not change: bad token, right taken away, request too large. */
const FATAL = new Set([4401, 4403, 4413, 1009]);

/** What cannot be carried out: `code` is the close code of a connection, `status` that of an HTTP answer. */
export class TickbusError extends Error {
  constructor(message, { code, status, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "TickbusError";
    this.code = code;
    this.status = status;
  }
}

// Times exceed 2^53. In JSON an unescaped quote never stands inside a text, so `"start":` can only be a key:
// no text, whatever it holds, is taken for a time. Replacing keys is faster than a pattern that steps over all
// texts, and than a reviver, which JSON.parse calls for every value and which knows the source only where new.
const TIMES = ["ts_event", "ts_recv", "start", "end", "from_ts", "to_ts", "episode"];
const TIME = /"(ts_event|ts_recv|start|end|from_ts|to_ts|episode|next)":\s*(-?\d+)(?=\s*[,}])/g;

/** Return the value of a message or answer of a relay, with the times of its `data` as BigInt. */
export function parse(text) {
  const message = JSON.parse(text.replace(TIME, '"$1":"$2"'));
  if (Array.isArray(message?.data)) {
    for (const element of message.data) {
      for (const name of TIMES) {
        if (typeof element[name] === "string") element[name] = BigInt(element[name]);
      }
    }
  }
  return message;
}

/** Return whether cursor `a` stands behind cursor `b`. */
function isAfter(a, b) {
  const [ms, seq] = a.split("-");
  const [otherMs, otherSeq] = b.split("-");
  return ms === otherMs ? isMore(seq, otherSeq) : isMore(ms, otherMs);
}

/** Compare natural numbers that may exceed 2^53. */
function isMore(a, b) {
  return a.length === b.length ? a > b : a.length > b.length;
}

function symbolOf(stream) {
  return stream.slice(stream.lastIndexOf(":") + 1);
}

function isGlob(symbol) {
  return symbol.includes("*");
}

function globMatcher(globs) {
  const patterns = globs.map((glob) =>
    glob.split("*").map((text) => text.replaceAll(".", "\\.")).join(".*"),
  );
  return new RegExp(`^(?:${patterns.join("|")})$`);
}

/** Whether the relay says with this Gap that the history of the stream is another one from here. */
function isReset(element) {
  return element.type === "gap" && element.kind === "reset" && element.source === "relay";
}

/** A tick that arrived late, or a Gap that reports one as repaired. */
function isLate(element) {
  return element.type === "gap" ? element.repaired : (element.flags?.includes("late") ?? false);
}

function addressesOf(url) {
  const { protocol, host, pathname, search, username } = new URL(url);
  if (!["ws:", "wss:", "http:", "https:"].includes(protocol)) {
    throw new TickbusError(`invalid address ${url}: expected e.g. ws://127.0.0.1:9400`);
  }
  if (search || username) {
    throw new TickbusError("invalid address: a token is the option `token`, never a part of the address");
  }
  const secure = protocol === "wss:" || protocol === "https:";
  const rest = `${host}${pathname.replace(/\/+$/, "").replace(/\/v1$/, "")}`;
  return { socket: `${secure ? "wss" : "ws"}://${rest}/v1`, http: `${secure ? "https" : "http"}://${rest}` };
}

function tokenProtocol(token) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(token));
  return `tickbus.token.${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

/** Return where to begin as the relay takes it. */
function beginning(from) {
  if (from instanceof Date) return from.toISOString();
  return typeof from === "bigint" ? String(from) : from;
}

/**
 * Return a bus. Nothing is connected before something is read.
 *
 * urls: address of a relay, or of several, which are tried in turn.
 */
export function connect(urls, options = {}) {
  return new Bus(urls, options);
}

class Bus {
  #addresses;
  #options;
  /** Reads, wants and watches that have not ended. */
  #open = new Set();

  constructor(urls, options) {
    this.#addresses = (Array.isArray(urls) ? urls : [urls]).map(addressesOf);
    if (this.#addresses.length === 0) throw new TickbusError("no address: expected at least one");
    this.#options = options;
  }

  /** Return an async iterable of the messages of some streams. Each read has a connection of its own. */
  read(kind = "trade", options = {}) {
    const { onState } = this.#options;
    const read = new Read(this.#opener(), kind, { onState, ...options }, () => this.#open.delete(read));
    return this.#begin(read);
  }

  /**
   * Ask that the gateway of a feed subscribes to symbols, without reading them, until `close`.
   *
   * kind: `trade`, `quote`, or both in an array. feed: which feed; needed where several gateways run.
   */
  want(symbols, options = {}) {
    const { onState } = this.#options;
    const want = new Want(this.#opener(), symbols, { onState, ...options }, () => this.#open.delete(want));
    return this.#begin(want);
  }

  /** Return an async iterable of how the bus is: feeds, services, relays, about once a second. */
  watch(options = {}) {
    const { onState } = this.#options;
    const watch = new Watch(this.#opener(), { onState, ...options }, () => this.#open.delete(watch));
    return this.#begin(watch);
  }

  #begin(one) {
    this.#open.add(one);
    one._begin();
    return one;
  }

  /** Return a function that opens a socket to the address of a number. */
  #opener() {
    const { token } = this.#options;
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (Socket === undefined) {
      throw new TickbusError(
        "there is no WebSocket here: pass the option WebSocket, or use Node 22, or --experimental-websocket",
      );
    }
    const protocols = token === undefined ? ["tickbus.json"] : ["tickbus.json", tokenProtocol(token)];
    const addresses = this.#addresses.map((address) => address.socket);
    return (number) => {
      const url = addresses[number % addresses.length];
      return { url, socket: new Socket(url, protocols) };
    };
  }

  /** Return the newest message of each stream, and the cursor from which to read on. */
  async snapshot(kind = "trade", { symbols, feeds, specs } = {}) {
    const { data } = await this.#get("/api/snapshot", { kind, symbols, feeds, specs });
    return { data, cursor: Object.fromEntries(data.map(({ stream, cursor }) => [stream, cursor])) };
  }

  /** Return the streams there are. */
  async symbols({ kind, symbols, feeds, specs } = {}) {
    return (await this.#get("/api/symbols", { kind, symbols, feeds, specs })).data;
  }

  /** Return a page of bars by their start; `next` is the `from` of the next page, null at the end. */
  async bars({ symbol, spec, feed, from, to, limit }) {
    const { data, next } = await this.#get("/api/bars", { symbol, spec, feed, from, to, limit });
    return { data, next: next === null ? null : BigInt(next) };
  }

  /** Return a page of a stream, oldest first; `next` is the `after` of the next page, null at the end. */
  async history(stream, { from, after, limit } = {}) {
    return this.#get("/api/history", { stream, from, after, limit });
  }

  /** Return what the gateway of a feed is subscribed to, or is asked for and why it is not. */
  async subscriptions(feed) {
    return (await this.#get("/api/subscriptions", { feed })).subscriptions;
  }

  /** Return how the relay is. */
  async status() {
    return this.#get("/api/status", {});
  }

  /** End all reads, wants and watches. */
  close() {
    for (const one of [...this.#open]) one.close();
  }

  async #get(path, parameters) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      if (value === undefined || value === null || value.length === 0) continue;
      query.set(name, Array.isArray(value) ? value.join(",") : String(beginning(value)));
    }
    const { token } = this.#options;
    const fetch = this.#options.fetch ?? globalThis.fetch;
    const headers = token === undefined ? {} : { Authorization: `Bearer ${token}` };
    let failure;
    for (const { http } of this.#addresses) {
      try {
        const response = await fetch(`${http}${path}?${query}`, { headers, cache: "no-store" });
        const body = await response.text();
        if (response.ok) return parse(body);
        failure = new TickbusError(`${path}: ${reasonOf(body)}`, { status: response.status });
      } catch (error) {
        failure = new TickbusError(`${path}: no answer from ${http}`, { cause: error });
      }
      if (failure.status !== undefined && failure.status !== 503) break;
    }
    throw failure;
  }
}

function reasonOf(body) {
  try {
    return JSON.parse(body).error;
  } catch {
    return body.trim();
  }
}

/** Elements that wait for their reader, and how far the stream has come with each. */
class Queue {
  #entries = [];
  #head = 0;

  get length() {
    return this.#entries.length - this.#head;
  }

  get first() {
    return this.#entries[this.#head];
  }

  push(entry) {
    this.#entries.push(entry);
  }

  shift() {
    const entry = this.#entries[this.#head];
    this.#entries[this.#head++] = undefined;
    if (this.#head > 1024 && this.#head * 2 > this.#entries.length) {
      this.#entries.splice(0, this.#head);
      this.#head = 0;
    }
    return entry;
  }

  clear() {
    this.#entries = [];
    this.#head = 0;
  }
}

/** A connection to a relay that is opened again, at the next address, when it is lost. */
class Link {
  #open;
  #timeout;
  #on;
  #socket = null;
  #url;
  #attempt = 0;
  #address = 0;
  #timers = { retry: undefined, watch: undefined };
  #openedAt = 0;
  #heardAt = 0;
  /** Whether this connection was of use: the delays begin anew. */
  progress = false;

  /**
   * on: `open()`, `hear(message, url)`, `lost({ url, code, reason, delay })`, and `end(error)` for what trying
   * again does not change.
   */
  constructor(open, timeout, on) {
    this.#open = open;
    this.#timeout = timeout;
    this.#on = on;
  }

  connect() {
    this.progress = false;
    this.#openedAt = this.#heardAt = Date.now();
    let opened;
    try {
      opened = this.#open(this.#address);
    } catch (error) {
      this.#on.end(new TickbusError(`cannot connect: ${error.message}`, { cause: error }));
      return;
    }
    const { socket, url } = opened;
    this.#socket = socket;
    this.#url = url;
    socket.onopen = () => {
      this.#heardAt = Date.now();
      this.#on.open();
    };
    socket.onmessage = ({ data }) => {
      this.#heardAt = Date.now();
      this.#on.hear(parse(data), url);
    };
    socket.onclose = ({ code, reason }) => this.#lose(socket, code, reason);
    // some implementations end a failed handshake without a close event
    socket.onerror = () => setTimeout(() => this.#lose(socket, 1006, "the connection failed"), 50);
    const step = Math.max(20, this.#timeout / 9);
    this.#timers.watch = setInterval(() => this.#watch(socket), step);
  }

  send(request) {
    this.#socket.send(JSON.stringify(request));
  }

  /** Give this connection up, and open another one after a while. */
  lose(code, reason) {
    this.#lose(this.#socket, code, reason);
  }

  /** End it; it may be connected again. */
  disconnect() {
    clearInterval(this.#timers.watch);
    clearTimeout(this.#timers.retry);
    const socket = this.#socket;
    this.#socket = null;
    if (socket !== null) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {};
      if (socket.readyState <= 1) socket.close(1000);
    }
  }

  /** A connection may die without a sign: ask for one, and give it up if none comes. */
  #watch(socket) {
    const silent = Date.now() - this.#heardAt;
    if (silent > this.#timeout) {
      this.#lose(socket, 1006, `nothing was heard for ${silent} ms`);
    } else if (silent > this.#timeout / 3 && socket.readyState === 1) {
      socket.send('{"op":"ping"}');
    }
  }

  #lose(socket, code, reason) {
    if (socket === null || socket !== this.#socket) return;
    this.disconnect();
    if (FATAL.has(code)) {
      this.#on.end(new TickbusError(reason || `the relay closed with ${code}`, { code }));
      return;
    }
    if (this.progress || Date.now() - this.#openedAt > GOOD) this.#attempt = 0;
    const most = Math.min(MAX_DELAY, FIRST_DELAY * 2 ** ++this.#attempt);
    const delay = Math.max(FIRST_DELAY, Math.random() * most);
    this.#address += 1;
    this.#timers.retry = setTimeout(() => this.connect(), delay);
    this.#on.lost({ url: this.#url, code, reason, delay });
  }
}

/** Return what a relay says of a topic that is wanted. */
function wantedState({ stream, state, since, reason }) {
  return { stream, state, since, reason };
}

/** What is wanted, kept alive by a connection of its own: the relay wants it as long as that lasts. */
class Want {
  #link;
  #onEnd;
  #onState;
  #symbols;
  #kinds;
  #feed;
  #signal;
  #unanswered = 0;
  #begun = false;
  #ended = false;
  #error = null;
  #opening = new Settled();
  /** Stream -> the newest state; `#news`: those that nobody has taken yet. */
  #known = new Map();
  #news = new Map();
  #waiting = [];

  constructor(open, symbols, options, onEnd) {
    this.#onEnd = onEnd;
    this.#onState = options.onState ?? (() => {});
    this.#symbols = [...new Set(symbols)];
    this.#kinds = [...new Set([options.kind ?? "trade"].flat())];
    this.#feed = options.feed;
    this.#signal = options.signal;
    this.#link = new Link(open, options.timeout ?? 45_000, {
      open: () => this.#ask(),
      hear: (message, url) => this.#hear(message, url),
      lost: (event) => this.#report({ state: this.#begun ? "resuming" : "connecting", ...event }),
      end: (error) => this.#end(error),
    });
    /** What becomes of each stream, whenever that changes: of several changes that wait, the newest. */
    this.states = {
      next: () => this.#next(),
      return: async (value) => {
        this.close();
        return { value, done: true };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /** Called once by the bus. */
  _begin() {
    if (this.#signal?.aborted) {
      this.#abort();
      return;
    }
    this.#signal?.addEventListener("abort", this.#abort, { once: true });
    this.#report({ state: "connecting" });
    if (!this.#ended) this.#link.connect();
  }

  /** Resolved when a relay wants all of it. */
  opened() {
    return this.#opening.promise;
  }

  /** Want it no more. */
  close() {
    this.#end(null);
  }

  #abort = () => this.#end(this.#signal.reason);

  #report(event) {
    this.#onState({ want: this, ...event });
  }

  #end(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#news.clear();
    this.#link.disconnect();
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#opening.reject(error ?? new TickbusError("the want was closed"));
    this.#onEnd();
    this.#report({ state: "closed", code: error?.code, reason: error?.message ?? "closed" });
    this.#deliver();
  }

  #ask() {
    const feeds = this.#feed === undefined ? [] : [this.#feed];
    const groups = inGroups(this.#symbols);
    this.#unanswered = 0;
    for (const kind of this.#kinds) {
      for (const symbols of groups) {
        this.#link.send({ op: "want", id: ++this.#unanswered, kind, symbols, feeds });
      }
    }
  }

  #hear(message, url) {
    switch (message.op) {
      case "wanted":
        this.#link.progress = true;
        this.#feed = message.feed; // the next relay may not know yet which gateways run
        if (--this.#unanswered > 0) break;
        this.#begun = true;
        this.#report({ state: "open", url });
        this.#opening.resolve();
        break;
      case "want": {
        const event = wantedState(message);
        const known = this.#known.get(event.stream);
        if (["state", "since", "reason"].every((name) => known?.[name] === event[name])) break;
        this.#known.set(event.stream, event);
        this.#news.set(event.stream, event);
        this.#deliver();
        break;
      }
      case "error":
        if (message.retry) this.#link.lose(1013, message.reason);
        else this.#end(new TickbusError(message.reason));
        break;
    }
  }

  #next() {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#deliver();
    });
  }

  #deliver() {
    while (this.#waiting.length && this.#news.size) {
      const [stream, value] = this.#news.entries().next().value;
      this.#news.delete(stream);
      this.#waiting.shift().resolve({ value, done: false });
    }
    if (this.#ended) this.#error = finish(this.#waiting, this.#error);
  }
}

/** How the bus is, told by a relay as long as its connection lasts; of what waits, the newest. */
class Watch {
  #link;
  #onEnd;
  #onState;
  #signal;
  #begun = false;
  #ended = false;
  #error = null;
  #newest = null;
  #waiting = [];

  constructor(open, options, onEnd) {
    this.#onEnd = onEnd;
    this.#onState = options.onState ?? (() => {});
    this.#signal = options.signal;
    this.#link = new Link(open, options.timeout ?? 45_000, {
      open: () => this.#link.send({ op: "watch", id: 1 }),
      hear: (message, url) => this.#hear(message, url),
      lost: (event) => this.#report({ state: this.#begun ? "resuming" : "connecting", ...event }),
      end: (error) => this.#end(error),
    });
  }

  /** Called once by the bus. */
  _begin() {
    if (this.#signal?.aborted) {
      this.#abort();
      return;
    }
    this.#signal?.addEventListener("abort", this.#abort, { once: true });
    this.#report({ state: "connecting" });
    if (!this.#ended) this.#link.connect();
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  next() {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#deliver();
    });
  }

  async return(value) {
    this.close();
    return { value, done: true };
  }

  close() {
    this.#end(null);
  }

  #abort = () => this.#end(this.#signal.reason);

  #report(event) {
    this.#onState({ watch: this, ...event });
  }

  #end(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#newest = null;
    this.#link.disconnect();
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#onEnd();
    this.#report({ state: "closed", code: error?.code, reason: error?.message ?? "closed" });
    this.#deliver();
  }

  #hear(message, url) {
    switch (message.op) {
      case "watching":
        this.#begun = true;
        this.#report({ state: "open", url });
        break;
      case "health":
        this.#link.progress = true;
        this.#newest = message.health;
        this.#deliver();
        break;
      case "error":
        if (message.retry) this.#link.lose(1013, message.reason);
        else this.#end(new TickbusError(message.reason));
        break;
    }
  }

  #deliver() {
    if (this.#waiting.length && this.#newest !== null) {
      this.#waiting.shift().resolve({ value: this.#newest, done: false });
      this.#newest = null;
    }
    if (this.#ended) this.#error = finish(this.#waiting, this.#error);
  }
}

/** Return symbols in groups that fit into a request each; at least one, if it is empty. */
function inGroups(symbols) {
  const groups = [[]];
  let size = 0;
  for (const symbol of symbols) {
    size += symbol.length + 3;
    if (size > MAX_REQUEST - 1_000 && groups.at(-1).length) {
      groups.push([]);
      size = symbol.length + 3;
    }
    groups.at(-1).push(symbol);
  }
  return groups;
}

/** A promise that is settled from outside; a rejection that nobody awaits is none. */
class Settled {
  constructor() {
    this.promise = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.promise.catch(() => {});
  }
}

/** Tell those who wait that it has ended: the first of them why. Return what is left to be told. */
function finish(waiting, error) {
  for (const { resolve, reject } of waiting.splice(0)) {
    if (error === null) resolve({ value: undefined, done: true });
    else reject(error);
    error = null;
  }
  return error;
}

class Read {
  #link;
  #onEnd;
  #onState;
  #onDropped;
  #onWant;
  #request;
  #selectors;
  #from;
  #limit;
  #gaps;
  #late;
  #signal;

  /** The requests of this connection by id, and which of them a symbol belongs to; usually there is one. */
  #parts = new Map();
  #owners = new Map();
  #rest = null;
  #unanswered = 0;
  #answered = new Set();

  /** Stream -> how far it was received, in which history; `next`: the history that a reset leads to. */
  #received = new Map();
  #delivered = new Map();
  #queue = new Queue();
  #waiting = [];
  #begun = false;
  #paused = false;
  #ended = false;
  #error = null;
  #opening = new Settled();

  constructor(open, kind, options, onEnd) {
    this.#onEnd = onEnd;
    this.#onState = options.onState ?? (() => {});
    this.#onDropped = options.onDropped ?? (() => {});
    this.#onWant = options.onWant ?? (() => {});
    this.#selectors = options.symbols?.length ? [...new Set(options.symbols)] : ["*"];
    this.#limit = options.queue ?? 10_000;
    this.#gaps = options.gaps ?? true;
    this.#late = options.late ?? true;
    this.#signal = options.signal;
    this.#from = beginning(options.from ?? "now");
    this.#request = { op: "subscribe", kind, policy: options.policy ?? "lossless" };
    for (const name of ["feeds", "specs", "rate", "want"]) {
      if (options[name] !== undefined) this.#request[name] = options[name];
    }
    if (typeof this.#from === "object") {
      for (const [stream, text] of Object.entries(this.#from)) {
        const [cursor, history = null] = text.split("@");
        this.#received.set(stream, { cursor, history, next: null });
        this.#delivered.set(stream, { cursor, history });
      }
    }
    this.#link = new Link(open, options.timeout ?? 45_000, {
      open: () => this.#subscribe(),
      hear: (message, url) => this.#hear(message, url),
      lost: (event) => this.#report({ state: this.#begun ? "resuming" : "connecting", ...event }),
      end: (error) => this.#end(error),
    });
  }

  /** Called once by the bus. */
  _begin() {
    if (this.#signal?.aborted) {
      this.#abort();
      return;
    }
    this.#signal?.addEventListener("abort", this.#abort, { once: true });
    this.#report({ state: "connecting" });
    if (!this.#ended) this.#link.connect();
  }

  /** What to pass as `from` to continue after the elements that were taken. */
  get cursor() {
    return textOf(this.#delivered);
  }

  /** How many elements wait to be taken. */
  get waiting() {
    return this.#queue.length;
  }

  /** Resolved when the relay has begun to deliver: what is written from then on is read. */
  opened() {
    return this.#opening.promise;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  next() {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#deliver();
    });
  }

  async return(value) {
    this.close();
    return { value, done: true };
  }

  /** End the read; elements that wait are dropped, and `cursor` stays where it is. */
  close() {
    this.#queue.clear();
    this.#end(null);
  }

  #abort = () => {
    this.#queue.clear();
    this.#end(this.#signal.reason);
  };

  #end(error) {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#link.disconnect();
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#opening.reject(error ?? new TickbusError("the read was closed"));
    this.#onEnd();
    this.#report({ state: "closed", code: error?.code, reason: error?.message ?? "closed" });
    this.#deliver();
  }

  #report(event) {
    this.#onState({ read: this, kind: this.#request.kind, ...event });
  }

  /** The reader is behind: end the connection, and resume when it has caught up. */
  #pause() {
    this.#paused = true;
    this.#link.disconnect();
    this.#report({ state: "resuming", reason: "the queue is full: continues when half of it has been taken" });
  }

  // what is asked for

  #subscribe() {
    this.#parts.clear();
    this.#owners.clear();
    this.#rest = null;
    this.#unanswered = 0;
    const isFresh = (selector) => !this.#answered.has(selector);
    const fresh = this.#selectors.filter(isFresh);
    const known = this.#selectors.filter((selector) => !isFresh(selector));
    if (fresh.length) this.#ask(fresh, this.#from);
    if (known.length) this.#ask(known, textOf(this.#received));
  }

  /** Subscribe, in several requests where one would be too large: each then owns some symbols. */
  #ask(selectors, from) {
    if (this.#fits(selectors, from)) {
      const part = this.#send(selectors, from);
      if (selectors.some(isGlob)) this.#rest = part;
      else for (const symbol of selectors) this.#owners.set(symbol, part);
      return;
    }
    const globs = selectors.filter(isGlob);
    const matcher = globs.length ? globMatcher(globs) : null;
    const names = new Set(selectors.filter((selector) => !isGlob(selector)));
    const hasCursors = typeof from === "object";
    const cursors = new Map();
    if (hasCursors) {
      for (const [stream, cursor] of Object.entries(from)) {
        const symbol = symbolOf(stream);
        if (matcher?.test(symbol)) names.add(symbol);
        if (names.has(symbol)) cursors.set(symbol, { ...cursors.get(symbol), [stream]: cursor });
      }
    }
    this.#askInGroups(names, (group) =>
      hasCursors ? Object.assign({}, ...group.map((symbol) => cursors.get(symbol))) : from,
    );
    if (globs.length) {
      this.#rest = this.#send(globs, hasCursors ? "now" : from);
      this.#rest.findsNew = hasCursors;
    }
  }

  #askInGroups(symbols, fromOf) {
    let group = [];
    const send = () => {
      const part = this.#send(group, fromOf(group));
      for (const symbol of group) this.#owners.set(symbol, part);
      group = [];
    };
    let size = 0;
    for (const symbol of symbols) {
      const added = symbol.length + 3 + JSON.stringify(fromOf([symbol])).length;
      if (group.length && size + added > MAX_REQUEST - 1_000) {
        send();
        size = 0;
      }
      group.push(symbol);
      size += added;
    }
    if (group.length) send();
  }

  #fits(selectors, from) {
    return JSON.stringify({ ...this.#request, id: 1, symbols: selectors, from }).length <= MAX_REQUEST;
  }

  #send(selectors, from) {
    const part = { id: this.#parts.size + 1, selectors, findsNew: false };
    this.#parts.set(part.id, part);
    this.#unanswered += 1;
    const symbols = selectors.length === 1 && selectors[0] === "*" ? [] : selectors;
    this.#link.send({ ...this.#request, id: part.id, symbols, from });
    return part;
  }

  #owner(stream) {
    return this.#owners.get(symbolOf(stream)) ?? this.#rest;
  }

  // what is heard

  #hear(message, url) {
    if (message.data !== undefined) {
      const part = this.#parts.get(message.id);
      const elements =
        this.#parts.size === 1
          ? message.data
          : message.data.filter((element) => this.#owner(element.stream) === part);
      if (this.#request.policy === "conflate") this.#acceptFrame(elements);
      else this.#accept(elements);
      return;
    }
    switch (message.op) {
      case "subscribed":
        this.#isAnswered(this.#parts.get(message.id), message.streams);
        if (this.#unanswered === 0) this.#isOpen(url);
        break;
      case "stream":
        if (this.#owner(message.stream) === this.#parts.get(message.id)) this.#announce(message);
        break;
      case "want":
        this.#onWant(wantedState(message));
        break;
      case "dropped":
        this.#onDropped(message.count);
        break;
      case "error":
        if (message.retry) this.#link.lose(1013, message.reason);
        else this.#end(new TickbusError(message.reason));
        break;
    }
  }

  #isOpen(url) {
    this.#begun = true;
    this.#report({ state: "open", url });
    this.#opening.resolve();
  }

  #isAnswered(part, streams) {
    this.#unanswered -= 1;
    const unknown = new Set();
    for (const { stream, cursor, history } of streams) {
      if (this.#owner(stream) !== part) continue;
      const position = this.#received.get(stream);
      if (position !== undefined) {
        // until the Gap that reports it, our position is one of the history before
        if (position.history === null) position.history = history;
        else if (position.history !== history) position.next = history;
      } else if (part.findsNew) {
        unknown.add(symbolOf(stream)); // appeared while we were away
      } else {
        this.#move(stream, cursor, history);
      }
    }
    for (const selector of part.selectors) this.#answered.add(selector);
    this.#askInGroups(unknown, () => ({}));
    this.#deliver();
  }

  /** A stream begins with its first entry. */
  #announce({ stream, cursor, history }) {
    const position = this.#received.get(stream);
    if (position === undefined || position.history !== history) {
      this.#move(stream, cursor, history);
      this.#deliver();
    }
  }

  #move(stream, cursor, history) {
    this.#received.set(stream, { cursor, history, next: null });
    this.#queue.push({ element: null, stream, cursor, history });
  }

  #isWanted(element) {
    return (this.#gaps || element.type !== "gap") && (this.#late || !isLate(element));
  }

  /** Queue elements, each stream's in the order of their cursors. */
  #accept(elements) {
    for (const element of elements) {
      if (this.#queue.length >= this.#limit) {
        this.#deliver();
        if (!this.#ended && this.#queue.length >= this.#limit) {
          this.#pause();
          return;
        }
      }
      const { stream, cursor } = element;
      let position = this.#received.get(stream);
      if (position === undefined) {
        position = { cursor, history: null, next: null };
        this.#received.set(stream, position);
      } else if (isReset(element)) {
        // without a history no relay can report the same reset again
        position.history = position.next;
        position.next = null;
      } else if (!isAfter(cursor, position.cursor)) {
        continue; // known from before the connection was lost
      }
      position.cursor = cursor;
      this.#link.progress = true;
      this.#queue.push({
        element: this.#isWanted(element) ? element : null,
        stream,
        cursor,
        history: position.history,
      });
    }
    this.#deliver();
  }

  /**
   * Queue the elements of one beat. Gaps stand before what they concern, so the order of the cursors says
   * nothing within it; the stream has come to its newest cursor when all of the beat is taken.
   */
  #acceptFrame(elements) {
    const ends = new Map();
    for (const element of elements) {
      const { stream, cursor } = element;
      const position = this.#received.get(stream);
      let end = ends.get(stream);
      if (end === undefined) {
        end = { base: position?.cursor, cursor: null, history: position?.history ?? null, reset: false };
        ends.set(stream, end);
      }
      if (isReset(element)) {
        end.history = position?.next ?? null;
        end.base = undefined;
        end.reset = true;
      } else if (end.base !== undefined && !isAfter(cursor, end.base)) {
        continue;
      }
      if (end.cursor === null || end.reset || isAfter(cursor, end.cursor)) end.cursor = cursor;
      this.#link.progress = true;
      if (this.#isWanted(element)) this.#queue.push({ element, stream: null });
    }
    for (const [stream, { cursor, history }] of ends) {
      if (cursor === null) continue;
      const next = this.#received.get(stream)?.next ?? null;
      this.#received.set(stream, { cursor, history, next: next === history ? null : next });
      this.#queue.push({ element: null, stream, cursor, history });
    }
    this.#deliver();
    if (!this.#ended && this.#queue.length >= this.#limit) this.#pause();
  }

  /** Hand out what waits. */
  #deliver() {
    const queue = this.#queue;
    while (queue.length && (this.#waiting.length || queue.first.element === null)) {
      const { element, stream, cursor, history } = queue.shift();
      if (stream !== null) this.#delivered.set(stream, { cursor, history });
      if (element !== null) this.#waiting.shift().resolve({ value: element, done: false });
    }
    if (this.#paused && !this.#ended && queue.length * 2 <= this.#limit) {
      this.#paused = false;
      this.#link.connect();
    }
    if (this.#ended && queue.length === 0) this.#error = finish(this.#waiting, this.#error);
  }
}

/** Return positions as `from` takes them. */
function textOf(positions) {
  const cursors = {};
  for (const [stream, { cursor, history }] of positions) {
    cursors[stream] = history ? `${cursor}@${history}` : cursor;
  }
  return cursors;
}
