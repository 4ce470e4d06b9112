// The package's declarations, by the oldest TypeScript that has their language, one between, and the newest; each with and without
// the names of WebGPU from `@webgpu/types`.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const web = fileURLToPath(new URL('..', import.meta.url));
const COMPILERS = { 5.7: 'typescript-5.7', 5.9: 'typescript-5.9', 7: 'typescript' };

for (const [version, compiler] of Object.entries(COMPILERS)) {
  for (const types of [[], ['@webgpu/types']]) {
    test(`TypeScript ${version} ${types.length ? 'with' : 'without'} @webgpu/types`, () => {
      const folder = mkdtempSync(join(tmpdir(), 'types-'));
      const config = {
        compilerOptions: {
          target: 'es2022', module: 'esnext', moduleResolution: 'bundler', lib: ['es2022', 'dom', 'dom.iterable'], types,
          typeRoots: [`${web}node_modules`], strict: true, noUncheckedIndexedAccess: true, exactOptionalPropertyTypes: true, noEmit: true,
          paths: { 'wgpu-flash-attention': [`${web}pkg/index.d.ts`], 'wgpu-flash-attention/wasm_bg.wasm': [`${web}pkg/wasm_bg.wasm.d.ts`] },
        },
        files: [`${web}tests/types/use.ts`],
      };
      const file = join(folder, 'tsconfig.json');
      writeFileSync(file, JSON.stringify(config));
      try {
        execFileSync(process.execPath, [`${web}node_modules/${compiler}/bin/tsc`, '--project', file], { encoding: 'utf8' });
      } catch (error) {
        // From TypeScript 6 on, its own library has most of these names, and says so of the package @webgpu/types.
        const ours = error.stdout.split('\n').filter((line) => /^(\.\.\/|\/\S*)?(pkg|tests)\//.test(line.replace(web, '')) || /^error/.test(line));
        assert.deepEqual(ours, [], error.stdout);
        assert(types.length > 0, error.stdout);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  }
}
