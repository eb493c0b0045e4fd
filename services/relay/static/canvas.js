/** Drawing on canvases, in the colours of the style sheet. */

let colours = null;
const NAMES = ["ground", "panel", "raised", "line", "text", "dim", "accent", "up", "down", "warn", "hole", "open-hole", "volume", "sans"];

/** Return the colours in force; `forgetColours` after they changed. */
export function palette() {
  if (colours === null) {
    const style = getComputedStyle(document.documentElement);
    colours = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }
  return colours;
}

export function forgetColours() {
  colours = null;
}

/**
 * Return an empty drawing of the canvas in CSS pixels: [context, width, height]; null while it is not shown. Its
 * size is read from the document, unless it is given: reading it makes the browser lay out all that was written.
 */
export function begin(canvas, width = canvas.clientWidth, height = canvas.clientHeight) {
  if (!width || !height) return null;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `11px ${palette().sans}`;
  context.textBaseline = "middle";
  return [context, width, height];
}

/** Draw a line through some numbers, oldest first, on a canvas of class `spark`. */
export function sparkline(canvas, values) {
  const drawing = begin(canvas, 110, 24);
  if (drawing === null || values.length < 2) return;
  const [context, width, height] = drawing;
  const low = Math.min(...values);
  const range = Math.max(...values) - low || 1;
  const colour = values.at(-1) >= values[0] ? palette().up : palette().down;
  context.beginPath();
  values.forEach((value, at) => {
    const x = (at / (values.length - 1)) * (width - 4) + 2;
    const y = height - 3 - ((value - low) / range) * (height - 6);
    if (at) context.lineTo(x, y);
    else context.moveTo(x, y);
  });
  context.strokeStyle = colour;
  context.lineWidth = 1.4;
  context.lineJoin = "round";
  context.stroke();
}

/** Return a round step that divides a range into about so many parts. */
export function roundStep(range, parts) {
  const rough = range / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const [step] = [1, 2, 5, 10].filter((each) => each * power >= rough);
  return step * power;
}
