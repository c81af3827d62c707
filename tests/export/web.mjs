// node web.mjs PACKAGES MODEL IMAGES OUTPUT N,C,H,W: the first output of a file in onnxruntime-web (wasm, one thread), raw float32 in and out.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, model, images, output, shape] = process.argv.slice(2);
const ort = createRequire(`${packages}/`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const raw = readFileSync(images);
const values = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
const start = performance.now();
const results = await session.run({ input: new ort.Tensor("float32", values, shape.split(",").map(Number)) });
writeFileSync(output, results[session.outputNames[0]].data);
console.log(JSON.stringify({ version: ort.env.versions.web, milliseconds: performance.now() - start }));
