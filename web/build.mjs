// `make web`: the npm package in pkg/, from the crate (cargo), its JavaScript (bindgen), binaryen's wasm-opt and tsc.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const web = fileURLToPath(new URL('.', import.meta.url));
const root = `${web}..`;
const cargo = process.env.CARGO ?? 'cargo';
const target = process.env.CARGO_TARGET_DIR ?? `${root}/target`;

function run(program, ...options) {
  execFileSync(program, options, { cwd: root, stdio: 'inherit' });
}

run(cargo, 'build', '--quiet', '--profile', 'web', '--package', 'wgpu-flash-attention-web', '--target', 'wasm32-unknown-unknown');
run(cargo, 'build', '--quiet', '--package', 'wgpu-flash-attention-bindgen');

rmSync(`${web}pkg`, { recursive: true, force: true });
mkdirSync(`${web}pkg`);
run(`${target}/debug/wgpu-flash-attention-bindgen`, `${target}/wasm32-unknown-unknown/web/wgpu_flash_attention_web.wasm`, `${web}pkg`);

// wgpu's browser is ts/view.ts.
const glue = readFileSync(`${web}pkg/wasm.js`, 'utf8');
writeFileSync(`${web}pkg/wasm.js`, `import { GPUOutOfMemoryError, GPUValidationError, world as self } from './view.js';\n${glue}`);

// Exactly what rustc's wasm32 target has switched on, which wasm-opt must be told.
const features = ['bulk-memory', 'multivalue', 'mutable-globals', 'nontrapping-float-to-int', 'reference-types', 'sign-ext'];
run(`${web}node_modules/binaryen/bin/wasm-opt`, '-Oz', '--converge', '--strip-debug', '--strip-producers',
  ...features.map((feature) => `--enable-${feature}`), `${web}pkg/wasm_bg.wasm`, '-o', `${web}pkg/wasm_bg.wasm`);

run(process.execPath, `${web}node_modules/typescript/bin/tsc`, '--project', web);
// Users need the package's own declarations, and nothing of the module behind it.
for (const file of readdirSync(`${web}pkg`).filter((file) => file.endsWith('.d.ts'))) {
  const isEmpty = readFileSync(`${web}pkg/${file}`, 'utf8').trim() === 'export {};';
  if (isEmpty || file.startsWith('wasm')) rmSync(`${web}pkg/${file}`);
}
for (const file of ['LICENSE-APACHE', 'LICENSE-MIT']) cpSync(`${root}/${file}`, `${web}pkg/${file}`);

const size = (file) => `${file}: ${(gzipSync(readFileSync(`${web}pkg/${file}`), { level: 9 }).length / 1024).toFixed(1)} KiB gzipped`;
console.log(`${size('wasm_bg.wasm')}, ${size('wasm.js')}`);
