/** Types of tickbus.js. Prices, sizes and ids are text, times are ns since the epoch. */

export type Kind = "trade" | "quote" | "bar" | "signal";
/** Exact decimal digits. */
export type Decimal = string;
/** ns since the epoch, UTC. */
export type Time = bigint;
/** Where to continue: stream -> ID, with the history behind an `@`. JSON keeps it. */
export type Cursor = Record<string, string>;

export type Flag =
  | "late"
  | "replayed"
  | "off_book"
  | "corrected"
  | "cancelled"
  | "future_time"
  | "backfilled"
  | "bad_time"
  | "doubtful_id";

export interface Place {
  /** `trade:binance:BTC-USDT` */
  stream: string;
  feed: string;
  /** ID of the entry in its stream. */
  cursor: string;
  symbol: string;
}

export interface Trade extends Place {
  type: "trade";
  price: Decimal;
  size: Decimal;
  /** The aggressor. */
  side: "unknown" | "buy" | "sell";
  trade_id: string | null;
  ts_event: Time;
  ts_recv: Time;
  bid: Decimal | null;
  ask: Decimal | null;
  flags: Flag[];
}

export interface Quote extends Place {
  type: "quote";
  bid: Decimal | null;
  bid_size: Decimal | null;
  ask: Decimal | null;
  ask_size: Decimal | null;
  ts_event: Time;
  ts_recv: Time;
  flags: Flag[];
}

export interface Bar extends Place {
  type: "bar";
  spec: string;
  start: Time;
  end: Time;
  open: Decimal;
  high: Decimal;
  low: Decimal;
  close: Decimal;
  volume: Decimal;
  value: Decimal;
  vwap: Decimal | null;
  trades: number;
  buy_volume: Decimal;
  sell_volume: Decimal;
  /** A later revision replaces an earlier one. */
  revision: number;
  /** Empty: complete. */
  quality: ("partial" | "has_gap" | "repaired" | "clock_ahead")[];
}

export interface Signal extends Place {
  type: "signal";
  name: string;
  value: Decimal;
  threshold: Decimal;
  window: string;
  message: string;
  ts_event: Time;
  /** An alert's episode starts and ends; anything else is an indicator. */
  state: "indicator" | "start" | "end";
  /** 1 up or bought, -1 down or sold, 0 neither. */
  direction: number;
  unit: string;
  /** Empty: complete. */
  quality: ("has_gap" | "partial")[];
  /** ts_event of the episode's start; 0 for an indicator. */
  episode: Time;
  /** ID of the entry that caused it. */
  cause: string;
  /** Number of the parameters in force. */
  params: number;
  /** More numbers: name and value. */
  details: [string, Decimal][];
}

/** A hole in a stream, before the first element after it. */
export interface Gap extends Place {
  type: "gap";
  source: string;
  kind:
    | "disconnect"
    | "sequence"
    | "reset"
    | "stale"
    | "overflow"
    | "rejected"
    | "trimmed"
    | "void"
    | "unsubscribed"
    | "unknown";
  from_ts: Time;
  to_ts: Time;
  from_id: string | null;
  to_id: string | null;
  /** How many are missing; null: unknown. */
  count: number | null;
  repairable: boolean;
  /** Whether what an earlier Gap reported as missing is in the stream now. */
  repaired: boolean;
}

/** The trades of an interval, with the policy conflate. */
export interface Summary extends Place {
  type: "summary";
  first: Decimal | null;
  high: Decimal | null;
  low: Decimal | null;
  last: Decimal | null;
  volume: Decimal;
  value: Decimal;
  count: number;
  /** Trades that were late, backfilled, cancelled or off the book: in none of the values. */
  aside: number;
  ts_event: Time | null;
  ts_recv: Time | null;
  has_gap: boolean;
}

export interface Messages {
  trade: Trade;
  quote: Quote;
  bar: Bar;
  signal: Signal;
}

