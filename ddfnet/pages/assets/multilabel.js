// The report of an evaluation with any number of labels an image. Items are images with a mistake, and some without; see
// multilabel_images.py. A label is, for an image, one of these:
const [OTHER, FOUND, MISSED, ALARM, NOTHING] = [0, 1, 2, 3, 4];
const KINDS = { [OTHER]: ["", ""], [FOUND]: ["✓ ", "correct"], [MISSED]: ["− ", "wrong"], [ALARM]: ["+ ", "wrong"] };
const items = Object.fromEntries(["label", "probability", "kind", "true", "missed", "alarms"].map((key) => [key, unpack(DATA.items[key])]));
const [ITEMS, width] = DATA.items.label.shape, rows = DATA.rows, near = unpack(DATA.cells);
const cells = new Map(rows.map((row) => [`${row.label},${row.label}`, row.positives - row.missed]));
for (let i = 0; i < near.length; i += 3) cells.set(`${near[i]},${near[i + 1]}`, near[i + 2]);
const NONE = K;  // behind the last label: no label was missed, none is a false alarm
const sizeOf = (a) => a === NONE ? DATA.nothing_missed : rows[a].positives;  // images of a row of the matrix

// The labels of an item that are one of some kinds, in the order of their probability
function labelsOf(i, ...kinds) {
  const list = [];
  for (let at = i * width; at < (i + 1) * width; at++) if (kinds.includes(items.kind[at])) list.push(items.label[at]);
  return list;
}
function probabilityOf(i, label) {
  for (let at = i * width; at < (i + 1) * width; at++) if (items.label[at] === label && items.kind[at] !== NOTHING) return items.probability[at];
  return NaN;
}
const itemsWith = (test) => Array.from({ length: ITEMS }, (_, i) => i).filter(test);

function shot(i) {
  const bars = [];
  const listed = (labels, total, join = " · ") => !labels.length ? `${count(total)} label${total === 1 ? "" : "s"}`  // none of them is among those kept
    : labels.map((label) => names[label]).join(join) + (total > labels.length ? ` and ${count(total - labels.length)} more` : "");
  for (let at = i * width; at < (i + 1) * width; at++) {
    if (items.kind[at] === NOTHING) continue;
    const [mark, kind] = KINDS[items.kind[at]], name = names[items.label[at]], p = items.probability[at], line = bar(p, kind || "muted");
    line.append(el("b", { class: "tick", style: `left:${100 * DATA.threshold}%` }));
    bars.push(el("span", { class: kind, title: name }, mark + name), line, el("span", { class: "num" }, percent(p)));
  }
  const own = labelsOf(i, FOUND, MISSED), total = items.true[i];
  const says = (title, labels, n, kind) => n ? el("div", {}, title, el("b", { class: kind }, listed(labels, n))) : null;
  return card(i, `An image of ${total ? listed(own, total, ", ") : "no label"}`,
    total ? says("true: ", own, total, "correct") : el("div", {}, "true: no label"),
    says("missed: ", labelsOf(i, MISSED), items.missed[i], "wrong"), says("false alarm: ", labelsOf(i, ALARM), items.alarms[i], "wrong"),
    items.missed[i] || items.alarms[i] ? null : el("div", {}, "no mistake"),
    el("div", { class: "top", style: "margin-top:5px" }, bars));
}

// A cell of the matrix: a was missed and b is a false alarm in the same image
function tell(a, b) {
  if (a === b) return a === NONE ? "no mistake" : `found: ${names[a]}`;
  const missed = a === NONE ? "nothing missed" : `missed: ${names[a]}`;
  return b === NONE ? `${missed}; no false alarm` : `${missed}; false alarm: ${names[b]}`;
}
function openCell(a, b) {
  const total = cells.get(`${a},${b}`) || 0;
  const list = itemsWith((i) => a === b && a !== NONE ? labelsOf(i, FOUND).includes(a)
    : (a === NONE ? !items.missed[i] : labelsOf(i, MISSED).includes(a)) && (b === NONE ? !items.alarms[i] : labelsOf(i, ALARM).includes(b)));
  openDialog(`${tell(a, b)}; ${count(total)} of ${count(sizeOf(a))} images`, gallery(list, total, shot));
}

