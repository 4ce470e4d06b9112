// Functions in the caller's own WGSL, against the same functions in JavaScript.
import { InvalidProblemError } from '../pkg/index.js';
import { forward } from './modifiers.js';
import { assert, assertNear, assertSameBits, assertThrows, attention, checkModified, inputs, random } from './support.js';

/** A curve through 0 whose bend is data, by relative position. */
const CURVED = `
const REACH = 8;

fn entry(q_idx: u32, kv_idx: u32) -> f32 { return aux[clamp(i32(q_idx) - i32(kv_idx), -REACH, REACH) + REACH]; }

fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let bend = entry(q_idx, kv_idx) * f32(1u + head) / f32(1u + batch);
  return fma(0.1 * bend * score, score, score);
}`;

const CURVED_GRAD = `
fn score_mod_grad(grad: f32, score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
  let bend = entry(q_idx, kv_idx) * f32(1u + head) / f32(1u + batch);
  return grad * fma(0.2 * bend, score, 1.0);
}`;

function curved(aux) {
  return (score, b, h, i, j) => {
    const bend = aux[Math.max(-8, Math.min(8, i - j)) + 8] * (1 + h) / (1 + b);
    return [score + 0.1 * bend * score ** 2, 1 + 0.2 * bend * score];
  };
}

const SCORE = 'fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32';
const MASK = 'fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool';

export async function ownScores() {
  const shape = { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 20, seqlenKv: 28, headDim: 8 };
  const aux = random(17, 81);
  const problem = { shape, causal: true, scoreMod: CURVED, scoreModGrad: CURVED_GRAD, aux };
  const twinned = { ...problem, twins: { scoreMod: curved(aux) } };
  const { gradients, q, o, lse, expected, ...rest } = await checkModified('a curve', twinned);
  await checkModified('a curve in f16, after softcap, in one text', { ...twinned, element: 'f16', scoreMod: `${CURVED}\n${CURVED_GRAD}`, scoreModGrad: undefined });
  await checkModified('softcap and a bias beside it', {
    shape, softcap: 2, scoreMod: `${SCORE} { return 0.5 * score + f32(kv_idx % 3u); }`,
    scoreModGrad: 'fn score_mod_grad(grad: f32, score: f32, b: u32, h: u32, q: u32, k: u32) -> f32 { return 0.5 * grad; }',
    bias: { data: random(28, 82), shape: [1, 1, 1, 28] }, twins: { scoreMod: (score, b, h, i, j) => [0.5 * score + j % 3, 0.5] },
  });

  // aux on the GPU, uploaded and in a buffer of the caller's.
  const flash = await attention();
  const buffer = flash.device.createBuffer({ size: aux.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST });
  flash.device.queue.writeBuffer(buffer, 0, aux);
  for (const onGpu of [await flash.upload(aux), flash.wrap(buffer)]) {
    const found = await flash.forward({ ...problem, q, k: rest.k, v: rest.v, aux: onGpu });
    assertSameBits(found.o, o, 'aux on the GPU');
    const { dq } = await flash.backward({ ...problem, ...rest, q, o, lse, aux: onGpu });
    assertSameBits(dq, gradients.dq, 'dQ with aux on the GPU');
    onGpu.destroy();
  }
  buffer.destroy();
  // Past the end of aux is its last entry.
  const far = { ...problem, scoreMod: `${SCORE} { return score + aux[q_idx + 1000u * kv_idx] + aux[-1 - i32(kv_idx)]; }` };
  const found = await flash.forward({ ...far, scoreModGrad: undefined, q, k: rest.k, v: rest.v, aux: Float32Array.of(9, 9, 0.25), causal: false });
  const twins = { scoreMod: (score, b, h, i, j) => [score + 0.25 + (j === 0 && i < 2 ? 9 : 0.25), 1] };
  assertNear(found.o, forward({ shape, twins }, q, rest.k, rest.v).o, 'past the end of aux');
}

export async function ownMasks() {
  const shape = { batch: 2, numHeads: 4, numHeadsKv: 2, seqlen: 24, headDim: 8 };
  const ids = Uint32Array.from({ length: 24 }, (_, j) => Math.floor(j / 7) + 2 ** 31);
  const documents = { maskMod: `${MASK} { return aux[q_idx] == aux[kv_idx]; }`, aux: ids, twins: { sees: (b, h, i, j) => ids[i] === ids[j] } };
  await checkModified('documents', { shape, causal: true, ...documents });
  const loops = `
    struct Pair { first: u32, second: u32 }
    fn pair_of(kv_idx: u32) -> Pair { return Pair(kv_idx % 5u, kv_idx % 7u); }
    ${MASK} {
      let pair = pair_of(kv_idx);
      for (var step = 1u; step <= 3u; step++) { if pair.first == 5u - step { return true; } }
      return kv_idx == q_idx || pair.second <= head % 2u + batch;
    }`;
  const sees = (b, h, i, j) => j % 5 >= 2 || j === i || j % 7 <= h % 2 + b;
  await checkModified('a loop, a struct and a helper', { shape, maskMod: loops, sink: Float32Array.of(1, 0, 0.5, -1), twins: { sees } });

  // Loops without an end are ended: keys are hidden, scores are NaN, and the device goes on.
  const flash = await attention();
  const tensors = inputs({ shape });
  const spinning = { shape, maxTurns: 20, maskMod: `${MASK} { while kv_idx == 7u { } loop { if kv_idx != 8u { break; } continue; } return true; }` };
  const { o } = await flash.forward({ ...spinning, ...tensors });
  assertNear(o, forward({ shape, twins: { sees: (b, h, i, j) => j !== 7 && j !== 8 } }, ...Object.values(tensors)).o, 'keys of loops without end');
  const endless = await flash.forward({ shape, ...tensors, maxTurns: 20, scoreMod: `${SCORE} { for (; q_idx == 3u;) { } return score; }` });
  assert(endless.o.every((value, index) => Number.isNaN(value) === (Math.floor(index / 32) % 24 === 3)), 'rows of loops without end');
}

