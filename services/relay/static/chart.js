/** Candles with volume and holes, on a plain canvas. Another chart has the same interface: `draw` and `at`. */

import { begin, palette, roundStep } from "./canvas.js";
import { dayOf, minuteOf, timeOf } from "./format.js";

const RIGHT = 76;
const BOTTOM = 22;
const STEPS = [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400].map((s) => s * 1_000);

export class CanvasChart {
  #canvas;
  #slots = 0;
  #shown = [];
  #pointer = null;
  #layout = null;

  constructor(canvas, changed) {
    this.#canvas = canvas;
    canvas.addEventListener("pointermove", (event) => {
      this.#pointer = [event.offsetX, event.offsetY];
      changed();
    });
    canvas.addEventListener("pointerleave", () => {
      this.#pointer = null;
      changed();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15);
      changed();
    });
  }

  /** Show more candles, or fewer. */
  zoom(factor) {
    this.#slots = Math.round(Math.min(500, Math.max(20, this.#slots * factor)));
  }

  /** The candle under the pointer; null if there is none. */
  get at() {
    if (this.#pointer === null || this.#layout === null) return null;
    const { x, slot } = this.#layout;
    return this.#shown.find((candle) => Math.abs(x(candle) - this.#pointer[0]) <= slot / 2) ?? null;
  }

  /**
   * candles: oldest first. length: of a time bar in ms, null where bars have no fixed one. holes: [{ from, to,
   * open }] in ms. now: in ms; the right edge while a hole is open.
   */
  draw(candles, length, holes, now, digits) {
    const drawing = begin(this.#canvas);
    if (drawing === null) return;
    const [context, width, height] = drawing;
    const colour = palette();
    const right = width - RIGHT;
    const bottom = height - BOTTOM;
    this.#slots ||= Math.max(30, Math.min(120, Math.floor(right / 9)));
    const slot = right / this.#slots;
    if (!candles.length) return;

    // where a time stands
    const newest = candles.at(-1);
    const isOpen = holes.some((hole) => hole.open);
    let position;
    if (length !== null) {
      const end = Math.max(newest.end, isOpen ? now : 0);
      position = (ms) => right - ((end - ms) / length) * slot;
    } else {
      position = (ms) => {
        const at = candles.findLastIndex((candle) => candle.start <= ms);
        return right - (candles.length - Math.max(0, at)) * slot;
      };
    }
    const x = (candle) => position(candle.start) + slot / 2;
    const shown = candles.filter((candle) => x(candle) > 0);
    this.#shown = shown;
    this.#layout = { x, slot };
    if (!shown.length) return;

    // where a price stands
    let low = Math.min(...shown.map((candle) => Number(candle.low)));
    let high = Math.max(...shown.map((candle) => Number(candle.high)));
    const pad = (high - low || high * 0.001 || 1) * 0.08;
    low -= pad;
    high += pad;
    const floor = bottom - (bottom - 8) * 0.2;
    const y = (price) => 8 + ((high - price) / (high - low)) * (floor - 16);

    // grid and axes
    context.strokeStyle = colour.line;
    context.fillStyle = colour.dim;
    context.lineWidth = 1;
    const step = roundStep(high - low, 6);
    for (let price = Math.ceil(low / step) * step; price < high; price += step) {
      const at = Math.round(y(price)) + 0.5;
      context.globalAlpha = 0.6;
      context.beginPath();
      context.moveTo(0, at);
      context.lineTo(right, at);
      context.stroke();
      context.globalAlpha = 1;
      context.fillText(price.toFixed(Math.max(digits, 0)), right + 8, at);
    }
    context.textAlign = "center";
    if (length !== null) {
      const every = STEPS.find((ms) => (ms / length) * slot >= 90) ?? 86_400_000;
      const end = newest.end;
      for (let ms = Math.ceil((end - this.#slots * length) / every) * every; ms <= end; ms += every) {
        const at = position(ms);
        if (at < 24 || at > right - 20) continue;
        context.fillText(every >= 86_400_000 ? dayOf(ms) : every < 60_000 ? timeOf(ms) : minuteOf(ms), at, bottom + 12);
      }
    } else {
      const every = Math.ceil(90 / slot);
      shown.forEach((candle, at) => {
        if (at % every === 0 && x(candle) > 30) context.fillText(timeOf(candle.start), x(candle), bottom + 12);
      });
    }
    context.textAlign = "left";

    // what is missing; of what was before this page was opened only the candles tell
    context.fillStyle = colour.hole;
    for (const candle of shown) {
      if (candle.quality.includes("has_gap")) context.fillRect(x(candle) - slot / 2, 4, slot, bottom - 4);
    }
    for (const hole of holes) {
      const from = Math.max(0, position(hole.from));
      const to = Math.min(right, hole.open ? right : position(hole.to));
      if (to < 0 || from > right) continue;
      context.fillStyle = hole.open ? colour["open-hole"] : colour.hole;
      context.fillRect(from, 4, Math.max(3, to - from), bottom - 4);
    }

    // volume, candles
    const most = Math.max(...shown.map((candle) => candle.volume)) || 1;
    const body = Math.max(1, Math.min(14, Math.floor(slot * 0.7)));
    for (const candle of shown) {
      const middle = Math.round(x(candle));
      const tall = (candle.volume / most) * (bottom - floor - 6);
      context.fillStyle = colour.volume;
      context.fillRect(middle - body / 2, bottom - tall, body, tall);
      const open = Number(candle.open);
      const close = Number(candle.close);
      context.fillStyle = close >= open ? colour.up : colour.down;
      context.fillRect(middle - 0.5, y(Number(candle.high)), 1, Math.max(1, y(Number(candle.low)) - y(Number(candle.high))));
      const top = y(Math.max(open, close));
      const size = Math.max(1, Math.abs(y(open) - y(close)));
      context.globalAlpha = candle.quality.includes("partial") ? 0.45 : 1;
      context.fillRect(middle - body / 2, top, body, size);
      context.globalAlpha = 1;
      if (candle.quality.includes("has_gap")) {
        context.fillStyle = colour.warn;
        context.fillRect(middle - 2, bottom - tall - 6, 4, 4);
      }
    }

    // the newest price
    const last = Number(newest.close);
    const at = Math.round(y(last)) + 0.5;
    context.strokeStyle = context.fillStyle = last >= Number(newest.open) ? colour.up : colour.down;
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(0, at);
    context.lineTo(right, at);
    context.stroke();
    context.setLineDash([]);
    context.fillRect(right + 2, at - 9, RIGHT - 4, 18);
    context.fillStyle = colour.panel;
    context.fillText(newest.close, right + 8, at);

    if (this.#pointer !== null && this.#pointer[0] < right && this.#pointer[1] < bottom) {
      const [px, py] = this.#pointer;
      context.strokeStyle = colour.dim;
      context.setLineDash([3, 3]);
      context.beginPath();
      context.moveTo(px, 4);
      context.lineTo(px, bottom);
      context.moveTo(0, py);
      context.lineTo(right, py);
      context.stroke();
      context.setLineDash([]);
    }
  }
}

/** Draw volume by price: bought and sold beside each other. */
export function drawProfile(canvas, profile, digits) {
  const drawing = begin(canvas);
  if (drawing === null || !profile.length) return;
  const [context, width, height] = drawing;
  const colour = palette();
  const most = Math.max(...profile.map((bin) => bin.buy + bin.sell + bin.unknown)) || 1;
  const tall = height / profile.length;
  const room = width - 70;
  profile.forEach((bin, at) => {
    const top = height - (at + 1) * tall;
    let left = 66;
    for (const [part, fill] of [["buy", colour.up], ["sell", colour.down], ["unknown", colour.volume]]) {
      const long = (bin[part] / most) * room;
      context.fillStyle = fill;
      context.fillRect(left, top + 1, long, Math.max(1, tall - 2));
      left += long;
    }
    if (at % Math.ceil(16 / tall) === 0) {
      context.fillStyle = colour.dim;
      context.textAlign = "right";
      context.fillText(((bin.low + bin.high) / 2).toFixed(digits), 60, top + tall / 2);
      context.textAlign = "left";
    }
  });
}
