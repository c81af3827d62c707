// Both networks, in a thread of their own, so that the page answers while they compute.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
const sessions = {};

// The first answers of a network are slower than all others: one is asked for beforehand, of grey.
async function load(networks, shape) {
  for (const [name, file] of Object.entries(networks)) {
    sessions[name] = await ort.InferenceSession.create(new URL(file, import.meta.url).href, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
      extra: { session: { qdqisint8allowed: "1" } },
    });
    await ask(name, new Float32Array(shape.reduce((a, b) => a * b)), shape);
  }
}

async function ask(name, values, shape) {
  const session = sessions[name];
  const began = performance.now();
  const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape) });
  const milliseconds = performance.now() - began;
  const outputs = session.outputNames.map((output) => ({ data: Float32Array.from(found[output].data, Number), dims: found[output].dims }));
  return { milliseconds, outputs };
}

// One after another: a session is not asked twice at once.
let last = Promise.resolve();
self.onmessage = ({ data: { id, load: networks, ask: name, values, shape } }) => {
  last = last
    .then(() => (networks ? load(networks, shape) : ask(name, values, shape)))
    .then((result) => self.postMessage({ id, result }))
    .catch((error) => self.postMessage({ id, error: String(error?.message || error) }));
};