// A label: its precision-recall curve and its mistakes
function openLabel(a) {
  const row = rows[a], by = (way) => (p, q) => way * (probabilityOf(p, a) - probabilityOf(q, a));
  const missed = itemsWith((i) => labelsOf(i, MISSED).includes(a)).sort(by(1)), alarms = itemsWith((i) => labelsOf(i, ALARM).includes(a)).sort(by(-1));
  const part = (title, list, total) => total ? [el("h3", { style: "margin-top:16px" }, title), gallery(list, total, shot)] : [];
  openDialog(names[a], el("p", { class: "note" }, `${count(row.positives)} of n = ${count(DATA.n)} images have it; predicted for ${count(row.predicted)}. Average precision ${percent(row.ap)}, `
      + `precision ${percent(row.precision)}, recall ${percent(row.recall)}, F1 ${percent(row.f1)} at the threshold ${DATA.threshold}.`),
    row.positives ? precisionRecall(a) : el("p", {}, "No image has this label: its average precision and its recall are not defined."),
    part(`Missed in ${count(row.missed)} of ${count(row.positives)}, the least probable first`, missed, row.missed),
    part(`False alarm in ${count(row.alarms)} of ${count(row.negatives)}, the most probable first`, alarms, row.alarms),
    row.missed + row.alarms ? null : el("p", { class: "empty" }, "No mistakes."));
}
function precisionRecall(a) {
  const row = rows[a];
  const list = row.found.map((found, i) => ({ p: row.probability[i], precision: found / row.chosen[i], recall: found / row.positives, f1: 2 * found / (row.positives + row.chosen[i]) }));
  const narrow = innerWidth < 560, W = narrow ? 320 : 520, left = 58, top = 12, w = W - left - 22, h = narrow ? 200 : 230;
  const chart = unitChart({ W, H: top + h + 42, left, top, w, h, x: "recall", y: "precision", low: top + h }), { X, Y } = chart;
  let path = "", from = 0;  // a step curve: the area below it is the average precision
  for (const { precision, recall } of list) { path += `${path ? "L" : "M"}${X(from)} ${Y(precision)}L${X(recall)} ${Y(precision)}`; from = recall; }
  const base = row.positives / DATA.n, dot = svg("circle", { r: 6, fill: "none", stroke: "var(--ink)", "stroke-width": 2.5 });
  const readout = el("p", { class: "note", role: "status", id: "curve-readout" });
  const slider = el("input", { type: "range", id: "curve-point", min: 0, max: list.length - 1, step: 1, oninput: () => move(Number(slider.value)) });
  function move(i) {
    const { p, precision, recall, f1 } = list[i];
    slider.value = i;
    dot.setAttribute("cx", X(recall)); dot.setAttribute("cy", Y(precision));
    readout.textContent = `Predicted from ${p ?? "NaN"} of the sigmoid on: precision ${percent(precision)}, recall ${percent(recall)}, F1 ${percent(f1)}. `
      + `The highest F1 is ${percent(row.best[1])}, from ${row.best[0] ?? "NaN"} on.`;
  }
  const board = chart.draw(`Precision against recall of ${names[a]}`, [
    svg("line", { x1: X(0), x2: X(1), y1: Y(base), y2: Y(base), stroke: "var(--muted)", "stroke-dasharray": "5 4" }),
    svg("path", { d: path, fill: "none", stroke: "var(--accent)", "stroke-width": 2.5 }),
    row.precision === null ? null : svg("rect", { x: X(row.recall) - 5, y: Y(row.precision) - 5, width: 10, height: 10, fill: "var(--wrong)" }), dot]);
  const follow = (event) => {
    const box = board.getBoundingClientRect(), v = ((event.clientX - box.left) * W / box.width - left) / w;
    move(list.reduce((best, point, i) => Math.abs(point.recall - v) < Math.abs(list[best].recall - v) ? i : best, 0));
  };
  board.addEventListener("pointermove", follow); board.addEventListener("pointerdown", follow);
  move(row.at ?? 0);
  const own = row.precision === null ? el("span", {}, `nothing reaches ${DATA.threshold}`) : key("var(--wrong)", `at the threshold ${DATA.threshold}`);
  return [el("div", { class: "legend" }, key("var(--accent)", list.length < row.positives ? `curve, ${list.length} points` : "curve"), own, el("span", {}, `dashed: precision of chance, ${percent(base)}`)),
    board, el("div", { class: "controls", style: "margin-bottom:2px" }, el("label", {}, "another threshold, the highest first", slider)), readout];
}

// The labels of the lowest F1
function drawTop() {
  if (!DATA.list.length) return;
  show($("top-shots"), DATA.top.map(shot));
  const line = (a) => { const row = rows[a]; return rowLink(() => openLabel(a), names[a], el("td", { class: "num" }, percent(row.f1), bar(row.f1, "accent")),
    el("td", { class: "num" }, `${count(row.missed)} of ${count(row.positives)}`), el("td", { class: "num" }, count(row.alarms))); };
  show($("top-list"), el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "label"), el("th", { class: "num" }, "F1"), el("th", { class: "num" }, "missed"), el("th", { class: "num" }, "false alarms"))),
    el("tbody", {}, DATA.list.map(line))));
}

drawTop();
const undefinedWithout = "not defined: no image has this label, or it is never predicted";
const fraction = (key, interval) => (r) => r[key] === null ? el("span", { title: undefinedWithout }, "–") : [percent(r[key]), bar(r[key], "accent", interval && r[`${key}_interval`])];
drawTable($("classes-body"), {
  word: "label", words: "labels", rows, open: openLabel, sorting: { column: 6, up: true },
  columns: [
    ["label", null, (r) => names[r.label]],
    ["images", "num", (r) => r.positives, (r) => count(r.positives), true],
    ["predicted", "num wide", (r) => r.predicted, (r) => count(r.predicted), true],
    ["average precision", "num", (r) => r.ap, fraction("ap")],
    ["precision", "num wide", (r) => r.precision, fraction("precision", true)],
    ["recall", "num wide", (r) => r.recall, fraction("recall", true)],
    ["F1", "num", (r) => r.f1, fraction("f1")],
  ],
});
drawMatrix($("matrix-body"), { rows: [...names, "(nothing missed)"], columns: [...names, "(no false alarm)"], axes: ["missed", "false alarm"], word: "label", words: "labels", size: sizeOf, cells, near, tell, open: openCell, start: DATA.list.length ? DATA.list[0] : 0 });
drawCalibration($("calibration-body"), { x: "probability", y: "fraction present", things: "decisions" });
if ($("mistakes-body")) show($("mistakes-body"), [["Missed labels, the least probable first", DATA.missed], ["False alarms, the most probable first", DATA.alarms]].filter(([, list]) => list.length)
  .map(([title, list]) => [el("h3", { style: "margin-top:12px" }, title), el("div", { class: "shots" }, list.map(shot))]));
if ($("filters-body")) filterViewer($("filters-body"), DATA.filters);
document.documentElement.dataset.ready = "true";
