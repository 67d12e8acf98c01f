// Run an exported network in Node.js on images, and compare its probabilities with others.
//
//   npm install onnxruntime-node
//   node onnx_in_node.mjs model.onnx images.json
//
// images.json, as onnx_in_node.py writes it: {"shape": [b, h, w, c], "pixels": base64 of uint8, "probabilities":
// [[...], ...]}. onnxruntime-node is looked for in the folder where the command is given.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [model, given] = process.argv.slice(2);
if (!model || !given) {
  console.error("usage: node onnx_in_node.mjs model.onnx images.json");
  process.exit(2);
}
process.env.ORT_DISABLE_TELEMETRY = "1"; // else it keeps a record of what is run
const ort = createRequire(join(process.cwd(), "package.json"))("onnxruntime-node");
const { shape, pixels, probabilities: expected } = JSON.parse(readFileSync(given, "utf8"));
const session = await ort.InferenceSession.create(model);
const image = new ort.Tensor("uint8", new Uint8Array(Buffer.from(pixels, "base64")), shape);
const begun = performance.now();
const { probabilities } = await session.run({ image });
const [count, classes] = probabilities.dims;
let largest = 0;
let alike = 0;
for (let row = 0; row < count; row++) {
  const found = [...probabilities.data.slice(row * classes, (row + 1) * classes)];
  found.forEach((value, column) => (largest = Math.max(largest, Math.abs(value - expected[row][column]))));
  alike += found.indexOf(Math.max(...found)) === expected[row].indexOf(Math.max(...expected[row]));
}
const ms = (performance.now() - begun).toFixed(1);
console.log(`Node.js ${process.version}: ${count} images in ${ms} ms`);
console.log(`largest difference of a probability ${largest.toExponential(1)}, ${alike} of ${count} called alike`);
process.exit(largest <= 1e-5 && alike === count ? 0 : 1);
