/* The page: pictures that were added, one after the other to the server and back, and what is shown of them. */

import * as api from "/page/api.js";
import { createNeighbors } from "/page/neighbors.js";
import { createViewer } from "/page/viewer.js";

const byId = (id) => document.getElementById(id);
const say = (sentence) => (byId("status").textContent = sentence);
const wait = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

// Text enters the page as text alone, so no name can become markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const LARGEST_CANVAS = 16e6; // Pixels that every browser has.
// Seconds for which an answer is waited for: the server keeps a job for longer that nobody asks about.
const PATIENCE = 120;

const pictures = [];
let batch = []; // What was asked for since the page last had nothing to do.
let current = null;
let about;
let viewer;
let neighbors;

const option = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
const AMOUNTS = ["luma", "chroma", "detail"];
const share = (name) => Number(byId(name).value) / 100;
const modelOf = (name) => about.models.find((model) => model.name === name);
// Grain and colour speckle are noise; detail can be told from noise alone.
const isNoise = (model) => !["derain", "deblur"].includes(modelOf(model).task);

/* What the server restores, in full: strength, luma and chroma are applied here, to what is shown, and by the server
   to what is downloaded. */
const asked = () => ({ model: option("model"), preset: "strong", detail: isNoise(option("model")) ? share("detail") : 0 });

/* What is chosen for a result of this model, as the server takes it. */
function amounts(model) {
  const noise = isNoise(model) ? AMOUNTS.map((name) => [name, share(name)]) : [];
  return { strength: share("strength"), ...Object.fromEntries(noise) };
}

/* The shares of the change in luminance and in colour that are seen. */
function shares(model) {
  const { strength, luma = 1, chroma = 1 } = amounts(model);
  return { luma: strength * luma, chroma: strength * chroma };
}

/* The chosen model, and the one that shows neighbours: the first with attention where the chosen one has none. */
function models() {
  const chosen = modelOf(option("model"));
  return { chosen, shown: chosen.attention ? chosen : about.models.find((model) => model.attention) };
}

const waits = (picture) => ["new", "failed", "cancelled"].includes(picture.state) && picture.taken;
const active = ({ state }) => state === "waiting" || state === "working";
const unsaved = (picture) => active(picture) || (picture.result && !picture.result.saved);

/* Adding */

function add(files) {
  const added = [...files].map((file) => {
    const picture = { file, name: file.name || "pasted.png", state: "opening", url: null, taken: false, fraction: 0, result: null, tiles: null };
    pictures.push(picture);
    open(picture);
    return picture;
  });
  if (!added.length) return;
  if (!current || current.state === "failed") current = added[0];
  say(added.length === 1 ? `${added[0].name} was added.` : `${added.length} pictures were added.`);
  draw();
}

// What the server reads, by the first bytes; of anything else it is asked, whether or not the browser shows it.
const KNOWN = /^(\x89PNG|\xff\xd8\xff|BM|RIFF[^]{4}WEBP)/;

async function open(picture) {
  const { megabytes, megapixels } = about.limits;
  try {
    if (picture.file.size > megabytes * 1e6) {
      throw new Error(`${picture.name}: is larger than the ${megabytes} MB that this server takes; crop it or scale it down first.`);
    }
    const start = new Uint8Array(await picture.file.slice(0, 12).arrayBuffer());
    try {
      if (!KNOWN.test(String.fromCharCode(...start))) throw new Error("unknown");
      await measure(picture, URL.createObjectURL(picture.file));
    } catch {
      // What this browser can't show, such as TIFF, the server may read: a restoration of strength 0 is the picture.
      await measure(picture, URL.createObjectURL((await restored(picture, { model: option("model"), strength: 0 })).blob));
    }
    if (picture.width * picture.height > megapixels * 1e6) {
      const { width, height } = picture;
      throw new Error(`${picture.name}: is ${width} x ${height} pixels large, more than the ${megapixels} megapixels that this server takes; crop it or scale it down first.`);
    }
    Object.assign(picture, { state: "new", taken: true });
  } catch (error) {
    fail(picture, error);
  }
  draw();
}

