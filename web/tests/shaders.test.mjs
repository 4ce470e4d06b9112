// The WGSL variants that the planner can emit, given to the compilers that will meet them: Tint (Chromium), and after naga's
// HLSL, some of each kind to Microsoft's DXC (DX12).
import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { softwareVulkan } from './browsers.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
// Cargo reads a relative folder from the root, where it is called.
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? 'target');
const variants = join(target, 'tmp/variants');
const broken = join(target, 'tmp/broken');

/** Resolves to a program's exit status and output. */
function run(program, options, env = process.env) {
  return new Promise((resolve) => {
    execFile(program, options, { cwd: root, env, maxBuffer: 1 << 28 }, (error, stdout, stderr) => {
      resolve({ status: error ? error.code : 0, output: `${stdout}${stderr}` });
    });
  });
}

const tint = (files) => run(process.execPath, ['web/tests/tint.mjs', ...files], softwareVulkan);
const dxc = (optimisation, files) => run('python3', ['web/tests/dxc.py', 'target/dxc/libdxcompiler.so', optimisation, ...files]);

/** The counts that a compiler prints. */
function counts(output) {
  const [, accepted, refused] = output.match(/^(\d+) accepted, (\d+) refused$/m) ?? [];
  return { accepted: Number(accepted), refused: Number(refused) };
}

describe('shader variants', { timeout: 1_800_000 }, () => {
  let wgsl;
  let hlsl;
  before(() => {
    execFileSync(process.env.CARGO ?? 'cargo', ['test', '--quiet', '--test', 'shader_contract', 'write_variants_for_other_compilers', '--', '--ignored'],
      { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
    const files = readdirSync(variants).map((file) => join(variants, file));
    wgsl = files.filter((file) => file.endsWith('.wgsl'));
    hlsl = files.filter((file) => file.endsWith('.hlsl'));
    // HLSL is of one variant of every fifth kind.
    assert(wgsl.length > 1000 && hlsl.length > 100);
    rmSync(broken, { recursive: true, force: true });
    mkdirSync(broken, { recursive: true });
  });

  /** Hands files out to as many compilers as there are cores, some at a time; how many are accepted, which must be all. */
  async function acceptedOf(compiler, files) {
    const parts = Array.from({ length: Math.ceil(files.length / 200) }, (_, part) => files.slice(200 * part, 200 * (part + 1)));
    let accepted = 0;
    await Promise.all(Array.from({ length: availableParallelism() }, async () => {
      for (let part = parts.pop(); part; part = parts.pop()) {
        const { status, output } = await compiler(part);
        assert.equal(status, 0, output);
        accepted += counts(output).accepted;
      }
    }));
    return accepted;
  }

  test('Tint takes the variants', async (context) => {
    assert.equal(await acceptedOf(tint, wgsl), wgsl.length);
    context.diagnostic(`Tint accepts ${wgsl.length} variants`);
  });

  test('Tint refuses a barrier that not every invocation reaches, which naga takes', async () => {
    const text = readFileSync(wgsl.find((file) => file.includes('flash_forward')), 'utf8');
    const entry = text.indexOf('let index = workgroup_id');
    assert(entry > 0);
    const file = join(broken, 'barrier.wgsl');
    writeFileSync(file, `${text.slice(0, entry)}if invocation == 0u { workgroupBarrier(); }\n${text.slice(entry)}`);
    const { status, output } = await tint([file]);
    assert.equal(status, 1, output);
    assert.match(output, /barrier\.wgsl:\d+:\d+ .*workgroupBarrier.*must only be called from uniform control flow/);
    assert.deepEqual(counts(output), { accepted: 0, refused: 1 });
  });

  test('DXC takes variants of every kind', async (context) => {
    assert.equal(await acceptedOf((files) => dxc('-O0', files), hlsl), hlsl.length);
    context.diagnostic(`DXC accepts ${hlsl.length} variants`);
  });

  test('and optimises some of them', async () => {
    // One in twenty: it takes six times as long.
    const some = hlsl.filter((_, index) => index % 20 === 0);
    assert.equal(await acceptedOf((files) => dxc('-O3', files), some), some.length);
  });

  test('DXC refuses a variant with an unknown name', async () => {
    const file = join(broken, 'name.hlsl');
    const text = readFileSync(hlsl.find((file) => file.includes('flash_forward')), 'utf8');
    writeFileSync(file, text.replace('GroupMemoryBarrierWithGroupSync', 'GroupMemoryBarrierWithGroupSink'));
    const { status, output } = await dxc('-O0', [file]);
    assert.equal(status, 1, output);
    assert.match(output, /undeclared identifier 'GroupMemoryBarrierWithGroupSink'/);
    assert.deepEqual(counts(output), { accepted: 0, refused: 1 });
  });
});
