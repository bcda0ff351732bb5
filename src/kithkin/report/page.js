"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const decibel = (x) => (x === null ? "\u221e" : x === undefined ? "\u2013" : x.toFixed(2)); // null: equal pictures
  const fourDigits = (x) => (Number.isFinite(x) ? x.toFixed(4) : "\u2013");
  const plainSort = new Intl.Collator(undefined, { numeric: true }).compare;

  // Text enters the page through text nodes and attributes alone, so no name can become markup.
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null).map((c) => (c instanceof Node ? c : String(c))));
    return node;
  }
  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  /* The evaluations, by data set and protocol, and then by condition. Values of two protocols are never put together. */
  const sets = new Map();
  for (const evaluation of data.evaluations) {
    const key = JSON.stringify([evaluation.dataset, evaluation.protocol.name]);
    if (!sets.has(key)) sets.set(key, { dataset: evaluation.dataset, protocol: evaluation.protocol, methods: [] });
    sets.get(key).methods.push(evaluation);
  }
  const groups = [];
  for (const set of sets.values()) {
    const conditions = new Set(set.methods.flatMap((e) => e.images.map((row) => row.condition)));
    for (const condition of conditions) {
      const methods = set.methods
        .map((e) => ({
          name: e.method,
          rows: new Map(e.images.filter((row) => row.condition === condition).map((row) => [row.image, row])),
        }))
        .filter((m) => m.rows.size);
      const images = [...new Set(methods.flatMap((m) => [...m.rows.keys()]))];
      const label = `${set.dataset}, ${condition} (${set.protocol.name})`;
      groups.push({ ...set, condition, methods, images, label });
    }
  }

  /* Values of a picture by a method; "input" is the picture before. */
  function valueOf(group, source, image, field = "psnr") {
    if (source === "input") {
      const method = group.methods.find((m) => m.rows.has(image));
      return method ? method.rows.get(image)[`${field}_input`] : undefined;
    }
    const row = group.methods.find((m) => m.name === source.slice(2))?.rows.get(image);
    return row ? row[field] : undefined;
  }
  const sourcesOf = (group) => [["input", "input"], ...group.methods.map((m) => [`m:${m.name}`, m.name])];

  function choice(label, options, chosen, onchange) {
    const select = el("select", { onchange: () => onchange(select.value) });
    for (const [value, text] of options) select.append(el("option", { value }, text));
    select.value = chosen;
    return el("label", {}, label, select);
  }

  /* A table that scrolls sideways by itself on small screens, below a line on what it shows. */
  function scrolled(label, about, table) {
    const region = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
    return [el("p", { class: "about" }, el("strong", {}, label), ...about), region];
  }

  function drawMeans() {
    for (const set of sets.values()) {
      const conditions = [...new Set(set.methods.flatMap((e) => Object.keys(e.means)))];
      const { name, psnr, window, summary } = set.protocol;
      const counts = new Set(set.methods.flatMap((e) => Object.values(e.means).map((mean) => mean.images)));
      const columns = ["PSNR", "SSIM", "s/MP", ...(counts.size > 1 ? ["pictures"] : [])];
      const head = el("tr", {}, el("th", { rowspan: 2, scope: "col" }, "method"));
      const below = el("tr");
      for (const condition of conditions) {
        head.append(el("th", { colspan: columns.length, scope: "colgroup", class: "group" }, condition));
        below.append(...columns.map((text, i) => el("th", { scope: "col", class: i ? "" : "first" }, text)));
      }
      const known = (condition) => set.methods.find((e) => e.means[condition]).means[condition];
      const body = el("tbody", {}, meanRow("input", conditions.map((c) => [known(c), null]), columns.length));
      for (const e of set.methods) {
        body.append(meanRow(e.method, conditions.map((c) => [e.means[c], best(set, c)]), columns.length));
      }
      const pictures = counts.size === 1 ? `, ${[...counts][0]} pictures` : "";
      const about = [`${pictures}. Protocol ${name}: ${summary ? `${summary}. ` : ""}PSNR ${psnr} in dB, SSIM ${window}.`];
      byId("means").append(...scrolled(set.dataset, about, el("table", {}, el("thead", {}, head, below), body)));
      byId("means").hidden = false;
    }
  }
  function best(set, condition) {
    const values = (field) => set.methods.map((e) => (e.means[condition] ? e.means[condition][field] ?? Infinity : -Infinity));
    return { psnr: Math.max(...values("psnr")), ssim: Math.max(...values("ssim")), alone: set.methods.length < 2 };
  }
  function meanRow(name, cells, width) {
    const input = cells.every(([, top]) => top === null);
    const row = el("tr", { class: input ? "input" : "" }, el("th", { scope: "row" }, name));
    for (const [mean, top] of cells) {
      const suffix = input ? "_input" : "";
      const mark = (field) => (mean && top && !top.alone && (mean[field] ?? Infinity) === top[field] ? "best" : "");
      const speed = mean?.seconds_per_megapixel;
      const texts = mean
        ? [decibel(mean[`psnr${suffix}`]), fourDigits(mean[`ssim${suffix}`]), input || !speed ? "" : speed.toFixed(2), mean.images]
        : ["\u2013", "", "", ""];
      const classes = [`first ${mark("psnr")}`, mark("ssim"), "", ""];
      row.append(...texts.slice(0, width).map((text, i) => el("td", { class: classes[i] }, text)));
    }
    return row;
  }

  function drawPublished() {
    for (const table of data.tables) {
      const head = el("tr", {}, ...table.columns.map((text) => el("th", { scope: "col" }, text)));
      const rows = table.rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell ?? "\u2013"))));
      const whole = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
      byId("published").append(...scrolled(table.title, [], whole));
      if (table.source) byId("published").append(el("p", { class: "source" }, `Source: ${table.source}`));
      byId("published").hidden = false;
    }
  }

  /* Axes: a scale from values to pixels, and round places to mark on it. */
  function scale(low, high, from, to) {
    const place = (x) => from + ((x - low) / (high - low || 1)) * (to - from);
    const step = niceStep((high - low) / 4);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i++) ticks.push(i * step);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return { place, text: (x) => x.toFixed(digits), ticks };
  }
  function niceStep(rough) {
    const power = 10 ** Math.floor(Math.log10(rough || 1));
    return [1, 2, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  }
  function range(values) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = (high - low) * 0.06 || 0.5;
    return [low - margin, high + margin];
  }
  function axes(root, box, x, y, names) {
    for (const t of x.ticks) {
      root.append(svg("line", { class: "axis", x1: x.place(t), x2: x.place(t), y1: box.top, y2: box.bottom }),
        svg("text", { x: x.place(t), y: box.bottom + 18, "text-anchor": "middle" }, x.text(t)));
    }
    for (const t of y.ticks) {
      root.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: y.place(t), y2: y.place(t) }),
        svg("text", { x: box.left - 8, y: y.place(t) + 4, "text-anchor": "end" }, y.text(t)));
    }
    root.append(svg("text", { x: box.right, y: box.bottom + 38, "text-anchor": "end" }, names[0]),
      svg("text", { x: 0, y: 12 }, names[1]));
  }
  /* Charts are drawn for the width that there is: scaled ones would have tiny letters on a telephone. */
  function drawn(holder, ratio, paint) {
    let last = 0;
    const draw = () => {
      const width = Math.floor(holder.clientWidth);
      if (!width || width === last) return;
      last = width;
      const height = Math.round(Math.max(240, Math.min(width * ratio, 560)));
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": holder.dataset.label ?? "chart" });
      paint(root, { left: 48, right: width - 12, top: 26, bottom: height - 44 });
      holder.querySelector("svg.plot")?.remove();
      root.classList.add("plot");
      holder.append(root);
    };
    new ResizeObserver(draw).observe(holder);
    draw();
  }

  const dashes = ["", "7 4", "2 3", "9 3 2 3", "12 5", "4 4"];
  const stroke = (i) => ({ stroke: `var(--c${i % 6})`, "stroke-width": 2, "stroke-dasharray": dashes[i % 6], fill: "none" });

  function drawCurves() {
    for (const curve of data.curves) {
      const series = curve.series.map((s) => ({ ...s, points: s.points.filter((p) => p[1] !== null) }))
        .filter((s) => s.points.length);
      if (!series.length) continue;
      const legend = el("ul", { class: "legend" });
      series.forEach((s, i) => legend.append(el("li", {}, svg("svg", { width: 28, height: 8, "aria-hidden": "true" },
        svg("line", { x1: 0, x2: 28, y1: 4, y2: 4, ...stroke(i) })), s.name)));
      const holder = el("div", { class: "chart", "data-label": `${curve.title}: ${curve.y} over ${curve.x}` });
      byId("curves").querySelector(".charts").append(el("figure", {}, el("figcaption", {}, curve.title), legend, holder));
      byId("curves").hidden = false;
      drawn(holder, 0.55, (root, box) => {
        const points = series.flatMap((s) => s.points);
        const x = scale(...range(points.map((p) => p[0])), box.left, box.right);
        const y = scale(...range(points.map((p) => p[1])), box.bottom, box.top);
        axes(root, box, x, y, [curve.x, curve.y]);
        series.forEach((s, i) => {
          const places = s.points.map((p) => `${x.place(p[0]).toFixed(1)},${y.place(p[1]).toFixed(1)}`);
          root.append(svg("polyline", { points: places.join(" "), ...stroke(i) }));
          if (s.points.length > 60) return;
          for (const p of s.points) {
            root.append(svg("circle", { cx: x.place(p[0]), cy: y.place(p[1]), r: 4, fill: `var(--c${i % 6})` },
              svg("title", {}, `${s.name}: ${curve.x} ${p[0]}, ${p[1].toFixed(2)}`)));
          }
        });
      });
    }
  }

  const state = { group: groups[0], left: "input", right: null, order: "worst", x: null, y: null, sort: null };

  function viewsOf(slider) {
    const views = new Map([["input", slider.before]]);
    for (const [name, uri] of Object.entries(slider.after)) views.set(`m:${name}`, uri);
    if (slider.target) views.set("target", slider.target);
    return views;
  }
  function drawSliders() {
    const group = state.group;
    const found = data.sliders.filter((s) => s.dataset === group.dataset && s.condition === group.condition);
    const section = byId("sliders");
    section.hidden = !found.length;
    if (!found.length) return;
    const first = `m:${group.methods[0].name}`;
    const options = [...sourcesOf(group), ...(found.some((s) => s.target) ? [["target", "target"]] : [])];
    const known = (value, other) => (options.some(([v]) => v === value) ? value : other);
    state.left = known(state.left, "input");
    state.right = known(state.right, first);
    const again = (field) => (value) => { state[field] = value; drawSliders(); focusOn(section, field); };
    section.querySelector(".choices").replaceChildren(
      named("left", choice("left", options, state.left, again("left"))),
      named("right", choice("right", options, state.right, again("right"))),
      named("order", choice("order", [["worst", "worst first"], ["best", "best first"], ["name", "by name"]], state.order, again("order"))));
    const by = group.methods[0].name;
    section.querySelector(".hint").textContent = found.length < group.images.length
      ? `The worst and the best of ${group.images.length} pictures, by the PSNR of ${by}. Drag, or use the arrow keys.`
      : `Ordered by the PSNR of ${by}. Drag, or use the arrow keys.`;
    const key = (s) => valueOf(group, first, s.image) ?? Infinity;
    const orders = { worst: (a, b) => key(a) - key(b), best: (a, b) => key(b) - key(a), name: (a, b) => plainSort(a.image, b.image) };
    section.querySelector(".cards").replaceChildren(...found.sort(orders[state.order]).map((s) => card(group, s, options)));
  }
  const named = (name, label) => { label.querySelector("select").dataset.field = name; return label; };
  const focusOn = (section, field) => section.querySelector(`[data-field="${field}"]`).focus();

  function card(group, slider, options) {
    const views = viewsOf(slider);
    const words = new Map(options);
    const [left, right] = [state.left, state.right].map((source) => ({ source, name: words.get(source), uri: views.get(source) }));
    const missing = [left, right].find((view) => !view.uri);
    if (missing) return el("div", { class: "card" }, el("div", { class: "note" }, `${slider.image}: not stored for ${missing.name}`));
    const picture = (view, kind) =>
      el("img", { src: view.uri, alt: `${slider.image}, ${slider.condition}: ${view.name}`, class: kind, draggable: "false" });
    const range = el("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50,
      "aria-label": `${slider.image}: ${left.name} left of the line, ${right.name} right of it` });
    const pair = el("div", { class: "pair" }, picture(right, ""), picture(left, "left"),
      el("span", { class: "tag l" }, left.name), el("span", { class: "tag r" }, right.name),
      el("span", { class: "knob", "aria-hidden": "true" }, "\u2194"), range);
    range.addEventListener("input", () => pair.style.setProperty("--at", `${range.value}%`));
    const values = [left, right].filter((view) => view.source !== "target")
      .map((view) => `${view.name} ${decibel(valueOf(group, view.source, slider.image))}`);
    const measured = values.length ? `${values.join(" \u2192 ")} dB` : "";
    const button = el("button", { type: "button", "aria-pressed": "false", title: "not scaled" }, "1:1");
    const whole = el("article", { class: "card" }, el("div", { class: "view" }, pair),
      el("div", { class: "note" }, el("div", {}, el("b", { title: slider.image }, slider.image), el("span", {}, measured)), button));
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(whole.classList.toggle("actual")));
    });
    return whole;
  }

  function drawScatter() {
    const group = state.group;
    const section = byId("scatter");
    const options = sourcesOf(group);
    const known = (value, other) => (options.some(([v]) => v === value) ? value : other);
    state.x = known(state.x, group.methods.length > 1 ? `m:${group.methods[1].name}` : "input");
    state.y = known(state.y, `m:${group.methods[0].name}`);
    const again = (field) => (value) => { state[field] = value; drawScatter(); focusOn(section, field); };
    section.querySelector(".choices").replaceChildren(
      named("y", choice("vertical", options, state.y, again("y"))), named("x", choice("horizontal", options, state.x, again("x"))));
    const words = new Map(options);
    const points = group.images
      .map((image) => ({ image, x: valueOf(group, state.x, image), y: valueOf(group, state.y, image) }))
      .filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y));
    const better = points.filter((p) => p.y > p.x).length;
    const worse = points.filter((p) => p.y < p.x).length;
    const mean = points.reduce((sum, p) => sum + p.y - p.x, 0) / points.length;
    const [up, across] = [words.get(state.y), words.get(state.x)];
    section.querySelector(".hint").textContent = points.length
      ? `${up} has the higher PSNR on ${better} of ${points.length} pictures (those above the dashed line), `
        + `${across} on ${worse}; the mean difference is ${mean.toFixed(2)} dB.`
      : "There are no pictures that both have a PSNR for.";
    const old = section.querySelector(".chart");
    const holder = el("div", { class: "chart", "data-label": `PSNR of ${words.get(state.y)} over PSNR of ${words.get(state.x)}, a point a picture` });
    old.replaceWith(holder);
    if (points.length) drawn(holder, 0.75, (root, box) => paintScatter(root, box, holder, points, words));
  }
  function paintScatter(root, box, holder, points, words) {
    const both = state.x !== "input" && state.y !== "input";
    const [xs, ys] = [points.map((p) => p.x), points.map((p) => p.y)];
    const spanX = range(both ? [...xs, ...ys] : xs);
    const spanY = both ? spanX : range(ys);
    const [x, y] = [scale(...spanX, box.left, box.right), scale(...spanY, box.bottom, box.top)];
    axes(root, box, x, y, [`PSNR of ${words.get(state.x)} (dB)`, `PSNR of ${words.get(state.y)} (dB)`]);
    const [low, high] = [Math.max(spanX[0], spanY[0]), Math.min(spanX[1], spanY[1])];
    if (low < high) root.append(svg("line", { class: "even", x1: x.place(low), y1: y.place(low), x2: x.place(high), y2: y.place(high) }));
    const tip = el("div", { class: "tip", hidden: "" });
    const hide = () => { tip.hidden = true; };
    for (const p of points) {
      const text = `${p.image}: ${words.get(state.y)} ${p.y.toFixed(2)} dB, ${words.get(state.x)} ${p.x.toFixed(2)} dB`;
      const show = () => {
        tip.textContent = text;
        tip.hidden = false;
        tip.style.left = `${Math.max(0, Math.min(x.place(p.x) + 10, box.right - tip.offsetWidth))}px`;
        tip.style.top = `${y.place(p.y) + 12}px`;
      };
      root.append(svg("circle", { class: "dot", cx: x.place(p.x), cy: y.place(p.y), r: 5.5, tabindex: points.length > 200 ? null : 0,
        role: "img", "aria-label": text, onpointerenter: show, onpointerleave: hide, onfocus: show, onblur: hide }));
    }
    holder.querySelector(".tip")?.remove();
    holder.append(tip);
  }

  function columnsOf(group) {
    const columns = [{ name: "picture", of: (image) => image, text: (v) => v, up: true },
      { name: "PSNR, input", of: (i) => valueOf(group, "input", i), text: decibel }];
    for (const field of ["psnr", "ssim"]) {
      for (const m of group.methods) {
        const text = field === "psnr" ? decibel : fourDigits;
        columns.push({ name: `${field.toUpperCase()}, ${m.name}`, of: (i) => m.rows.get(i)?.[field], text });
      }
    }
    return columns;
  }
  function drawRows() {
    const group = state.group;
    const columns = columnsOf(group);
    if (!state.sort || !columns.some((c) => c.name === state.sort.name)) state.sort = { name: columns[2].name, sign: 1 };
    const by = columns.find((c) => c.name === state.sort.name);
    const order = (a, b) => {
      const [u, v] = [by.of(a), by.of(b)];
      const less = typeof u === "string" ? plainSort(u, v) : (u ?? Infinity) - (v ?? Infinity) || 0;
      return state.sort.sign * less || plainSort(a, b);
    };
    const head = el("tr", {}, ...columns.map((c) => {
      const active = c === by ? (state.sort.sign > 0 ? "ascending" : "descending") : null;
      const sort = () => {
        state.sort = { name: c.name, sign: c === by ? -state.sort.sign : 1 };
        drawRows();
        byId("rows").querySelectorAll("th button")[columns.indexOf(c)].focus();
      };
      return el("th", { scope: "col", "aria-sort": active }, el("button", { type: "button", onclick: sort }, c.name));
    }));
    const rows = [...group.images].sort(order).map((image) => el("tr", {}, ...columns.map((c, i) => {
      const value = c.of(image);
      return i ? el("td", {}, value === undefined ? "\u2013" : c.text(value)) : el("th", { scope: "row", title: image }, image);
    })));
    const { psnr, window } = group.protocol;
    byId("rows").querySelector(".hint").textContent = `${group.label}: PSNR ${psnr} in dB, SSIM ${window}. A heading sorts.`;
    byId("rows").querySelector(".scroll").replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  function drawGroup() {
    drawSliders();
    drawScatter();
    drawRows();
  }

  const methods = [...new Set(data.evaluations.map((e) => e.method))];
  byId("summary").textContent = methods.length ? `${methods.join(", ")} on ${[...new Set(data.evaluations.map((e) => e.dataset))].join(", ")}` : "";
  drawMeans();
  drawPublished();
  drawCurves();
  if (groups.length) {
    byId("single").hidden = false;
    byId("bar").append(choice("Pictures of", groups.map((g, i) => [String(i), g.label]), "0", (i) => { state.group = groups[+i]; drawGroup(); }));
    for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
    drawGroup();
  }
})();
