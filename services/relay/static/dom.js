/** Elements. All that others wrote goes in as text: there is no way to put markup in from here. */

/** Return a new element. properties: `class`, `on...` functions, else attributes; children: elements or texts. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(key, value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Set the text of an element, if it is another one. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

/** Return a table head: names, and a class for each cell. */
export function tableHead(columns) {
  return make(
    "thead",
    {},
    make("tr", {}, ...columns.map(([name, kind = "", title]) => make("th", { scope: "col", class: kind, title }, name))),
  );
}

/** Fill a table body with rows of cells: texts, or [text, class]. Rows that are there are written again. */
export function fill(body, rows) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, at) => {
    const row = body.rows[at] ?? body.appendChild(make("tr"));
    while (row.cells.length < cells.length) row.append(make("td"));
    cells.forEach((cell, column) => {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      write(row.cells[column], text);
      setClass(row.cells[column], kind);
    });
  });
}
