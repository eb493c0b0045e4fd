/** The newest of something: the oldest goes when it is full. */
export class Ring {
  #items;
  #next = 0;
  #length = 0;

  constructor(capacity) {
    this.#items = new Array(capacity).fill(null);
  }

  get length() {
    return this.#length;
  }

  push(item) {
    this.#items[this.#next] = item;
    this.#next = (this.#next + 1) % this.#items.length;
    if (this.#length < this.#items.length) this.#length += 1;
  }

  /** Return an item by its age: 0 is the newest. */
  newest(age) {
    return age < this.#length ? this.#items[(this.#next - 1 - age + 2 * this.#items.length) % this.#items.length] : null;
  }

  /** Oldest first. */
  *[Symbol.iterator]() {
    for (let age = this.#length - 1; age >= 0; age -= 1) yield this.newest(age);
  }

  clear() {
    this.#items.fill(null);
    this.#next = this.#length = 0;
  }
}
