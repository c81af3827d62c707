// The page: a photograph or the camera in, what both networks say of it out.
import { READERS } from "./answers.js";
import { prepare, region } from "./pixels.js";

const facts = JSON.parse(document.getElementById("facts").textContent);
const [OURS, FLOAT] = [facts.bits, "float"];
const EVERY = 1000; // milliseconds between two answers of the float network while the camera runs
const REPEATED = 6; // times that both networks are asked of a photograph, for their times
const REMEMBERED = 15; // times that a median is taken of
const element = (id) => document.getElementById(id);
const times = { [OURS]: [], [FLOAT]: [] };

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
};
worker.onerror = (event) => tell(`The browser cannot start the networks: ${event.message || "no module workers"}.`);
const call = (message) =>
  new Promise((resolve, reject) => {
    const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...message });
  });

function tell(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

function state(text, ready = false) {
  element("state").textContent = text;
  element("state").classList.toggle("ready", ready);
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

// Two bars, ours and the float network's.
function bars(id, values, unit) {
  const most = Math.max(...Object.values(values));
  const known = [OURS, FLOAT].filter((name) => name in values).map((name) => [name, values[name]]);
  element(id).replaceChildren(
    ...known.map(([name, value]) => {
      const row = document.createElement("div");
      row.className = `row ${name === FLOAT ? "float" : ""}`;
      row.innerHTML = '<span></span><span class="value"></span><div class="track"><i></i></div>';
      row.children[0].textContent = name;
      row.children[1].textContent = unit(value);
      row.querySelector("i").style.width = `${(100 * value) / most}%`;
      return row;
    }),
  );
}

async function ask(name, image) {
  const { values, shape } = prepare(image, facts);
  const { milliseconds, outputs } = await call({ ask: name, values, shape });
  times[name].push(milliseconds);
  times[name].splice(0, times[name].length - REMEMBERED);
  return outputs;
}

function showTimes() {
  const known = Object.fromEntries(Object.entries(times).filter(([, t]) => t.length).map(([n, t]) => [n, median(t)]));
  bars("times", known, (v) => `${v < 10 ? v.toFixed(1) : Math.round(v)} ms`);
  if (known[OURS] && known[FLOAT]) {
    const ratio = known[FLOAT] / known[OURS];
    element("faster").textContent =
      ratio >= 1 ? `${ratio.toFixed(1)} times as fast as float, here` : `${(1 / ratio).toFixed(1)} times as slow as float, here`;
  }
}

// What is drawn, and what is said, of one image. `image`: a canvas.
let floats = null;
let floatsAt = 0;
async function answer(image, live) {
  const ours = await ask(OURS, image);
  if (facts.networks[FLOAT] && (!live || performance.now() - floatsAt > EVERY)) {
    floats = await ask(FLOAT, image);
    floatsAt = performance.now();
  }
  const reader = READERS[facts.task];
  const seen = region(image, facts);
  const read = [ours, floats].filter(Boolean).map((outputs) => reader.read(outputs, facts, seen));
  const picture = element("picture");
  [picture.width, picture.height] = [image.width, image.height];
  picture.getContext("2d").drawImage(image, 0, 0);
  reader.draw?.(picture, read[0], facts, seen);
  element("drop").hidden = true;
  picture.hidden = false;
  reader.show(element("answers"), read[0], read[1], facts);
  showTimes();
}

// As large as it is shown, no larger: phones take photographs of 50 megapixels.
function drawn(source, width, height) {
  const ratio = Math.min(1, 1600 / Math.max(width, height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function open(file) {
  state("reading");
  tell("");
  await stop();
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    tell(`${file.name || "This"} cannot be read as an image; the browser knows JPEG, PNG, WebP, GIF and AVIF.`);
    state("ready", true);
    return;
  }
  state("computing");
  try {
    const image = drawn(bitmap, bitmap.width, bitmap.height);
    await answer(image, false);
    state("measuring");
    for (let i = 1; i < REPEATED; i++) {
      for (const name of Object.keys(facts.networks)) await ask(name, image);
      showTimes();
    }
  } catch (error) {
    tell(`The network could not be run: ${error.message}`);
  }
  state("ready", true);
}

let stream = null;
let front = false;
async function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("turn").hidden = true;
  element("camera").setAttribute("aria-pressed", "false");
}

async function start() {
  await stop();
  tell("");
  if (!navigator.mediaDevices?.getUserMedia) {
    tell("The browser gives the camera to pages of https:// and of localhost alone.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: front ? "user" : "environment" } });
  } catch (error) {
    tell(`There is no camera to be had: ${error.message}`);
    return;
  }
  const [video, own] = [element("video"), stream];
  video.srcObject = stream;
  await video.play();
  element("turn").hidden = false;
  element("camera").setAttribute("aria-pressed", "true");
  floats = null;
  while (stream === own) {
    await answer(drawn(video, video.videoWidth, video.videoHeight), true);
    await new Promise(requestAnimationFrame);
  }
}

element("file").onchange = ({ target }) => target.files[0] && open(target.files[0]);
element("choose").onclick = () => element("file").click();
element("camera").onclick = () => (stream ? stop() : start());
element("turn").onclick = () => ((front = !front), start());
element("drop").onkeydown = ({ key }) => (key === "Enter" || key === " ") && element("file").click();
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("stage").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && open(clipboardData.files[0]));

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.round(bytes / 1024)} KB` : `${(bytes / 2 ** 20).toFixed(1)} MB`);
bars("sizes", facts.sizes, size);
element("times").innerHTML = '<p class="hint">Measured as soon as there is an image.</p>';
navigator.serviceWorker?.register("service.js").catch(() => {}); // offline is an extra: a page without it works
call({ load: facts.networks, shape: [1, ...facts.input] }).then(
  () => state("ready", true),
  (error) => (state("failed"), tell(`The networks could not be loaded: ${error.message}`)),
);
