// tint.mjs FILE.wgsl...: compiles each file with Tint, Chromium's WGSL compiler, through Dawn for Node. Prints what it says of
// the files that it refuses, then "N accepted, M refused"; exits with 1 if any was. Needs a Vulkan driver that Dawn accepts.
// Not more than some hundred files at a time: a module takes 2 MB that are never given back, and Dawn breaks at 4 GB.
import { readFileSync } from 'node:fs';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);
// Kept in a variable: an instance that was collected as garbage never answers.
const gpu = create(['backend=vulkan']);
const adapter = await gpu.requestAdapter();
if (!adapter) throw new Error('Dawn finds no Vulkan adapter');
const requiredFeatures = ['shader-f16', 'subgroups'];
for (const feature of requiredFeatures) {
  if (!adapter.features.has(feature)) throw new Error(`${adapter.info.description} has no ${feature}`);
}
const device = await adapter.requestDevice({ requiredFeatures });

let accepted = 0;
let refused = 0;
for (const file of process.argv.slice(2)) {
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code: readFileSync(file, 'utf8') });
  const { messages } = await module.getCompilationInfo();
  const error = await device.popErrorScope();
  const errors = messages.filter(({ type }) => type === 'error');
  if (errors.length === 0 && error === null) {
    accepted += 1;
    continue;
  }
  refused += 1;
  for (const { lineNum, linePos, message } of errors) console.log(`${file}:${lineNum}:${linePos} ${message}`);
  if (errors.length === 0) console.log(`${file}: ${error.message}`);
}
console.log(`${accepted} accepted, ${refused} refused`);
process.exitCode = refused === 0 ? 0 : 1;
device.destroy();
