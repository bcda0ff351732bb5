/* Which patches the network looks at: a place is chosen in the whole picture, then patches near it are asked about. */

import * as api from "/page/api.js";

const byId = (id) => document.getElementById(id);
const COLOURS = ["#ff8a3d", "#4fb8ff", "#ffe04a", "#3fd694", "#ff8ad8", "#b79bff"];

export function createNeighbors({ limits, models, say }) {
  const [canvas, places, hint, list] = ["canvas", "places", "neighbors-hint", "patches"].map(byId);
  const groups = { stage: byId("stages"), block: byId("blocks"), round: byId("rounds") };
  const stage = canvas.parentElement;
  const image = new Image();
  let picture = null;
  let found = null; // What the server found around a place, or null while a place is chosen.
  let cross = null; // The place that keys move, in pixels of the picture.
  let patch = 0;
  let waiting = null;

  const chosen = (name) => groups[name].querySelector("input:checked")?.value;

  function block() {
    return found.blocks.find((one) => one.stage === chosen("stage") && one.block === Number(chosen("block")));
  }

  /* The part of the picture that is shown, and the size of one of its pixels on the screen. */
  function view() {
    const [left, top, width, height] = found ? found.crop : [0, 0, picture.width, picture.height];
    const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    return { left, top, width, height, scale };
  }

  function draw() {
    if (!picture || !stage.clientWidth) return;
    const { left, top, width, height, scale } = view();
    canvas.style.width = `${width * scale}px`;
    canvas.style.height = `${height * scale}px`;
    canvas.width = Math.round(width * scale * devicePixelRatio);
    canvas.height = Math.round(height * scale * devicePixelRatio);
    const context = canvas.getContext("2d");
    const factor = canvas.width / width;
    context.imageSmoothingEnabled = factor < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, left, top, width, height, 0, 0, canvas.width, canvas.height);
    if (found) drawPatches(context, factor);
    else drawCross(context, factor);
  }

  function drawCross(context, factor) {
    const side = limits.neighbors_side * factor;
    const [x, y] = [cross.x * factor, cross.y * factor];
    const corner = (at, length) => Math.min(Math.max(at - side / 2, 0), Math.max(length - side, 0));
    const box = [corner(x, canvas.width), corner(y, canvas.height), Math.min(side, canvas.width), Math.min(side, canvas.height)];
    for (const [colour, line] of [["#000a", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * devicePixelRatio;
      context.strokeRect(...box);
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [0, 1]]) {
        const arm = 9 * devicePixelRatio;
        context.moveTo(x - dx * arm, y - dy * arm);
        context.lineTo(x + dx * arm, y + dy * arm);
      }
      context.stroke();
    }
  }

  /* What the patch looks at: index, the sum of its weights, the first round that found it, in its own chunk or before. */
  function looked() {
    const { candidates, weights, rounds, k, patch_side } = block();
    const each = candidates[patch].length / rounds;
    const sum = new Map();
    candidates[patch].forEach((index, i) => {
      const round = Math.floor(i / each);
      if (index < 0 || (chosen("round") !== "all" && round !== Number(chosen("round")))) return;
      const known = sum.get(index) || { index, weight: 0, round, chunk: false };
      known.weight += weights[patch][i];
      known.chunk ||= i % each < k;
      sum.set(index, known);
    });
    return { patches: [...sum.values()].sort((a, b) => b.weight - a.weight), side: patch_side };
  }

  function boxOf(index, side) {
    const columns = block().columns;
    return [(index % columns) * side, Math.floor(index / columns) * side, side, side];
  }

  function drawPatches(context, factor) {
    const { patches, side } = looked();
    const crop = found.crop;
    context.fillStyle = "#000000a0";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const most = Math.max(...patches.map((one) => one.weight));
    for (const one of patches) {
      const [x, y] = boxOf(one.index, side);
      // Where the network sees the picture extended, a patch reaches beyond it.
      const [w, h] = [Math.min(side, crop[2] - x), Math.min(side, crop[3] - y)];
      if (w <= 0 || h <= 0) continue;
      context.drawImage(image, crop[0] + x, crop[1] + y, w, h, x * factor, y * factor, w * factor, h * factor);
    }
    for (const one of [...patches].reverse()) {
      if (one.index !== patch) frame(context, boxOf(one.index, side).map((v) => v * factor), one, (1 + 3 * one.weight / most) * devicePixelRatio);
    }
    const own = boxOf(patch, side).map((v) => v * factor);
    for (const [colour, line] of [["#000", 6], ["#fff", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = Math.min(line * devicePixelRatio, (own[2] * line) / 12);
      context.strokeRect(...own);
    }
  }

  function frame(context, [x, y, w, h], { round, chunk }, thickness) {
    const line = Math.min(thickness, w / 6); // Small patches stay visible.
    context.strokeStyle = COLOURS[round % COLOURS.length];
    context.lineWidth = line;
    context.setLineDash(chunk ? [] : [5 * devicePixelRatio, 4 * devicePixelRatio]);
    context.strokeRect(x + line / 2, y + line / 2, w - line, h - line);
    context.setLineDash([]);
  }

  function drawList() {
    const { patches, side } = looked();
    const others = patches.filter((one) => one.index !== patch);
    const own = patches.find((one) => one.index === patch) || { index: patch, weight: 0, round: 0, chunk: true };
    list.replaceChildren(...[own, ...others].map((one) => item(one, side)));
    const { columns, patch_side } = block();
    const name = `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
    const strongest = others[0] ? ` The strongest other one counts ${percent(others[0].weight)}.` : "";
    say(`Patch in ${name} looks at ${others.length} others.${strongest}`);
    hint.textContent =
      `${found.by} Patches of ${patch_side} × ${patch_side} pixels. White: the patch in ${name}. Framed: what it looks at, the thicker the more; ` +
      `dashed: from the chunk before its own; a colour a round. Point at another patch, or use the arrow keys.`;
  }

  const percent = (weight) => (weight < 0.001 ? "< 0.1 %" : `${(weight * 100).toFixed(weight < 0.0095 ? 1 : 0)} %`);

  function item(one, side) {
    const [x, y] = boxOf(one.index, side);
    const crop = found.crop;
    const small = document.createElement("canvas");
    small.width = small.height = side;
    const [w, h] = [Math.min(side, crop[2] - x), Math.min(side, crop[3] - y)];
    if (w > 0 && h > 0) small.getContext("2d").drawImage(image, crop[0] + x, crop[1] + y, w, h, 0, 0, w, h);
    small.style.imageRendering = "pixelated";
    small.setAttribute("aria-hidden", "true");
    const own = one.index === patch;
    if (!own) {
      small.style.borderColor = COLOURS[one.round % COLOURS.length];
      small.style.borderStyle = one.chunk ? "solid" : "dashed";
    }
    const node = document.createElement("li");
    node.className = own ? "own" : "";
    node.append(small, percent(one.weight), own ? Object.assign(document.createElement("span"), { textContent: "itself" }) : "");
    return node;
  }

  function choices(name, values, first = values[0][0]) {
    const before = chosen(name);
    const kept = values.some(([value]) => value === before) ? before : first;
    groups[name].replaceChildren(
      groups[name].querySelector("legend"),
      ...values.map(([value, text]) => {
        const label = document.createElement("label");
        const input = Object.assign(document.createElement("input"), { type: "radio", name: `at-${name}`, value, checked: value === kept });
        const span = Object.assign(document.createElement("span"), { textContent: text });
        label.append(input, span);
        return label;
      }),
    );
  }

  /* After another stage, the patch that holds the middle of the one before. */
  function change(event) {
    if (!event.target.name.startsWith("at-")) return;
    patch = at(middle.x, middle.y);
    draw();
    drawList();
  }

  let middle = { x: 0, y: 0 };

  function at(x, y) {
    const { patch_side, columns, rows } = block();
    const [column, row] = [x, y].map((v) => Math.floor(v / patch_side));
    return Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
  }

  function lookAt(x, y) {
    const before = patch;
    middle = { x, y };
    patch = at(x, y);
    if (patch === before) return;
    draw();
    drawList();
  }

  async function find(x, y) {
    waiting?.abort();
    const own = (waiting = new AbortController());
    hint.textContent = "The network looks at this part of the picture …";
    say(hint.textContent);
    const { chosen, shown } = models();
    try {
      const answer = await api.neighbors(picture.file, { x, y, model: shown.name }, own.signal);
      const why = shown === chosen ? "" : `: ${chosen.name} has no attention`;
      found = { ...answer, by: `Shown by ${shown.name}${why}.` };
      const stages = [...new Set(answer.blocks.map((one) => one.stage))];
      // The second stage's patches are large enough to be recognised.
      choices("stage", stages.map((name) => [name, name]), stages[Math.min(1, stages.length - 1)]);
      choices("block", [...new Set(answer.blocks.map((one) => one.block))].map((n) => [String(n), String(n + 1)]));
      const rounds = Math.max(...answer.blocks.map((one) => one.rounds));
      choices("round", [["all", "all"], ...Array.from({ length: rounds }, (_, i) => [String(i), String(i + 1)])]);
      places.hidden = false;
      middle = { x: x - answer.crop[0], y: y - answer.crop[1] };
      patch = at(middle.x, middle.y);
      draw();
      drawList();
    } catch (error) {
      if (error.name === "AbortError") return;
      hint.textContent = error.message;
      say(error.message);
    }
  }

  function choosePlace() {
    waiting?.abort();
    found = null;
    places.hidden = true;
    list.replaceChildren();
    const side = limits.neighbors_side;
    hint.textContent =
      picture.width <= side && picture.height <= side
        ? "Click a place, or press Enter: the picture goes through the network, which shows what it looks at."
        : `Click a place, or move the cross with the arrow keys and press Enter. The ${side} × ${side} pixels around it go through the network, which shows what it looks at.`;
    draw();
  }

  function pixelOf(event) {
    const box = canvas.getBoundingClientRect();
    const { width, height } = view();
    const within = (value, length) => Math.min(Math.max(Math.floor(value), 0), length - 1);
    return { x: within(((event.clientX - box.left) / box.width) * width, width), y: within(((event.clientY - box.top) / box.height) * height, height) };
  }

  function onKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Enter" && !found) find(cross.x, cross.y);
    else if (event.key === "Escape" && found) choosePlace();
    else if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      if (found) {
        const { columns, rows, patch_side: side } = block();
        const column = Math.min(Math.max((patch % columns) + dx, 0), columns - 1);
        const row = Math.min(Math.max(Math.floor(patch / columns) + dy, 0), rows - 1);
        lookAt(column * side + side / 2, row * side + side / 2);
      } else {
        const step = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 50));
        cross = {
          x: Math.min(Math.max(cross.x + dx * step, 0), picture.width - 1),
          y: Math.min(Math.max(cross.y + dy * step, 0), picture.height - 1),
        };
        draw();
      }
    } else return;
    event.preventDefault();
  }

  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("pointermove", (event) => {
    if (!picture) return;
    const pixel = pixelOf(event);
    if (found) lookAt(pixel.x, pixel.y);
    else if (event.pointerType === "mouse") {
      cross = pixel;
      draw();
    }
  });
  canvas.addEventListener("click", (event) => {
    if (!picture) return;
    const pixel = pixelOf(event);
    if (found) lookAt(pixel.x, pixel.y);
    else find((cross = pixel).x, cross.y);
  });
  byId("neighbors").addEventListener("change", change);
  byId("whole").addEventListener("click", () => {
    choosePlace();
    canvas.focus({ preventScroll: true });
  });
  new ResizeObserver(draw).observe(stage);

  return {
    /* Begin anew with a picture {file, url, width, height, name}, unless it is shown already. */
    async show(next) {
      if (picture === next) return draw();
      image.src = next.url;
      await image.decode();
      picture = next;
      cross = { x: Math.floor(next.width / 2), y: Math.floor(next.height / 2) };
      canvas.setAttribute("aria-label", `Neighbours in ${next.name}`);
      choosePlace();
    },
    forget() {
      picture = null;
    },
  };
}
