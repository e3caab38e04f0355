// The viewer of filters. An image: {name, label, url, width, height, layers}; a layer: see `layer_data` in filters.py.
// The point is an output pixel of the layer; its window of the input lies around (y, x) * stride / scale.
function filterViewer(root, images) {
  const state = { image: 0, layer: 0, channel: 0, x: 0, y: 0, u: .5, v: .5 };
  const cache = new Map();
  const parts = { strip: el("div", { class: "strip", role: "group", "aria-label": "Image" }) };
  let layer = null;

  const layerSelect = el("select", { id: `${root.id}-layer`, onchange: () => choose({ layer: Number(layerSelect.value) }) });
  const headSelect = el("select", { id: `${root.id}-head`, onchange: () => choose({ channel: firstOfHead(Number(headSelect.value)) }) });
  const channelInput = el("input", { type: "range", id: `${root.id}-channel`, min: 0, step: 1, oninput: () => choose({ channel: layer.channels[Number(channelInput.value)] }) });
  const channelLabel = el("span", {});
  const headLabel = el("label", {}, "head", headSelect);
  const photo = el("img", { alt: "", draggable: "false" });
  const over = el("canvas", {});
  const stage = el("div", { class: "stage", tabindex: "0", role: "application", id: `${root.id}-stage`,
    "aria-label": "Image. Arrow keys move the point by one pixel of the layer's output, with Shift by five." }, photo, over);
  const caption = el("figcaption", {});
  const maps = el("div", { class: "maps" }), equation = el("div", { class: "equation" });
  const readout = el("div", { class: "readout", role: "status", "aria-live": "polite" });
  const note = el("p", { class: "note", style: "margin:12px 0" });
  show(root, parts.strip,
    el("div", { class: "controls" }, el("label", {}, "layer", layerSelect), headLabel, el("label", {}, channelLabel, channelInput)),
    el("div", { class: "viewer" },
      el("figure", { style: "margin:0" }, caption, stage), el("div", {}, equation, note, readout)), maps);

  images.forEach((image, i) => parts.strip.append(el("button", { type: "button", title: image.name, "aria-label": image.name,
    onclick: () => choose({ image: i }) }, el("img", { src: image.url, alt: "", class: image.width <= 64 ? "pixels" : null }))));

  function load() {
    const image = images[state.image], key = `${state.image}/${state.layer}`;
    if (!cache.has(key)) {
      const raw = image.layers[state.layer], open = (packed) => packed ? unpack(packed) : null;
      const [phases, heads, taps, H, W] = raw.spatial.shape;
      cache.set(key, { ...raw, phases, heads, taps, H, W, OH: H * raw.scale, OW: W * raw.scale,
        C: raw.count, channels: raw.channels || Array.from({ length: raw.count }, (_, c) => c),
        spatial: unpack(raw.spatial), channel: open(raw.channel), x: open(raw.x), y: open(raw.y) });
      if (cache.size > 24) cache.delete(cache.keys().next().value);
    }
    layer = cache.get(key);
  }
  const headOf = (c) => Math.floor(c / (layer.C / layer.heads));
  const firstOfHead = (head) => layer.channels.find((c) => headOf(c) === head) ?? layer.channels[0];

  function choose(change) {
    Object.assign(state, change);
    load();
    if ("channel" in change === false || !layer.channels.includes(state.channel)) {
      const near = layer.channels.filter((c) => c <= state.channel);
      state.channel = near.length ? near[near.length - 1] : layer.channels[0];
    }
    move(Math.floor(state.u * layer.OW), Math.floor(state.v * layer.OH), false);
    controls(); redraw();
  }
  function move(x, y, remember = true) {
    state.x = Math.min(layer.OW - 1, Math.max(0, x)); state.y = Math.min(layer.OH - 1, Math.max(0, y));
    if (remember) { state.u = (state.x + .5) / layer.OW; state.v = (state.y + .5) / layer.OH; }
  }

  // Numbers of the layer
  function place(x, y) {
    const s = layer.scale;
    return { phase: (y % s) * s + x % s, fx: Math.floor(x / s), fy: Math.floor(y / s) };
  }
  function spatialAt(x, y, head) {
    const { phase, fx, fy } = place(x, y), { taps, H, W, heads } = layer;
    return Array.from({ length: taps }, (_, t) => layer.spatial[(((phase * heads + head) * taps + t) * H + fy) * W + fx]);
  }
  function channelAt(x, y, c) {
    if (!layer.channel) return null;
    const from = (place(x, y).phase * layer.C + c) * layer.taps;
    return Array.from(layer.channel.subarray(from, from + layer.taps));
  }
  function combine(spatial, channel) {
    if (!channel) return spatial;
    return spatial.map((value, t) => layer.combine === "mul" ? value * channel[t] : value + channel[t]);
  }
  function windowAt(x, y, slot) {
    if (!layer.x) return null;
    const k = layer.k, [, XH, XW] = images[state.image].layers[state.layer].x.shape, { fx, fy } = place(x, y);
    return Array.from({ length: layer.taps }, (_, t) => {
      const row = fy * layer.stride + (Math.floor(t / k) - (k >> 1)) * layer.dilation;
      const column = fx * layer.stride + (t % k - (k >> 1)) * layer.dilation;
      return row < 0 || column < 0 || row >= XH || column >= XW ? 0 : layer.x[(slot * XH + row) * XW + column];
    });
  }
  const dot = (a, b) => a.reduce((sum, value, t) => sum + value * b[t], 0);
  const length = (a) => Math.sqrt(dot(a, a));

  // Maps of all filters, H x W. Where a layer upsamples, those of the phase that the point has: each phase has a branch of
  // its own, whose filters are not to be compared with those of another.
  function filterMaps() {
    const c = state.channel, head = headOf(c), { phase } = place(state.x, state.y), own = spatialAt(state.x, state.y, head);
    const { taps, spatial, H, W } = layer, plane = H * W, from = (phase * layer.heads + head) * taps * plane, size = length(own);
    const channel = channelAt(state.x, state.y, c), multiply = layer.combine === "mul";
    const similar = new Float32Array(plane), energy = new Float32Array(plane);
    for (let i = 0; i < plane; i++) {
      let product = 0, square = 0, whole = 0;
      for (let t = 0; t < taps; t++) {
        const value = spatial[from + t * plane + i];
        product += value * own[t]; square += value * value;
        whole += (channel ? multiply ? value * channel[t] : value + channel[t] : value) ** 2;
      }
      similar[i] = product / (Math.sqrt(square) * size || 1);
      energy[i] = Math.sqrt(whole);
    }
    const least = energy.reduce((a, value) => Math.min(a, value), Infinity), most = energy.reduce((a, value) => Math.max(a, value), 0);
    state.flat = most - least < 1e-3 * most;
    return { similar, energy, least, most };
  }

  function controls() {
    const image = images[state.image];
    [...parts.strip.children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.image));
    show(layerSelect, image.layers.map((l, i) => el("option", { value: i, selected: i === state.layer },
      `${l.name} · ${l.spatial.shape[4] * l.scale} × ${l.spatial.shape[3] * l.scale}`)));
    show(headSelect, Array.from({ length: layer.heads }, (_, h) => el("option", { value: h, selected: h === headOf(state.channel) }, `${h + 1} of ${layer.heads}`)));
    headLabel.hidden = layer.heads < 2; headLabel.style.display = layer.heads < 2 ? "none" : "";
    channelInput.max = layer.channels.length - 1; channelInput.value = layer.channels.indexOf(state.channel);
    channelLabel.textContent = `channel ${state.channel} (of 0 to ${layer.C - 1})` + (layer.channels.length < layer.C ? `, of which ${layer.channels.length} are here` : "");
    photo.src = image.url; photo.className = image.width <= 64 ? "pixels" : "";
    stage.style.aspectRatio = `${image.width} / ${image.height}`;
    show(caption, el("b", {}, image.name), image.label ? ` · ${image.label}` : "");
  }

  // Drawings
  const tap = (value) => Math.abs(value) < 9.995 ? value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−") : real(value, 0);
  function kernel(sign, title, kind, values, limit, unit) {
    const k = layer.k, ramp = ramps().diverging, side = 40;
    const cells = values.map((value, t) => {
      const shade = ramp(limit ? value / limit : 0), x = (t % k) * side, y = Math.floor(t / k) * side;
      return [svg("rect", { x, y, width: side, height: side, fill: paint(shade), stroke: color("line"), "stroke-width": 1 }),
        k <= 5 ? svg("text", { x: x + side / 2, y: y + side / 2 + 4, "text-anchor": "middle", style: `fill:${inkOn(shade)};font-size:${k > 3 ? 9.5 : 11.5}px` }, tap(value)) : null];
    });
    return el("figure", {}, el("figcaption", {}, sign ? el("span", { class: "sign" }, sign) : null, el("b", { class: kind }, title), el("br"), unit),
      svg("svg", { class: "kernel", viewBox: `0 0 ${k * side} ${k * side}`, role: "img", "aria-label": `${title}: ${values.map((v) => real(v, 3)).join(", ")}` }, cells));
  }
  function drawMap(title, detail, values, W, H, ramp, low, high) {
    const canvas = el("canvas", { width: W, height: H, style: "width:100%;image-rendering:pixelated" }), context = canvas.getContext("2d");
    const data = context.createImageData(W, H);
    for (let i = 0; i < W * H; i++) {
      const shade = ramp((values[i] - low) / (high - low || 1));
      data.data.set([shade[0], shade[1], shade[2], 255], 4 * i);
    }
    context.putImageData(data, 0, 0);
    const mark = el("canvas", { style: "position:absolute;inset:0;width:100%;height:100%" });
    const board = el("div", { class: "stage" }, canvas, mark);
    follow(board);
    const stops = Array.from({ length: 9 }, (_, i) => paint(ramp(i / 8)));
    const node = el("figure", {}, el("figcaption", {}, el("b", {}, title), el("br"), detail), board,
      el("div", { class: "scale" }, real(low, 2), el("i", { style: `background:linear-gradient(90deg,${stops})` }), real(high, 2)));
    node.mark = mark;
    return node;
  }
  const signed = (ramp) => (t) => ramp(2 * t - 1);  // of a map from -limit to limit
  function filterNodes() {
    const { similar, energy, least, most } = filterMaps(), { H, W } = layer, ramp = ramps();
    const which = layer.scale > 1 ? `, phase ${place(state.x, state.y).phase + 1} of ${layer.phases}` : "";
    return [
      drawMap("similarity to this pixel", `cosine of the spatial filters${which}`, similar, W, H, signed(ramp.diverging), -1, 1),
      drawMap("filter energy", `length, channel ${state.channel}${which}`, energy, W, H, ramp.map, least, most),
    ];
  }
  let mapNodes = [];
  function redrawMaps() {
    const { OH, OW } = layer, c = state.channel, slot = layer.channels.indexOf(c);
    mapNodes = filterNodes();
    if (layer.x) {
      const raw = images[state.image].layers[state.layer], [, XH, XW] = raw.x.shape;
      for (const [title, values, H, W] of [["input", layer.x, XH, XW], ["output", layer.y, OH, OW]]) {
        const part = values.subarray(slot * H * W, (slot + 1) * H * W);
        const limit = part.reduce((a, value) => Math.max(a, Math.abs(value)), 0);
        mapNodes.push(drawMap(`${title}, channel ${c}`, `${W} × ${H}`, part, W, H, signed(ramps().diverging), -limit, limit));
      }
    }
    show(maps, mapNodes);
  }
  function drawPoint(canvas, box) {
    const ratio = Math.min(3, devicePixelRatio || 1), { width, height } = canvas.getBoundingClientRect();
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const cw = width / layer.OW, ch = height / layer.OH, x = (state.x + .5) * cw, y = (state.y + .5) * ch;
    if (box) {  // the pixels of the input that the filter sees
      const { fx, fy } = place(state.x, state.y), s = layer.stride, ux = width / (layer.W * s), uy = height / (layer.H * s);
      const cx = (fx * s + .5) * ux, cy = (fy * s + .5) * uy, w = layer.k * layer.dilation * ux, h = layer.k * layer.dilation * uy;
      for (const [ink, wide] of [["#000", 4], ["#fff", 2]]) { context.strokeStyle = ink; context.lineWidth = wide; context.strokeRect(cx - w / 2, cy - h / 2, w, h); }
    }
    const r = box ? 4.5 : 4;
    for (const [ink, wide] of [["#000", 4.5], ["#fff", 2]]) { context.strokeStyle = ink; context.lineWidth = wide; context.beginPath(); context.arc(x, y, r, 0, 7); context.stroke(); }
  }
  function redraw() { redrawMaps(); redrawPoint(); }
  function redrawPoint() {
    const c = state.channel, head = headOf(c), slot = layer.channels.indexOf(c), { x, y } = state;
    const spatial = spatialAt(x, y, head), channel = channelAt(x, y, c), whole = combine(spatial, channel), seen = windowAt(x, y, slot);
    const largest = (values) => values.reduce((a, value) => Math.max(a, Math.abs(value)), 0);
    const row = [kernel("", "spatial filter", "spatial", spatial, largest(spatial), `of pixel ${x}, ${y}`)];
    if (channel) row.push(kernel(layer.combine === "mul" ? "×" : "+", "channel filter", "channel", channel, largest(channel), `of channel ${c}`),
      kernel("=", "combined", "combined", whole, largest(whole), "tap by tap"));
    if (seen) row.push(kernel("·", "input", "plain", seen, largest(seen), `around pixel ${x}, ${y}`));
    show(equation, row);
    note.textContent = `Every number is a tap of the ${layer.k} × ${layer.k} filter; orange is above zero, blue below; each grid has a scale of its own.`;
    const lines = [["pixel", `${x}, ${y} of ${layer.OW} × ${layer.OH}` + (layer.scale > 1 ? ` (phase ${place(x, y).phase + 1} of ${layer.phases})` : "")]];
    lines.push(["energy", real(length(whole)) + (state.flat ? " (the same everywhere: filter normalization)" : "")]);
    if (seen) {
      const given = layer.y[(slot * layer.OH + y) * layer.OW + x];
      lines.push(["output", `${real(given)} from the layer; ${real(dot(whole, seen))} is the sum of input × filter over the taps shown`]);
      readout.dataset.output = given; readout.dataset.sum = dot(whole, seen);
    }
    readout.dataset.spatial = JSON.stringify(spatial); readout.dataset.channel = JSON.stringify(channel); readout.dataset.combined = JSON.stringify(whole);
    readout.dataset.point = JSON.stringify({ x, y, channel: c, layer: layer.name });
    show(readout, el("dl", {}, lines.map(([term, text]) => [el("dt", {}, term), el("dd", {}, text)])));
    drawPoint(over, true);
    mapNodes.forEach((node) => drawPoint(node.mark, false));
  }
  // Similarity follows the point, too: drawn again with the next frame, in the same place, which the pointer may be over.
  let frame = 0;
  function moved() {
    redrawPoint();
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; refresh(); });
  }
  function refresh() {
    const fresh = filterNodes();
    fresh.forEach((node, i) => {
      const [old, canvas] = [mapNodes[i], node].map((each) => each.querySelector("canvas"));
      old.width = canvas.width; old.height = canvas.height;
      old.getContext("2d").drawImage(canvas, 0, 0);
      for (const part of ["figcaption", ".scale"]) mapNodes[i].querySelector(part).replaceWith(node.querySelector(part));
    });
  }
  function follow(board) {
    const at = (event) => {
      const box = board.getBoundingClientRect();
      move(Math.floor((event.clientX - box.left) / box.width * layer.OW), Math.floor((event.clientY - box.top) / box.height * layer.OH));
      moved();
    };
    board.addEventListener("pointermove", at);
    board.addEventListener("pointerdown", at);
  }
  follow(stage);
  stage.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 5 : 1, [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] || [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    move(state.x + dx, state.y + dy);
    moved();
  });
  onTheme(redraw);
  addEventListener("resize", () => redrawPoint());
  choose({ image: 0 });
  if (layer.y) {  // a channel with something to see in the middle
    const at = (slot) => Math.abs(layer.y[(slot * layer.OH + state.y) * layer.OW + state.x]), slots = layer.channels.map((_, i) => i);
    choose({ channel: layer.channels[slots.reduce((a, b) => at(b) > at(a) ? b : a, 0)] });
  }
}