export async function faultsOfOwnWgsl() {
  const flash = await attention();
  const shape = { numHeads: 2, seqlen: 8, headDim: 4 };
  const good = { shape, ...inputs({ shape }) };
  const refused = (change, text, type = InvalidProblemError) => assertThrows(flash.forward({ ...good, ...change }), type, text);
  const body = (text) => ({ scoreMod: `${SCORE} {\n${text}\n}` });
  // What the module refuses, from the tokens.
  await refused(body('  workgroupBarrier();\nreturn score;'), 'scoreMod, line 2, column 3: this statement is not allowed: no barriers');
  await refused(body('return f32(params.seqlen_q);'), 'scoreMod, line 2, column 12: no definition in scope for identifier: `params`');
  await refused(body('return wgsl_aux(0u);'), "names that begin with wgsl_ are the library's");
  await refused({ scoreMod: `var<private> x: f32;\n${SCORE} { return x; }` }, 'scoreMod, line 1, column 1: only variables of functions');
  await refused({ scoreMod: '@compute @workgroup_size(1) fn main() {}' }, 'attributes are not allowed');
  await refused({ scoreMod: `fn f() -> f32 { return f(); }\n${SCORE} { return f(); }` }, 'declaration of `f` is recursive');
  await refused({ maskMod: 'fn mask() {}' }, 'maskMod, line 1, column 1: there is no mask_mod; write fn mask_mod(');
  // What only the browser's compiler knows.
  await refused(body('\n  let half: u32 = 0.5;\nreturn score;'), 'scoreMod, line 3, column');
  await refused(body('return score + 1u;'), '\n  | return score + 1u;\n  |        ');
  await refused({ maskMod: `${MASK} { return true }` }, 'maskMod, line 1, column');
  await refused({ ...body('return score;'), scoreModGrad: '\nfn score_mod_grad(grad: f32, score: f32, b: u32, h: u32, q: u32, k: u32) -> f32 { return 1u; }' },
    'scoreModGrad, line 2, column');
  await refused({ ...body('return aux[0];'), aux: Uint32Array.of(1) }, 'scoreMod, line 2, column');
  // Of a very long line, what stands around the fault.
  const long = '1.0 + '.repeat(150);
  for (const wrong of ['skore', '1u']) {
    const error = await flash.forward({ ...good, ...body(`let a = ${long}1.0; return score + ${wrong}; /* ${long} */`) }).catch((error) => error);
    const [, quoted, mark] = error.message.split('\n');
    assert(/^ {2}\| ….*…$/.test(quoted) && quoted.length < 110, `a long line: ${error.message}`);
    assert(quoted.slice(mark.indexOf('^')).startsWith(wrong) || quoted.slice(mark.indexOf('^')).startsWith('score + '), `the mark: ${error.message}`);
  }
  await refused(body(`return ${'x'.repeat(5000)};`), `identifier: \`${'x'.repeat(59)}…`);
  // Options that do not fit each other.
  await refused({ scoreMod: 5 }, 'scoreMod is of type Number; pass a text in WGSL');
  await refused({ scoreModGrad: 'x' }, 'scoreModGrad is given without scoreMod');
  await refused({ ...body('return score;'), maxTurns: 1.5 }, 'maxTurns = 1.5; it must be a whole number');
  await refused(body('return aux[0];'), 'aux: scoreMod reads it; pass aux');
  await refused({ aux: Float32Array.of(1) }, 'aux: it is given, and no function in WGSL reads it');
  await refused({ ...body('return aux[0];'), aux: new Float32Array(0) }, 'aux: it has 0 entries');
  await refused({ ...body('return aux[0];'), aux: [1, 2] }, 'aux is of type Array; pass a Float32Array, a Uint32Array');
  const { o, lse } = await flash.forward({ ...good, ...body('return 0.5 * score;') });
  await assertThrows(flash.backward({ ...good, ...body('return 0.5 * score;'), o, lse, dO: o }), InvalidProblemError, 'scoreModGrad: gradients need it, and the text of scoreMod does not define it');
}
