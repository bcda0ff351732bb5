/* Before and after under a divider, fit to the frame or enlarged and moved about. All of it is drawn on one canvas of
   the frame's size: places are in its pixels, which are the screen's own, `scale` of them a pixel of the picture. */

const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const LARGEST = 8;
const STILL = 5; // Pixels that a finger at rest may move.
const HELD = 200; // Milliseconds after which a press is no tap.

const LUMA = [0.2126, 0.7152, 0.0722];

/* Bring the pixels `after` nearer to `before`, as kithkin.blending does: luma and chroma are the shares of the change in
   luminance and in colour that stay. Here both are the 8 bits of the screen. */
function blend(before, after, { luma, chroma }) {
  for (let i = 0; i < after.length; i += 4) {
    if (!after[i + 3]) {
      after.set(before.subarray(i, i + 4), i); // Not restored yet.
      continue;
    }
    const [red, green, blue] = [after[i] - before[i], after[i + 1] - before[i + 1], after[i + 2] - before[i + 2]];
    const bright = (luma - chroma) * (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue);
    after[i] = before[i] + chroma * red + bright;
    after[i + 1] = before[i + 1] + chroma * green + bright;
    after[i + 2] = before[i + 2] + chroma * blue + bright;
  }
}

/* `onZoom` is told "fit", or the scale; `onStep` -1 or 1 where arrow keys ask for another picture; `onLook` is called
   where another part of the picture is looked at. */