async function measure(picture, url) {
  const image = new Image();
  image.src = url;
  try {
    await new Promise((resolve, reject) => ((image.onload = resolve), (image.onerror = reject)));
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
  Object.assign(picture, { url, width: image.naturalWidth, height: image.naturalHeight });
}

function remove(picture) {
  const at = pictures.indexOf(picture);
  pictures.splice(at, 1);
  cancel(picture);
  for (const url of [picture.url, picture.result?.url]) if (url) URL.revokeObjectURL(url);
  if (picture === current) {
    current = pictures[Math.min(at, pictures.length - 1)] || null;
    neighbors.forget();
  }
  say(`${picture.name} was removed.`);
  draw();
  (byId("strip").querySelector("[aria-current]") || byId("choose")).focus();
}

/* The picture before or after the current one, round and round. */
function step(by) {
  if (pictures.length < 2) return;
  choose(pictures.at((pictures.indexOf(current) + by) % pictures.length));
  say(`${current.name}, ${STATES[current.state](current)}`);
}

function choose(picture) {
  current = picture;
  bringDetail();
  draw();
}

/* Detail is told by the server, which has kept the network's work, so it is asked as soon as another one is chosen. */
function bringDetail() {
  const result = current?.result;
  if (result && !active(current) && result.model === option("model") && result.detail !== asked().detail) enqueue([current]);
}

/* Restoring: one picture at a time goes to the server, so that others have their turn. */

function enqueue(list) {
  const idle = !batch.length;
  for (const picture of list) {
    if (!picture.taken || active(picture)) continue;
    Object.assign(picture, { state: "waiting", wanted: asked(), problem: null, fraction: 0 });
    if (!batch.includes(picture)) batch.push(picture);
  }
  draw();
  if (idle) work();
}

async function work() {
  for (let picture; (picture = batch.find((one) => one.state === "waiting")); ) {
    Object.assign(picture, { state: "working", text: "Sending …", began: 0, left: 0 });
    draw();
    try {
      const started = performance.now();
      const answer = await restored(picture, { ...picture.wanted, view: placeOf(picture) });
      if (picture.result) URL.revokeObjectURL(picture.result.url);
      const seconds = (performance.now() - started) / 1000;
      picture.result = { ...answer, ...picture.wanted, url: URL.createObjectURL(answer.blob), seconds };
      picture.state = "done";
      say(`${picture.name} is restored.`);
    } catch (error) {
      fail(picture, error);
    }
    picture.tiles = null;
    draw();
  }
  batch = [];
  draw();
}

/* The pixel around which a picture is restored first: where it is looked at, or its middle. */
function placeOf(picture) {
  const { x, y } = picture === current ? viewer.place() : { x: picture.width / 2, y: picture.height / 2 };
  return [x, y].map(Math.floor).join();
}

/* What the server makes of a picture, or of anything with its `file`. */
async function restored(picture, fields) {
  const { signal } = (picture.control = new AbortController());
  for (let tries = 1; ; tries++) {
    // The page names the job, so that it finds it again, and can give it up, where the answer was lost.
    const id = (picture.job = api.newId());
    try {
      let job = await patiently(picture, signal, () => api.submit(picture.file, { ...fields, id }, signal));
      while (job.state === "queued" || job.state === "running") {
        note(picture, job);
        if (job.tiles.length) drawTiles(picture, id, job.tiles);
        await wait(0.25, signal);
        job = await patiently(picture, signal, () => api.state(id, signal));
      }
      return await patiently(picture, signal, () => api.result(id, signal));
    } catch (error) {
      if (error.offline) api.cancel(id);
      // The server knows nothing of it: it was started anew, or the result was lost on its way.
      if (error.status !== 404 || tries === 3) throw error;
    } finally {
      picture.job = null;
    }
  }
}

/* Ask again where the queue is full, and where no answer came, for a while. */
async function patiently(picture, signal, action) {
  const until = performance.now() + PATIENCE * 1000;
  for (let pause = 0.5; ; pause = Math.min(2 * pause, 15)) {
    let seconds = pause;
    try {
      return await action();
    } catch (error) {
      if (!error.retryAfter && (!error.offline || performance.now() > until)) throw error;
      if (error.retryAfter) seconds = Math.min(error.retryAfter, 20);
      const why = error.retryAfter ? "The server is busy." : "The server does not answer.";
      picture.text = `${why} Trying again in ${Math.ceil(seconds)} s.`;
    }
    drawPanel();
    await wait(seconds, signal);
  }
}

/* Draw the finished tiles that are not drawn yet. They are restored in full and replaced by the whole picture. */
function drawTiles(picture, id, places) {
  const { width, height } = picture;
  if (picture.tiles?.id !== id) {
    const shrunk = Math.min(1, Math.sqrt(LARGEST_CANVAS / (width * height)));
    const canvas = Object.assign(document.createElement("canvas"), { width: Math.ceil(width * shrunk), height: Math.ceil(height * shrunk) });
    picture.tiles = { id, canvas, count: 0 };
  }
  const { tiles } = picture;
  const context = tiles.canvas.getContext("2d");
  context.setTransform(tiles.canvas.width / width, 0, 0, tiles.canvas.height / height, 0, 0);
  for (; tiles.count < places.length; tiles.count++) {
    const place = places[tiles.count];
    api.tile(id, tiles.count).then(createImageBitmap).then((image) => {
      context.drawImage(image, ...place);
      if (picture === current) viewer.redraw();
    }).catch(() => {}); // The picture is finished, or given up.
  }
  if (picture === current) draw();
}

const duration = (seconds) => (seconds < 1 ? "a moment" : seconds < 90 ? `about ${Math.round(seconds)} s` : `about ${Math.round(seconds / 60)} min`);

function note(picture, { state, ahead, fraction, eta_seconds: eta }) {
  picture.left = eta;
  if (state === "queued") {
    picture.text = `${ahead === 1 ? "One picture is" : `${ahead} pictures are`} before this one; ${duration(eta)} in all`;
    if (!ahead) picture.text = "Starting …";
  } else {
    picture.began ||= performance.now();
    const elapsed = (performance.now() - picture.began) / 1000;
    // Between two tiles the bar follows the clock.
    const guess = Math.min(elapsed / (elapsed + eta + 0.001), 0.99);
    picture.fraction = Math.max(picture.fraction, fraction, guess);
    picture.text = fraction === 1 ? "Writing the PNG …" : null;
  }
  drawPanel();
  drawStrip();
}

const area = (list, share = () => 1) => list.reduce((sum, one) => sum + one.width * one.height * share(one), 0);

/* The finished share of what was asked for, by pixels, and a sentence on it. */
function overall() {
  const share = area(batch, (one) => (active(one) ? one.fraction : 1)) / area(batch);
  const working = batch.find((one) => one.state === "working");
  if (working?.text && batch.length === 1) return { share, sentence: working.text };
  const parts = [`${Math.round(share * 100)} %`];
  if (batch.length > 1) parts.unshift(`${batch.filter((one) => !active(one)).length} of ${batch.length}`);
  if (working?.text) parts.push(working.text);
  else if (working) {
    // Those that wait take as long a pixel as the one at work.
    const seconds = (performance.now() - working.began) / 1000 + working.left;
    const waiting = area(batch.filter((one) => one.state === "waiting")) / area([working]);
    parts.push(`${duration(working.left + waiting * seconds)} left`);
  }
  return { share, sentence: parts.join(", ") };
}

function cancel(picture) {
  picture.control?.abort(new DOMException("cancelled", "AbortError"));
  if (picture.job) api.cancel(picture.job);
  if (picture.state === "waiting") picture.state = "cancelled";
  if (!pictures.includes(picture)) batch = batch.filter((one) => one !== picture);
}

function fail(picture, error) {
  const stopped = error.name === "AbortError";
  picture.state = stopped ? "cancelled" : "failed";
  picture.problem = stopped ? null : error.message;
  say(stopped ? `${picture.name} was cancelled.` : error.message);
}

/* Drawing */

const STATES = {
  opening: () => "opening",
  new: () => "ready",
  waiting: () => "waiting",
  working: (picture) => `${Math.round(picture.fraction * 100)} %`,
  done: () => "restored",
  failed: () => "failed",
  cancelled: () => "cancelled",
};

function draw() {
  const shown = Boolean(current?.url);
  const how = byId("how");
  byId("empty").hidden = shown;
  byId("bar").hidden = !shown;
  byId("compare").hidden = how.hidden = !shown;
  if (shown) {
    byId("caption").textContent = `${current.name} · ${current.width} × ${current.height}`;
    byId("steps").hidden = pictures.length < 2;
    byId("position").textContent = `${pictures.indexOf(current) + 1} of ${pictures.length}`;
    viewer.show(current, current.tiles?.canvas || current.result?.url || null);
    viewer.blend(shares((active(current) ? current.wanted : current.result || asked()).model));
    if (how.open && models().shown) neighbors.show(current).catch(() => say("The picture can't be shown."));
  }
  drawStrip();
  drawPanel();
}

function drawStrip() {
  const strip = byId("strip");
  strip.hidden = !pictures.length;
  // Nodes are kept, so that the focus stays where it is while states change.
  for (const picture of pictures) {
    picture.node ||= stripItem(picture);
    const { node } = picture;
    const state = STATES[picture.state](picture);
    node.item.className = picture.state;
    if (node.state.textContent !== state) node.state.textContent = state;
    node.pick.toggleAttribute("aria-current", picture === current);
    if (picture.url && !node.image.src) {
      node.image.src = picture.url;
      node.thumb.replaceChildren(node.image);
    }
  }
  const wanted = [...pictures.map((picture) => picture.node.item), addItem];
  if (wanted.length !== strip.children.length || wanted.some((node, i) => strip.children[i] !== node)) strip.replaceChildren(...wanted);
}

function stripItem(picture) {
  const image = el("img", { alt: "" });
  const thumb = el("span", { class: "thumb" }, el("span", {}, picture.name));
  const state = el("span", { class: "state" });
  const pick = el("button", { type: "button", class: "pick", onclick: () => choose(picture), title: picture.name }, thumb, el("span", { class: "unseen" }, `${picture.name}, `), state);
  const gone = el("button", { type: "button", class: "remove", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) }, "×");
  return { item: el("li", {}, pick, gone), pick, image, thumb, state };
}

