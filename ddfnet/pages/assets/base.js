"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Elements. Text only ever becomes a text node: names of classes and files are other people's.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
function show(parent, ...children) { parent.replaceChildren(...children.flat(Infinity).filter((child) => child)); }

// Numbers
const count = (n) => n.toLocaleString("en-US");
const percent = (fraction, digits = 1) => Number.isFinite(fraction) ? `${(100 * fraction).toFixed(digits)} %` : "–";
function real(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const text = size && (size < 10 ** -digits || size >= 1e5) ? size.toExponential(1) : size.toFixed(digits);
  return x < 0 && Number(text) ? `−${text}` : text;
}

// Packed arrays, see pack.py
let HALVES = null;
function halves() {
  if (HALVES) return HALVES;
  HALVES = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
    if (exponent === 31) HALVES[bits] = fraction ? NaN : sign * Infinity;
    else HALVES[bits] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }
  return HALVES;
}
function unpack(packed) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (packed.type === "u1") return bytes;
  if (packed.type === "u4") return new Uint32Array(bytes.buffer);
  const words = new Uint16Array(bytes.buffer);
  if (packed.type === "u2") return words;
  const table = halves(), values = new Float32Array(words.length);
  for (let i = 0; i < words.length; i++) values[i] = table[words[i]] * packed.scale;
  return values;
}

// Colors
const style = () => getComputedStyle(document.documentElement);
const color = (name) => style().getPropertyValue(`--${name}`).trim();
function rgb(hex) { return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)); }
function mix(a, b, t) { return a.map((value, i) => Math.round(value + (b[i] - value) * t)); }
const MAP = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(rgb);
function ramps() {  // of the theme that is shown now; each takes a number to [r, g, b]
  const card = rgb(color("card")), [positive, negative, accent] = ["positive", "negative", "accent"].map((n) => rgb(color(n)));
  const clamp = (t, low) => Number.isNaN(t) ? 0 : Math.min(1, Math.max(low, t));
  return {
    diverging: (t) => { const s = clamp(t, -1); return s < 0 ? mix(card, negative, -s) : mix(card, positive, s); },
    single: (t) => mix(card, accent, clamp(t, 0)),
    map: (t) => { const s = clamp(t, 0) * (MAP.length - 1), i = Math.min(MAP.length - 2, Math.floor(s)); return mix(MAP[i], MAP[i + 1], s - i); },
  };
}
const paint = (channels) => `rgb(${channels.join(",")})`;
function inkOn(channels) {  // whichever is the easier to read, see ink_on of palette.py
  const [r, g, b] = channels.map((value) => value / 255).map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b > .179 ? "#000000" : "#ffffff";
}
const THEME = matchMedia("(prefers-color-scheme: dark)");
const onTheme = (draw) => THEME.addEventListener("change", draw);

// Of the buttons of a table, Tab reaches one; the arrow keys go from there to the others, which may be a thousand.
function arrowKeys(table) {
  const rowsOf = () => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.querySelector("button")));
  const every = rowsOf().flat().filter((button) => button && !button.disabled);
  every.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  table.onkeydown = (event) => {
    const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    const rows = rowsOf(), own = event.target, y = rows.findIndex((row) => row.includes(own));
    if ((!dx && !dy) || y < 0) return;
    event.preventDefault();
    const x = rows[y].indexOf(own);
    for (let step = 1; ; step++) {  // the next one that can be chosen
      const row = rows[y + step * dy], next = row && row[x + step * dx];
      if (!row || x + step * dx < 0 || x + step * dx >= row.length) return;
      if (!next || next.disabled) continue;
      own.tabIndex = -1; next.tabIndex = 0;
      next.focus();
      return;
    }
  };
  return table;
}

// The dialog
function openDialog(title, ...children) {
  $("dialog-title").textContent = title;
  show($("dialog-body"), ...children);
  if (!$("dialog").open) $("dialog").showModal();
  $("dialog").scrollTop = 0;
}
$("dialog-close").addEventListener("click", () => $("dialog").close());
$("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) $("dialog").close(); });
