/* The page: reads a picture, gives its pixels to the worker, shows and saves what comes back. */

const byId = (id) => document.getElementById(id);
const [file, status, progress, result, before, after, cut, save] =
  ["file", "status", "progress", "result", "before", "after", "cut", "save"].map(byId);
const worker = new Worker("worker.js", { type: "module" });
let name, started;

file.onchange = () => file.files.length && open(file.files[0]);
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  const [dropped] = event.dataTransfer.files;
  if (dropped && !file.disabled) open(dropped);
};
cut.oninput = () => after.style.setProperty("--cut", `${cut.value}%`);

async function open(picture) {
  result.hidden = true;
  status.textContent = "Working";
  busy(true);
  try {
    const bitmap = await createImageBitmap(picture);
    [before.width, before.height] = [bitmap.width, bitmap.height];
    const context = before.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
    name = picture.name.replace(/\.\w+$/, "");
    started = performance.now();
    worker.postMessage(pixels, [pixels.data.buffer]);
  } catch (error) {
    fail(`${picture.name}: this browser can't read it as a picture (${error.message})`);
  }
}

worker.onmessage = async ({ data }) => {
  if (data.error) return fail(data.error);
  progress.value = data.done;
  if (!data.pixels) return;
  const seconds = (performance.now() - started) / 1000;
  [after.width, after.height] = [data.pixels.width, data.pixels.height];
  after.getContext("2d").putImageData(data.pixels, 0, 0);
  cut.oninput();
  URL.revokeObjectURL(save.href);
  save.href = URL.createObjectURL(await new Promise((done) => after.toBlob(done)));
  save.download = `${name}-restored.png`;
  result.hidden = false;
  busy(false);
  status.textContent = `Done in ${seconds.toFixed(1)} s, threads: ${data.threads}`;
};
worker.onerror = () => {
  fail("onnxruntime-web is not beside this page; run docs/browser/prepare.py");
  file.disabled = true;
};

function busy(is) {
  file.disabled = is;
  progress.hidden = !is;
  progress.value = 0;
}

function fail(why) {
  busy(false);
  status.textContent = why;
}