const addItem = el("li", {}, el("button", { type: "button", class: "add", onclick: () => byId("files").click() }, "Add"));

function drawOptions() {
  for (const name of ["strength", ...AMOUNTS]) byId(`${name}-shown`).textContent = `${byId(name).value} %`;
  byId("noise").hidden = !isNoise(option("model"));
  const preset = shownPreset();
  for (const input of byId("presets").querySelectorAll("input")) input.checked = input.value === preset;
}

function drawPanel() {
  const working = batch.some(active);
  const [go, all, cancelling] = ["go", "go-all", "cancel"].map(byId);
  const held = [go, all].includes(document.activeElement);
  go.disabled = !current?.taken || active(current);
  const again = current?.result?.model === option("model");
  go.textContent = again ? "Restore again" : "Restore";
  go.classList.toggle("again", again && !go.disabled);
  const left = pictures.filter(waits).length;
  all.hidden = left < 2;
  all.textContent = `Restore all ${left}`;
  const leaving = !working && document.activeElement === cancelling;
  byId("progress").hidden = !working;
  if (leaving) go.focus();
  // What was pressed can't be pressed now; the focus goes to what can.
  if (held && (go.disabled || all.hidden)) (working ? cancelling : go).focus();
  document.title = [working && drawProgress(), current?.name, "kithkin"].filter(Boolean).join(" · ");
  byId("problem").hidden = !current?.problem;
  const problem = byId("problem").firstElementChild;
  if (problem.textContent !== (current?.problem || "")) problem.textContent = current?.problem || "";
  drawResult();
}
/* Draws the bar, and returns the percentage. */
function drawProgress() {
  const { share, sentence } = overall();
  const percent = Math.round(share * 100);
  byId("track").setAttribute("aria-valuenow", percent);
  byId("track").firstElementChild.style.width = `${percent}%`;
  byId("progress-text").textContent = sentence;
  const count = batch.filter(active).length;
  byId("cancel").textContent = count === 1 ? "Cancel" : `Cancel all ${count}`;
  return `${percent} %`;
}