export function createViewer({ onZoom, onStep, onLook }) {
  const [frame, canvas, divider, hold] = ["compare", "viewer", "divider", "hold"].map(byId);
  const tags = [byId("tag-before"), byId("tag-after")];
  const context = canvas.getContext("2d");
  const layers = { before: null, after: null };
  let size = { url: null, width: 1, height: 1 };
  let zoom = "fit";
  let centre = { x: 0, y: 0 }; // Of what is seen of an enlarged picture, in its pixels.
  let part = 0.5; // Of the visible picture, left of the divider.
  let original = false;
  let shares = { luma: 1, chroma: 1 }; // Of the change that is seen.
  const mixing = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  let seenPixels = { view: null }; // Before and after as the frame shows them, until the view changes.

  /* Where the picture lies: its left upper corner, its sides, and whether they leave the frame. */
  function place() {
    const fit = Math.min(canvas.width / size.width, canvas.height / size.height, 4);
    const scale = zoom === "fit" ? fit : zoom;
    const [width, height] = [size.width * scale, size.height * scale];
    const start = (whole, length, middle) => Math.round(length <= whole ? (whole - length) / 2 : clamp(whole / 2 - middle * scale, whole - length, 0));
    const left = start(canvas.width, width, centre.x);
    const top = start(canvas.height, height, centre.y);
    return { scale, fit, left, top, width, height, larger: zoom !== "fit" && (width > canvas.width || height > canvas.height) };
  }

  /* Its visible part, in pixels of the frame. */
  function visible({ left, top, width, height }) {
    return { left: Math.max(left, 0), right: Math.min(left + width, canvas.width), top: Math.max(top, 0), bottom: Math.min(top + height, canvas.height) };
  }

  function draw() {
    if (frame.hidden || !canvas.width) return;
    const at = place();
    const seen = visible(at);
    const line = layers.after && !original ? seen.left + part * (seen.right - seen.left) : seen.right;
    context.clearRect(0, 0, canvas.width, canvas.height);
    drawLayer(context, layers.before, at, 0, line);
    if (line < seen.right) drawAfter(at, line);
    canvas.classList.toggle("larger", at.larger);
    drawDivider(seen);
  }

  function drawAfter(at, from) {
    const whole = !(layers.after instanceof HTMLCanvasElement); // Else tiles, which come one by one.
    if (shares.luma === 1 && shares.chroma === 1) {
      if (!whole) drawLayer(context, layers.before, at, from, canvas.width);
      drawLayer(context, layers.after, at, from, canvas.width);
      return;
    }
    const view = [at.left, at.top, at.width, at.height, canvas.width, canvas.height].join();
    if (seenPixels.view !== view) seenPixels = { view, before: pixels(layers.before, at), after: pixels(layers.after, at) };
    const mixed = new ImageData(new Uint8ClampedArray(seenPixels.after.data), canvas.width, canvas.height);
    blend(seenPixels.before.data, mixed.data, shares);
    mixing.putImageData(mixed, 0, 0);
    drawLayer(context, mixing.canvas, { left: 0, top: 0, width: canvas.width, height: canvas.height }, from, canvas.width);
  }

  function pixels(image, at) {
    Object.assign(mixing.canvas, { width: canvas.width, height: canvas.height });
    drawLayer(mixing, image, at, 0, canvas.width);
    return mixing.getImageData(0, 0, canvas.width, canvas.height);
  }

  function drawLayer(target, image, { left, top, width, height, scale }, from, to) {
    if (!image) return;
    target.save();
    target.imageSmoothingEnabled = scale < 1;
    target.imageSmoothingQuality = "high";
    target.beginPath();
    target.rect(Math.round(from), 0, Math.round(to) - Math.round(from), canvas.height);
    target.clip();
    target.drawImage(image, left, top, width, height);
    target.restore();
  }

  function drawDivider({ left, right, top, bottom }) {
    const pixel = (value) => value / devicePixelRatio;
    divider.style.left = `${pixel(left + part * (right - left))}px`;
    divider.style.top = `${pixel(top)}px`;
    divider.style.height = `${pixel(bottom - top)}px`;
    // Beside a picture that has no room for both.
    const room = pixel(right - left) - tags[0].offsetWidth - tags[1].offsetWidth > 30;
    const [first, second] = tags.map((tag) => (room ? 10 : -tag.offsetWidth - 6));
    tags[0].style.left = `${pixel(left) + first}px`;
    tags[1].style.right = `${pixel(canvas.width - right) + second}px`;
    for (const tag of tags) tag.style.top = `${pixel(bottom) - 34}px`;
    const percent = Math.round(part * 100);
    divider.setAttribute("aria-valuenow", percent);
    divider.setAttribute("aria-valuetext", `${percent} % before, ${100 - percent} % after`);
  }

  function fitCanvas() {
    if (!frame.clientWidth) return;
    const [width, height] = [frame.clientWidth, frame.clientHeight].map((side) => Math.round(side * devicePixelRatio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    draw();
  }

  /* Zooming and moving */

  const onCanvas = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    return { x: (clientX - box.left) * devicePixelRatio, y: (clientY - box.top) * devicePixelRatio };
  };
  const middle = () => ({ x: canvas.width / 2, y: canvas.height / 2 });

  /* The pixel of the picture that is under a place. */
  function under({ x, y }) {
    const { left, top, scale } = place();
    return { x: (x - left) / scale, y: (y - top) / scale };
  }

  /* "fit", or a scale; what is under the place `from` comes under `to`. */
  function zoomTo(value, from = middle(), to = from) {
    const { fit } = place();
    const pixel = under(from);
    // A picture that the frame enlarges may also be seen at 1:1.
    zoom = value === "fit" || (fit < 1 && value < fit * 1.001) ? "fit" : clamp(value, Math.min(fit, 1), LARGEST);
    const { scale } = place();
    centre = { x: pixel.x - (to.x - canvas.width / 2) / scale, y: pixel.y - (to.y - canvas.height / 2) / scale };
    keepInside();
    onZoom(zoom);
    onLook();
    draw();
  }

  /* So that moving back begins at once where the picture's edge was reached. */
  function keepInside() {
    const { scale } = place();
    const inside = (value, length, whole) => clamp(value, Math.min(whole / 2 / scale, length / 2), Math.max(length - whole / 2 / scale, length / 2));
    centre = { x: inside(centre.x, size.width, canvas.width), y: inside(centre.y, size.height, canvas.height) };
  }

  function move(dx, dy) {
    const { scale } = place();
    centre = { x: centre.x - dx / scale, y: centre.y - dy / scale };
    keepInside();
    onLook();
    draw();
  }

  canvas.addEventListener("wheel", (event) => {
    const { scale, fit } = place();
    if (zoom === "fit" && event.deltaY > 0) return; // The page scrolls on.
    event.preventDefault();
    const step = event.deltaMode ? 16 : 1; // Lines, in some browsers.
    zoomTo(Math.max(scale, fit) * Math.exp(-event.deltaY * step * (event.ctrlKey ? 0.01 : 0.002)), onCanvas(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoomTo(zoom === "fit" ? place().fit < 1 ? 1 : 2 * place().fit : "fit", onCanvas(event)));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { scale, larger } = place();
    const arrows = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    const zooms = { "+": scale * 1.25, "=": scale * 1.25, "-": scale / 1.25, 0: "fit", 1: 1, 2: 2 };
    if (event.key in zooms) zoomTo(zooms[event.key]);
    else if (event.key in arrows && larger) move(...arrows[event.key].map((step) => step * devicePixelRatio));
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") onStep(event.key === "ArrowLeft" ? -1 : 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  /* Pointers: one moves an enlarged picture, or, held still, shows the original; two zoom. */

  const pointers = new Map();
  let timer = 0;
  let began = null;

  function show(whole) {
    clearTimeout(timer);
    if (original === whole) return;
    original = whole;
    hold.setAttribute("aria-pressed", whole);
    draw();
  }

  const between = () => {
    const [a, b] = pointers.values();
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, onCanvas(event));
    began = onCanvas(event);
    show(false);
    if (pointers.size === 1 && layers.after) timer = setTimeout(show, HELD, true);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = onCanvas(event);
    if (pointers.size === 2) {
      const from = between();
      pointers.set(event.pointerId, now);
      const to = between();
      zoomTo((place().scale * to.distance) / from.distance, from, to);
      return;
    }
    if (Math.hypot(now.x - began.x, now.y - began.y) > STILL * devicePixelRatio) clearTimeout(timer);
    pointers.set(event.pointerId, now);
    if (place().larger) move(now.x - before.x, now.y - before.y);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      show(false);
    });
  }
  hold.addEventListener("pointerdown", () => show(true));
  for (const name of ["pointerup", "pointerleave", "pointercancel"]) hold.addEventListener(name, () => show(false));
  for (const node of [hold, canvas]) {
    node.addEventListener("keydown", (event) => {
      if (event.key !== " " || !layers.after) return;
      event.preventDefault();
      show(true);
    });
    node.addEventListener("keyup", () => show(false));
    node.addEventListener("blur", () => original && show(false));
  }

  /* The divider */

  function divide(clientX) {
    const { left, right } = visible(place());
    part = clamp((onCanvas({ clientX, clientY: 0 }).x - left) / (right - left), 0, 1);
    draw();
  }

  divider.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    divider.focus({ preventScroll: true });
    divider.setPointerCapture(event.pointerId);
  });
  divider.addEventListener("pointermove", (event) => divider.hasPointerCapture(event.pointerId) && divide(event.clientX));
  divider.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    part = clamp(part + steps[event.key], 0, 1);
    draw();
  });
  new ResizeObserver(fitCanvas).observe(frame);

  /* Load a layer, and keep the one before until then. */
  const wanted = {};
  async function load(name, source) {
    if (wanted[name] === source) return;
    wanted[name] = source;
    let loaded = source;
    if (typeof source === "string") {
      const image = Object.assign(new Image(), { src: source });
      loaded = await image.decode().then(() => image, () => null);
    }
    if (wanted[name] !== source) return;
    layers[name] = loaded;
    canvas.dataset[name] = loaded === source ? "" : "drawn";
    redraw();
  }

  function redraw() {
    seenPixels = { view: null };
    draw();
  }

  return {
    /* Show a picture {url, width, height, name} and what is restored of it: an address, a canvas, or null. */
    show(picture, restored) {
      if (size.url !== picture.url) {
        layers.before = layers.after = wanted.before = wanted.after = null;
        part = 0.5;
        size = picture;
        centre = { x: size.width / 2, y: size.height / 2 };
      }
      load("before", picture.url);
      load("after", restored);
      canvas.setAttribute("aria-label", restored ? `${picture.name}, before and after` : picture.name);
      for (const node of [divider, ...tags]) node.hidden = !restored;
      hold.disabled = !restored;
      fitCanvas();
    },
    /* Apply these shares {luma, chroma} of the change to what is shown. */
    blend(values) {
      if (values.luma === shares.luma && values.chroma === shares.chroma) return;
      shares = values;
      draw();
    },
    /* The pixel of the picture in the middle of what is seen. */
    place: () => (place().larger ? centre : { x: size.width / 2, y: size.height / 2 }),
    redraw,
    zoomTo,
  };
}