/** What a read of a kind yields. After a lost connection, a conflated read gets what it missed one by one. */
export type Element<K extends Kind, O = {}> =
  | Messages[K]
  | (O extends { gaps: false } ? never : Gap)
  | (K extends "trade" ? (O extends { policy: "conflate" } ? Summary : never) : never);

export interface State {
  state: "connecting" | "open" | "resuming" | "closed";
  /** Whose connection it is: that of a read, with its kind, of a want, or of a watch. */
  read?: Read<any>;
  kind?: Kind;
  want?: Want;
  watch?: Watch;
  url?: string;
  /** Close code of the connection that ended. */
  code?: number;
  reason?: string;
  /** ms until the next attempt. */
  delay?: number;
}

export interface ConnectOptions {
  /** Sent by subprotocol and header, never in an address. */
  token?: string;
  /** The class to use where there is no global one. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  fetch?: typeof globalThis.fetch;
  onState?: (state: State) => void;
}

export interface Selection {
  /** Names or globs, `BTC-*`; all by default. */
  symbols?: readonly string[];
  feeds?: readonly string[];
  /** Of bars: `time:1m`. */
  specs?: readonly string[];
}

export interface ReadOptions extends Selection {
  /** `now` (the default), `start`, `last:N`, a time, or a cursor. */
  from?: string | number | bigint | Date | Cursor;
  policy?: "lossless" | "conflate" | "drop";
  /** Conflated elements a second and stream: 0.1 to 20. */
  rate?: number;
  /** Whether the gateway is to subscribe to the symbols, which must be names then; `feeds` says which one. */
  want?: boolean;
  /** What becomes of each stream that is wanted, whenever that changes. */
  onWant?: (state: WantedState) => void;
  /** false leaves out Gaps. */
  gaps?: boolean;
  /** false leaves out late ticks, and Gaps that report them as repaired. */
  late?: boolean;
  /** Most elements that wait, 10,000; beyond it the connection ends until half of them are taken. */
  queue?: number;
  /** ms without a sign of life after which a connection is given up: 45,000. */
  timeout?: number;
  /** Ends the read; what waits for an element is rejected with its reason. */
  signal?: AbortSignal;
  onState?: (state: State) => void;
  /** How many elements the relay dropped, with the policy drop. */
  onDropped?: (count: number) => void;
}

export interface Read<T> extends AsyncIterableIterator<T> {
  /** What to pass as `from` to continue after the elements that were taken. */
  readonly cursor: Cursor;
  /** How many elements wait to be taken. */
  readonly waiting: number;
  /** Resolved when the relay has begun to deliver. */
  opened(): Promise<void>;
  next(): Promise<IteratorResult<T, undefined>>;
  close(): void;
}

export interface WantedState {
  stream: string;
  state: "active" | "pending" | "refused" | "lingering";
  /** ms since the epoch. */
  since: number;
  /** Why it is refused, or not active yet; else empty. */
  reason: string;
}

export interface SubscriptionRow extends WantedState {
  /** Whether the gateway's own options ask for it. */
  fixed: boolean;
}

export interface WantOptions {
  /** `trade` by default. */
  kind?: "trade" | "quote" | readonly ("trade" | "quote")[];
  /** Needed where several gateways run. */
  feed?: string;
  /** ms without a sign of life after which a connection is given up: 45,000. */
  timeout?: number;
  signal?: AbortSignal;
  onState?: (state: State) => void;
}

export interface Want {
  /** Each change; of several of one stream that wait, the newest. Leaving the loop ends the want. */
  readonly states: AsyncIterableIterator<WantedState>;
  /** Resolved when a relay wants all of it. */
  opened(): Promise<void>;
  close(): void;
}

