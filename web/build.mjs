// `make web`: the npm package in pkg/, from the crate (cargo), its JavaScript (bindgen), binaryen's wasm-opt and tsc.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { notices } from './notices.mjs';

const web = fileURLToPath(new URL('.', import.meta.url));
const root = resolve(web, '..');
const cargo = process.env.CARGO ?? 'cargo';
// Cargo reads a relative folder from the root, where it is called.
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target');

function run(program, ...options) {
  execFileSync(program, options, { cwd: root, stdio: 'inherit' });
}

/** Messages of a panic name source files: not by where they lie on this machine. */
function withoutPaths() {
  const cargoHome = resolve(process.env.CARGO_HOME ?? `${homedir()}/.cargo`);
  const registries = `${cargoHome}/registry/src`;
  const folders = readdirSync(registries, { withFileTypes: true }).map(({ name }) => `${registries}/${name}`);
  const all = new Set([cargoHome, realpathSync(cargoHome), ...folders, ...folders.map((folder) => realpathSync(folder)), root]);
  const remap = [...all].map((folder) => `"--remap-path-prefix=${folder}=."`);
  return ['--config', `target.wasm32-unknown-unknown.rustflags=[${remap.join(', ')}]`];
}

const said = (what) => console.log(`make web: ${what}`);
said('compiling the crate to WebAssembly …');
run(cargo, 'build', '--quiet', ...withoutPaths(), '--profile', 'web', '--package', 'wgpu-flash-attention-web', '--target', 'wasm32-unknown-unknown');
run(cargo, 'build', '--quiet', '--package', 'wgpu-flash-attention-bindgen');

rmSync(`${web}pkg`, { recursive: true, force: true });
mkdirSync(`${web}pkg`);
run(`${target}/debug/wgpu-flash-attention-bindgen`, `${target}/wasm32-unknown-unknown/web/wgpu_flash_attention_web.wasm`, `${web}pkg`);

// The module's surroundings are ts/view.ts.
const glue = readFileSync(`${web}pkg/wasm.js`, 'utf8');
writeFileSync(`${web}pkg/wasm.js`, `import { GPUOutOfMemoryError, GPUValidationError, broken, world as self } from './view.js';\n${glue}`);

said('making the module smaller …');
// Exactly what rustc's wasm32 target has switched on, which wasm-opt must be told.
const features = ['bulk-memory', 'multivalue', 'mutable-globals', 'nontrapping-float-to-int', 'reference-types', 'sign-ext'];
run(`${web}node_modules/binaryen/bin/wasm-opt`, '-Oz', '--converge', '--strip-debug', '--strip-producers',
  ...features.map((feature) => `--enable-${feature}`), `${web}pkg/wasm_bg.wasm`, '-o', `${web}pkg/wasm_bg.wasm`);

said('compiling the TypeScript …');
run(process.execPath, `${web}node_modules/typescript/bin/tsc`, '--project', web);
// Users need the package's own declarations, and nothing of the module behind it.
for (const file of readdirSync(`${web}pkg`).filter((file) => file.endsWith('.d.ts'))) {
  const isEmpty = readFileSync(`${web}pkg/${file}`, 'utf8').replace(/^import .*$/gm, '').trim() === 'export {};';
  if (isEmpty || file.startsWith('wasm') || file === 'node.d.ts') rmSync(`${web}pkg/${file}`);
}
// `using` is younger than the library that a project may have chosen, and so are the names of WebGPU, whose members are merged in
// where they are declared.
const declarations = `${web}pkg/index.d.ts`;
const global = ['GPU', 'GPUBuffer', 'GPUCommandEncoder', 'GPUDevice'].map((name) => `  interface ${name} {}`);
writeFileSync(declarations, ['/// <reference lib="esnext.disposable" />', readFileSync(declarations, 'utf8').trim(), 'declare global {', ...global, '}', ''].join('\n'));
// What bundlers make of `import address from 'wgpu-flash-attention/wasm_bg.wasm'`.
writeFileSync(`${web}pkg/wasm_bg.wasm.d.ts`, 'declare const address: string;\nexport default address;\n');

said('one file with the module inside …');
const inside = {
  name: 'module inside',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /\/location\.js$/ }, () => ({ path: 'location', namespace: 'inside' }));
    onLoad({ filter: /./, namespace: 'inside' }, () => ({
      contents: "import bytes from './wasm_bg.wasm';\nexport const besideThis = () => bytes;\n", resolveDir: `${web}pkg`,
    }));
  },
};
await build({
  entryPoints: [`${web}pkg/index.js`], outfile: `${web}pkg/single.js`, bundle: true, format: 'esm', target: 'es2022', minify: true, keepNames: true,
  loader: { '.wasm': 'binary' }, plugins: [inside], logLevel: 'warning',
});

for (const file of ['LICENSE-APACHE', 'LICENSE-MIT']) cpSync(`${root}/${file}`, `${web}${file}`);
writeFileSync(`${web}THIRD-PARTY.md`, notices(cargo, root));

const size = (file) => `${file}: ${(gzipSync(readFileSync(`${web}pkg/${file}`), { level: 9 }).length / 1024).toFixed(1)} KiB gzipped`;
said(`done, in web/pkg. ${['wasm_bg.wasm', 'wasm.js', 'single.js'].map(size).join(', ')}`);
