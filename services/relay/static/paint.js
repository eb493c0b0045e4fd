/**
 * The one place that draws: however many messages come, the page is painted at most every 222 ms, in one
 * animation frame; a page that is not looked at paints nothing.
 */
const BETWEEN_MS = 222;

export class Painter {
  #paint;
  #due = false;
  #last = 0;
  /** Times of the newest paints, to show how many there are. */
  recent = [];

  constructor(paint) {
    this.#paint = paint;
  }

  /** Something changed. */
  request() {
    if (this.#due) return;
    this.#due = true;
    setTimeout(() => requestAnimationFrame((now) => this.#draw(now)), Math.max(0, this.#last + BETWEEN_MS - performance.now()));
  }

  #draw(now) {
    this.#due = false;
    this.#last = now;
    while (this.recent.length && this.recent[0] < now - 5_000) this.recent.shift();
    this.recent.push(now);
    const began = performance.now();
    this.#paint();
    // one mark is kept: tests hear of each as it is made
    performance.clearMarks("tickbus-paint");
    performance.mark("tickbus-paint", { startTime: began, detail: performance.now() - began });
  }
}