export interface FeedHealth {
  name: string;
  /** `up`; `down`: not connected; `gone`: no gateway. */
  state: string;
  /** ms since the epoch; null: since before the relay looked. */
  since: number | null;
  /** s since the newest ring of its gateway; null: unknown. */
  clock_age: number | null;
  last_tick_age: number | null;
  streams: number;
  /** Streams that never had a tick. */
  silent: number;
  /** By kind. */
  gaps: Record<string, number>;
  missing: number;
  repaired: number;
  /** By state. */
  subscriptions: Record<string, number>;
  /** Whether a second gateway stands by. */
  standby: boolean;
}

export interface ServiceHealth {
  name: string;
  replicas: number;
  /** Shards without a replica. */
  free: number;
  /** Entries that it is behind, and the age of the oldest in s. */
  ticks: number;
  seconds: number;
  /** Entries that were trimmed before it read them. */
  lost: number;
  /** s until the next one is trimmed; null: it reads nothing. */
  headroom: number | null;
}

export interface RelayHealth {
  clients: number;
  streams: number;
  in_flight: number;
  /** By policy. */
  subscriptions: Record<string, number>;
}

export interface Health {
  /** Of Redis, ms since the epoch; null: unknown, for this `reason`. */
  time: number | null;
  reason: string;
  feeds: FeedHealth[];
  services: ServiceHealth[];
  relays: RelayHealth[];
  /** What is wrong with the keys of the bus; only from a relay without tokens. */
  faults: string[];
}

export interface WatchOptions {
  /** ms without a sign of life after which a connection is given up: 45,000. */
  timeout?: number;
  signal?: AbortSignal;
  onState?: (state: State) => void;
}

export interface Watch extends AsyncIterableIterator<Health> {
  next(): Promise<IteratorResult<Health, undefined>>;
  close(): void;
}

export interface StreamRow {
  stream: string;
  kind: Kind;
  feed: string;
  symbol: string;
  spec: string | null;
  cursor: string;
  entries: number;
}

export interface Bus {
  read<K extends Kind = "trade", const O extends ReadOptions = {}>(
    kind?: K,
    options?: O,
  ): Read<Element<K, O>>;
  /** Ask that the gateway subscribes to symbols, without reading them, until `close`. */
  want(symbols: readonly string[], options?: WantOptions): Want;
  /** What the gateway of a feed is subscribed to, or is asked for and why it is not. */
  subscriptions(feed: string): Promise<SubscriptionRow[]>;
  /** The newest message of each stream, and the cursor from which to read on. */
  snapshot<K extends Kind = "trade">(
    kind?: K,
    selection?: Selection,
  ): Promise<{ data: Messages[K][]; cursor: Cursor }>;
  symbols(selection?: Selection & { kind?: Kind }): Promise<StreamRow[]>;
  /** Bars by their start. `next`: the `from` of the next page. */
  bars(query: {
    symbol: string;
    spec?: string;
    feed?: string;
    from?: string | number | bigint | Date;
    to?: string | number | bigint | Date;
    limit?: number;
  }): Promise<{ data: Bar[]; next: Time | null }>;
  /** Entries of a stream, oldest first. `next`: the `after` of the next page. */
  history(
    stream: string,
    query?: { from?: string | number | bigint | Date; after?: string; limit?: number },
  ): Promise<{ data: (Messages[Kind] | Gap)[]; next: string | null }>;
  status(): Promise<{ up: boolean; clients: number; streams: number; bus: Health }>;
  /** How the bus is, about once a second; of what waits, the newest. */
  watch(options?: WatchOptions): Watch;
  /** End all reads, wants and watches. */
  close(): void;
}

/** urls: address of a relay, or of several, which are tried in turn: `ws://127.0.0.1:9400`. */
export function connect(urls: string | readonly string[], options?: ConnectOptions): Bus;

/** Return the value of a message or answer of a relay, with the times of its `data` as BigInt. */
export function parse(text: string): any;

export class TickbusError extends Error {
  /** Close code of the connection. */
  readonly code?: number;
  /** Of an HTTP answer. */
  readonly status?: number;
}
