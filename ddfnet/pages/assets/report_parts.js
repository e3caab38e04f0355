// The parts that the reports of one label and of several have in common; see page_parts.py.
const names = DATA.names, K = names.length, thumbs = new Map(DATA.thumbs);

// Of a table whose rows open something: the whole row for the pointer, its button for the keyboard.
const rowLink = (open, name, ...cells) => el("tr", { class: "link", onclick: open }, el("td", {}, el("button", { type: "button", class: "name" }, name)), cells);
const bar = (fraction, paint, interval) => el("div", { class: "bar", title: interval ? `95 % interval ${percent(interval[0])} to ${percent(interval[1])}` : null },
  el("i", { style: `width:${100 * (fraction || 0)}%;background:var(--${paint})` }),
  interval ? el("b", { style: `left:${100 * interval[0]}%;width:${100 * (interval[1] - interval[0])}%` }) : null);

// An image and what is said of it; `item` counts in DATA.items.
function card(item, alt, ...about) {
  const url = thumbs.get(item);
  return el("div", { class: "shot", "data-item": item },
    el("div", { class: "frame" }, url ? el("img", { src: url, alt, class: DATA.small ? "pixels" : null, loading: "lazy" }) : "not in this page"),
    about, el("div", { class: "file" }, DATA.items.name[item]));
}
function gallery(list, total, shot) {
  const most = 60, kept = [...list].sort((a, b) => thumbs.has(b) - thumbs.has(a)).slice(0, most), without = total - kept.length;
  return [kept.length ? el("div", { class: "shots" }, kept.map(shot)) : null,
    without > 0 ? el("p", { class: "note", style: "margin-top:10px" }, `${count(without)} ${kept.length ? "more " : ""}${without === 1 ? "is" : "are"} not shown here.`) : null];
}

// A table that sorts and filters. columns: [title, class, value (row) => what to sort by, cell (row) => what to show]; the
// first one is the name; a fifth element: the highest comes first. What is null has no place in the order: it is last.
function drawTable(body, { word, words, rows, columns, open, sorting }) {
  const status = el("span", { class: "note", role: "status" }), tableBody = el("tbody", {}), name = columns[0][2];
  let filter = "";
  const search = el("input", { type: "search", placeholder: "filter by name", id: `${word}-filter`, oninput: () => { filter = search.value.toLowerCase(); update(); } });
  const heads = columns.map(([title, kind], i) => el("th", { scope: "col", class: kind },
    el("button", { type: "button", onclick: () => { sorting.up = sorting.column === i ? !sorting.up : !columns[i][4]; sorting.column = i; update(); } }, title)));
  const table = el("table", {}, el("thead", {}, el("tr", {}, heads)), tableBody);
  function update() {
    const value = columns[sorting.column][2], way = sorting.up ? 1 : -1;
    const kept = rows.filter((row) => name(row).toLowerCase().includes(filter));
    kept.sort((p, q) => { const a = value(p), b = value(q); return (a === null) - (b === null) || way * (a < b ? -1 : a > b ? 1 : 0) || p.label - q.label; });
    heads.forEach((head, i) => {
      const own = i === sorting.column;
      head.setAttribute("aria-sort", own ? (sorting.up ? "ascending" : "descending") : "none");
      head.firstChild.textContent = columns[i][0] + (own ? (sorting.up ? " ▲" : " ▼") : "");
    });
    show(tableBody, kept.map((row) => rowLink(() => open(row.label), name(row), columns.slice(1).map(([, kind, , cell]) => el("td", { class: kind }, cell(row))))));
    arrowKeys(table);
    status.textContent = `${count(kept.length)} of ${count(rows.length)} ${words}`;
  }
  show(body, el("div", { class: "controls" }, el("label", {}, "filter", search), status),
    el("div", { class: "tall", tabindex: "0", role: "region", "aria-label": `Table of all ${words}. Arrow keys go from row to row.` }, table));
  update();
}