const presetOf = (values) => Object.keys(about.presets).find((name) => AMOUNTS.every((one) => about.presets[name][one] === values[one]));

function drawResult() {
  const results = pictures.filter((one) => one.result).length;
  byId("download-all").hidden = results < 2;
  byId("download-all").textContent = `Download all ${results}`;
  const result = active(current || {}) ? null : current?.result;
  byId("result").hidden = byId("download").hidden = !result;
  byId("formats").hidden = !result && results < 2;
  if (!result) return;
  const download = byId("download");
  download.textContent = current.saving ? "Writing the file …" : `Download ${option("format") === "png" ? "PNG" : "JPEG"}`;
  download.disabled = Boolean(current.saving);
  const other = result.model === option("model") ? "" : " Restore again for the task that is chosen now.";
  byId("about-result").textContent = `Removed: ${modelOf(result.model).removes}, in ${result.seconds.toFixed(1)} s.${other}`;
  byId("notes").replaceChildren(...result.notes.map((sentence) => el("li", {}, sentence)));
}

/* The file with what is chosen now: what is shown in full is there already, all else comes from the server. */
async function download(picture) {
  const { result } = picture;
  const fields = { ...amounts(result.model), model: result.model, format: option("format") };
  const { strength, luma = 1, chroma = 1, detail = 0, format } = fields;
  const there = strength === 1 && luma === 1 && chroma === 1 && detail === result.detail && format === "png";
  picture.saving = true;
  drawPanel();
  try {
    const { blob, name } = there ? result : await restored({ file: picture.file }, fields);
    const url = URL.createObjectURL(blob);
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    result.saved = true;
  } catch (error) {
    picture.problem = error.message;
    say(error.message);
  }
  picture.saving = false;
  drawPanel();
}