// A matrix of numbers of images: whole where it is small, else a window over a map of all. rows, columns: their names, equally
// many; axes: what rows and what columns are; word, words: what both are; size(a): images of a row; cells: Map "a,b" -> images; near: [a, b, images] of those off
// the diagonal; tell(a, b): a cell in words; open(a, b); start: a row to begin with.
const FEW = 21;
function drawMatrix(body, { rows, columns, axes, word, words, size, cells, near, tell, open, start }) {
  const N = rows.length, all = rows.map((_, i) => i), cell = (a, b) => cells.get(`${a},${b}`) || 0;
  const view = { rows: all, columns: all, size: matchMedia("(max-width: 560px)").matches ? 8 : 12 };
  function grid() {
    const ramp = ramps().single, short = view.columns.every((b) => columns[b].length < 4);
    const head = el("tr", {}, el("td", { class: "corner" }, `${axes[1]} →`, el("br"), `${axes[0]} ↓`), view.columns.map((b) => el("th", { scope: "col", title: columns[b] }, el("span", { class: short ? "short" : null }, columns[b]))));
    const lines = view.rows.map((a) => el("tr", {}, el("th", { scope: "row", title: rows[a] }, rows[a]), view.columns.map((b) => {
      const n = cell(a, b), shade = ramp(size(a) ? Math.sqrt(n / size(a)) : 0);
      return el("td", { class: a === b ? "self" : null }, el("button", { type: "button", disabled: !n, "data-cell": `${a},${b}`, onclick: () => open(a, b),
        "aria-label": `${tell(a, b)}: ${n} images`, title: `${tell(a, b)}: ${n} of ${size(a)}`,
        style: `background:${paint(shade)};color:${inkOn(shade)}` }, n ? (n > 999 ? `${Math.round(n / 1000)}k` : String(n)) : ""));
    })));
    return el("div", { class: "scroll" }, arrowKeys(el("table", { class: view.rows.length <= 12 ? "matrix roomy" : "matrix" }, el("thead", {}, head), el("tbody", {}, lines))));
  }
  if (N <= FEW) {
    const draw = () => show(body, grid());
    draw(); onTheme(draw);
    return;
  }
  const step = Math.ceil(N / 250), side = Math.ceil(N / step), map = new Float32Array(side * side);
  const put = (a, b, n) => { const i = Math.floor(a / step) * side + Math.floor(b / step); map[i] = Math.max(map[i], size(a) ? n / size(a) : 0); };
  for (const a of all) put(a, a, cell(a, a));
  for (let i = 0; i < near.length; i += 3) put(near[i], near[i + 1], near[i + 2]);
  const canvas = el("canvas", { width: side, height: side, id: "overview", tabindex: "0", role: "application", "aria-label": `All ${words}. Arrow keys move the window.`, style: "width:100%;image-rendering:pixelated;cursor:crosshair;border:1px solid var(--line);touch-action:pan-y" });
  const frame = el("div", { style: "position:absolute;border:2px solid var(--wrong);pointer-events:none" });
  const detail = el("div", {}), title = el("p", { class: "axis", role: "status" });
  const options = el("datalist", { id: "class-names" }, rows.map((name) => el("option", { value: name })));
  const search = el("input", { type: "search", list: "class-names", placeholder: `name of a ${word}`, id: "matrix-class", onchange: () => pick() });
  const wide = el("select", { onchange: () => { view.size = Number(wide.value); again(); } }, [8, 12, 16, 24].map((n) => el("option", { value: n, selected: n === view.size }, `${n} × ${n}`)));
  let again = () => {}, corner = null;
  function update() {
    show(detail, grid());
    frame.style.display = corner ? "block" : "none";
    if (corner) frame.style.cssText += `;left:${100 * corner[1] / N}%;top:${100 * corner[0] / N}%;width:${100 * view.size / N}%;height:${100 * view.size / N}%`;
  }
  function pick() {
    const label = rows.indexOf(search.value);
    if (label < 0) title.textContent = `No ${word} has exactly this name.`;
    else focus(label);
  }
  function around(a) {  // a row, and those it is confused with most
    const others = new Map(), add = (b, n) => others.set(b, (others.get(b) || 0) + n);
    for (let i = 0; i < near.length; i += 3) {
      if (near[i] === near[i + 1]) continue;
      if (near[i] === a) add(near[i + 1], near[i + 2]);
      if (near[i + 1] === a) add(near[i], near[i + 2]);
    }
    return [a, ...[...others].sort((p, q) => q[1] - p[1] || p[0] - q[0]).slice(0, view.size - 1).map(([label]) => label)];
  }
  function focus(label) {
    corner = null; again = () => focus(label); view.rows = view.columns = around(label); search.value = rows[label];
    title.textContent = `${rows[label]} and the ${words} it is confused with most, in both directions`;
    update();
  }
  function windowAt(row, column) {
    const clamp = (v) => Math.max(0, Math.min(N - view.size, Math.round(v)));
    corner = [clamp(row), clamp(column)]; again = () => windowAt(...corner);
    view.rows = all.slice(corner[0], corner[0] + view.size); view.columns = all.slice(corner[1], corner[1] + view.size);
    title.textContent = `rows ${corner[0]} to ${corner[0] + view.size - 1}, columns ${corner[1]} to ${corner[1] + view.size - 1} of ${count(N)} ${words}`;
    update();
  }
  const at = (event) => { const box = canvas.getBoundingClientRect(); windowAt((event.clientY - box.top) / box.height * N - view.size / 2, (event.clientX - box.left) / box.width * N - view.size / 2); };
  canvas.addEventListener("pointerdown", at);
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) at(event); });
  canvas.addEventListener("keydown", (event) => {
    const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    const [row, column] = corner || [0, 0];
    windowAt(row + dy * view.size / 2, column + dx * view.size / 2);
  });
  function drawAll() {
    const ramp = ramps().single, context = canvas.getContext("2d"), data = context.createImageData(side, side);
    for (let i = 0; i < map.length; i++) { const shade = ramp(map[i] ? .12 + .88 * Math.sqrt(map[i]) : 0); data.data.set([...shade, 255], 4 * i); }
    context.putImageData(data, 0, 0);
  }
  show(body, el("div", { class: "controls" }, el("label", {}, `around a ${word}`, search, options), el("label", {}, "window", wide)),
    el("div", { class: "columns map" }, el("div", {}, title, detail),
      el("div", {}, el("p", { class: "axis" }, `all ${count(N)} ${words}` + (step > 1 ? `, ${step} × ${step} a dot` : "") + ": press to look closer"), el("div", { style: "position:relative" }, canvas, frame))));
  drawAll(); onTheme(() => { drawAll(); update(); });
  focus(start);
}