/* One file after the other: a browser may ask once whether it may save several. */
async function downloadAll() {
  for (const picture of pictures.filter((one) => one.result)) {
    await download(picture);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function setPreset(preset) {
  for (const name of AMOUNTS) byId(name).value = 100 * about.presets[preset][name];
}

const shownPreset = () => presetOf(Object.fromEntries(AMOUNTS.map((name) => [name, share(name)])));

let ownPreset; // Of the model that the amounts were last set for.
/* The amounts begin as the model's own preset. Another model sets them again unless they were changed. */
function setFor(model) {
  if (!isNoise(model.name) || (ownPreset && shownPreset() !== ownPreset)) return;
  ownPreset = model.preset;
  setPreset(ownPreset);
}

const presetTitle = (name) => name[0].toUpperCase() + name.slice(1).replace("-", " ");
const title = ({ removes }) => removes[0].toUpperCase() + removes.slice(1);

/* Beginning */

function listen() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = "";
  });
  byId("options").addEventListener("submit", (event) => {
    event.preventDefault();
    if (current) enqueue([current]);
  });
  byId("go-all").addEventListener("click", () => enqueue(pictures.filter(waits)));
  byId("cancel").addEventListener("click", () => {
    batch.filter(active).forEach(cancel);
    draw();
  });
  byId("tasks").addEventListener("change", ({ target }) => setFor(modelOf(target.value)));
  byId("presets").addEventListener("change", ({ target }) => setPreset(target.value));
  for (const event of ["input", "change"]) byId("options").addEventListener(event, drawOptions);
  byId("options").addEventListener("input", draw);
  byId("options").addEventListener("change", () => (bringDetail(), draw()));
  byId("formats").addEventListener("change", drawPanel);
  byId("download").addEventListener("click", () => download(current));
  byId("download-all").addEventListener("click", downloadAll);
  byId("example").addEventListener("click", async () => {
    const answer = await fetch("/page/example.webp");
    add([new File([await answer.blob()], "example.webp")]);
  });
  byId("how").addEventListener("toggle", draw);
  byId("choose-photos").addEventListener("click", () => byId("files").click());
  byId("zooms").addEventListener("change", () => viewer.zoomTo(Number(option("zoom")) || "fit"));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  addEventListener("keydown", ({ key, target, ctrlKey, altKey, metaKey }) => {
    if (ctrlKey || altKey || metaKey || target.matches("input, canvas, [role=slider]")) return;
    if (key === "ArrowLeft" || key === "ArrowRight") step(key === "ArrowLeft" ? -1 : 1);
  });
  addEventListener("paste", (event) => add(event.clipboardData.files));
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    byId("over").hidden = !depth;
  };
  addEventListener("dragenter", (event) => event.dataTransfer?.types.includes("Files") && over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-Infinity);
    add(event.dataTransfer.files);
  });
  addEventListener("beforeunload", (event) => {
    if (pictures.some(unsaved)) event.preventDefault();
  });
  addEventListener("pagehide", () => pictures.forEach(cancel));
}