// A chart of fractions over fractions, both from 0 to 100 %: its grid, and where things are.
function unitChart({ W, H, left, top, w, h, x, y, low }) {
  const X = (v) => left + v * w, Y = (v) => top + (1 - v) * h, parts = [];
  for (const v of [0, .2, .4, .6, .8, 1]) parts.push(svg("line", { x1: left, x2: left + w, y1: Y(v), y2: Y(v), stroke: "var(--line)" }),
    svg("text", { x: left - 7, y: Y(v) + 4, "text-anchor": "end" }, percent(v, 0)), svg("text", { x: X(v), y: low + 17, "text-anchor": "middle" }, percent(v, 0)));
  parts.push(svg("text", { x: left + w / 2, y: low + 34, "text-anchor": "middle" }, x), svg("text", { transform: `translate(14 ${top + h / 2}) rotate(-90)`, "text-anchor": "middle" }, y));
  return { X, Y, parts, draw: (label, rest, more) => svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", "aria-label": label, ...more }, parts, rest) };
}
const key = (fill, text) => el("span", {}, el("i", { style: `background:${fill}` }), text);

// Calibration in bins. x, y: what its axes are; things: what is counted.
function drawCalibration(body, { x: xName, y: yName, things }) {
  const { counts, accuracy, confidence } = DATA.calibration, bins = counts.length, most = Math.max(...counts), narrow = innerWidth < 560;
  const W = narrow ? 340 : 640, H = narrow ? 420 : 430, left = 66, top = 12, w = W - left - 26, h = narrow ? 240 : 262, top2 = top + h + 44, h2 = 62;
  const chart = unitChart({ W, H, left, top, w, h, x: xName, y: yName, low: top2 + h2 }), { X, Y } = chart, parts = [];
  const readout = el("p", { class: "note", role: "status" }, "Choose a bar for its numbers, or use the arrow keys.");
  const title = xName[0].toUpperCase() + xName.slice(1), tells = [], marks = [];
  let own = -1;
  counts.forEach((n, i) => {
    const at = X(i / bins) + 1, wide = w / bins - 2, tall = most ? Math.max(n ? 1 : 0, n / most * h2) : 0;
    if (n) parts.push(svg("rect", { x: at, y: Y(accuracy[i]), width: wide, height: h * accuracy[i], fill: "var(--correct)" }),
      svg("line", { x1: at - 1, x2: at + wide + 1, y1: Y(confidence[i]), y2: Y(confidence[i]), stroke: "var(--wrong)", "stroke-width": 4 }));
    parts.push(svg("rect", { x: at, y: top2 + h2 - tall, width: wide, height: tall, fill: "var(--muted)" }));
    if (n && !narrow) parts.push(svg("text", { x: at + wide / 2, y: top2 + h2 - tall - 4, "text-anchor": "middle", style: "font-size:10.5px" }, n > 9999 ? `${Math.round(n / 1000)}k` : count(n)));
    const range = `${percent(i / bins, 0)} to ${percent((i + 1) / bins, 0)}`;
    const mark = svg("rect", { x: at - 1, y: top, width: wide + 2, height: top2 + h2 - top, fill: "transparent" });
    const tell = () => {
      if (marks[own]) marks[own].setAttribute("stroke", "none");
      own = i; mark.setAttribute("stroke", "var(--muted)");
      readout.textContent = `${title} ${range}: ` + (n ? `${count(n)} ${things}, ${yName} ${percent(accuracy[i])}, mean ${xName} ${percent(confidence[i])}.` : `no ${things}.`);
    };
    mark.addEventListener("pointerenter", tell); mark.addEventListener("click", tell);
    tells.push(tell); marks.push(mark);
  });
  const onkeydown = (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    tells[Math.min(bins - 1, Math.max(0, own + way))]();
  };
  parts.push(svg("line", { x1: X(0), y1: Y(0), x2: X(1), y2: Y(1), stroke: "var(--muted)", "stroke-dasharray": "5 4", style: "pointer-events:none" }), svg("text", { x: left, y: top2 - 14 }, things),
    svg("text", { x: left - 7, y: top2 + 5, "text-anchor": "end" }, most > 9999 ? `${Math.round(most / 1000)}k` : count(most)), svg("text", { x: left - 7, y: top2 + h2 + 3, "text-anchor": "end" }, "0"));
  show(body, el("div", { class: "legend", style: "margin-bottom:8px" }, key("var(--correct)", `${yName} in the bin`), key("var(--wrong)", `mean ${xName} of the bin`), el("span", {}, "dashed: perfect calibration")),
    chart.draw(`${yName} against ${xName}. Left and right: from bar to bar.`, [parts, marks], { tabindex: "0", onkeydown }), readout);
}