async function begin() {
  try {
    about = await api.about();
  } catch (error) {
    byId("problem").hidden = false;
    byId("problem").firstElementChild.textContent = error.message;
    return;
  }
  about.models.forEach((model, i) => {
    const input = el("input", { type: "radio", name: "model", value: model.name, checked: i === 0 && "" });
    byId("tasks").append(el("label", {}, input, el("div", {}, el("b", {}, title(model)), el("small", {}, model.summary))));
  });
  for (const name of Object.keys(about.presets)) {
    const input = el("input", { type: "radio", name: "preset", value: name });
    byId("presets").append(el("label", {}, input, el("span", {}, presetTitle(name))));
  }
  setFor(modelOf(option("model")));
  const attention = about.models.some((model) => model.attention);
  byId("no-neighbors").hidden = attention;
  byId("neighbors").hidden = byId("about-neighbors").hidden = !attention;
  const { megabytes, megapixels } = about.limits;
  const formats = Object.keys(about.formats).map((kind) => (kind === "raw" ? "camera raw" : kind));
  byId("files").accept = [...Object.values(about.formats).flat(), "image/*"].join(",");
  byId("accepts").textContent = `${formats.slice(0, -1).join(", ")} or ${formats.at(-1)}, up to ${megapixels} megapixels and ${megabytes} MB`;
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  byId("promise").textContent = here ? "Pictures stay on this computer. Nothing is stored." : "Pictures go to this server alone. Nothing is stored.";
  const onZoom = (zoom) => {
    for (const input of byId("zooms").querySelectorAll("input")) input.checked = input.value === String(zoom);
  };
  let looked = 0;
  const onLook = () => {
    clearTimeout(looked);
    if (current?.state !== "working" || !current.job) return;
    looked = setTimeout(() => current.job && api.look(current.job, placeOf(current)).catch(() => {}), 150);
  };
  viewer = createViewer({ onZoom, onStep: step, onLook });
  neighbors = createNeighbors({ limits: about.limits, models, say });
  listen();
  drawOptions();
  draw();
}

begin();
