import { U32, describe, whole } from './checks.js';
import type { Device } from './device.js';
import { InvalidProblemError } from './errors.js';
import type { AttentionProblem } from './options.js';
import { GpuTensor, tagOf } from './tensor.js';
import { fault_of_compiler, type Problem } from './wasm.js';

type Own = Pick<AttentionProblem, 'scoreMod' | 'scoreModGrad' | 'maskMod' | 'aux' | 'maxTurns'>;

/** The texts of a problem by the names of their functions: that of the gradient follows that of score_mod. */
function textsOf({ scoreMod, scoreModGrad, maskMod }: Own): Record<string, string> {
  for (const [name, text] of Object.entries({ scoreMod, scoreModGrad, maskMod })) {
    if (text !== undefined && typeof text !== 'string') throw new InvalidProblemError(`${name} is ${describe(text)}; pass a text in WGSL`);
  }
  if (scoreModGrad !== undefined && scoreMod === undefined) {
    throw new InvalidProblemError('scoreModGrad is given without scoreMod, whose gradient it is');
  }
  return {
    ...scoreMod === undefined ? {} : { score_mod: scoreModGrad === undefined ? scoreMod : `${scoreMod}\n${scoreModGrad}` },
    ...maskMod === undefined ? {} : { mask_mod: maskMod },
  };
}

/** @internal Whether `aux` is u32, and its length. */
export function auxOf({ aux }: Own): { isU32: boolean; length: number } {
  if (aux === undefined) return { isU32: false, length: 0 };
  const tag = aux instanceof GpuTensor ? aux.array : tagOf(aux);
  const isU32 = tag === 'Uint32Array';
  if (!isU32 && tag !== 'Float32Array') {
    const found = aux instanceof GpuTensor ? `a GpuTensor of ${aux.element}` : describe(aux);
    throw new InvalidProblemError(`aux is ${found}; pass a Float32Array, a Uint32Array, or a GpuTensor of one`);
  }
  return { isU32, length: aux.length };
}

/** @internal Gives the problem its score_mod. */
export function modifyByWgsl(wasm: Problem, problem: Own): void {
  const { score_mod } = textsOf(problem);
  if (score_mod !== undefined) wasm.score_mod(score_mod, auxOf(problem).isU32, turnsOf(problem));
}

/** @internal Gives the problem its mask_mod, and the length of aux. */
export function maskByWgsl(wasm: Problem, problem: Own): void {
  const { mask_mod } = textsOf(problem);
  const { isU32, length } = auxOf(problem);
  if (mask_mod !== undefined) wasm.mask_mod(mask_mod, isU32, turnsOf(problem));
  if (problem.aux !== undefined) wasm.aux(length);
  turnsOf(problem);
}

function turnsOf({ maxTurns }: Own): number | undefined {
  return maxTurns === undefined ? undefined : whole('maxTurns', maxTurns, U32);
}

/**
 * @internal Compiles each text alone, with nothing but `aux` beside it: what the browser has against it then has a line of the
 * caller's.
 */
export async function compileAlone(device: Device, problem: Own): Promise<void> {
  for (const [name, text] of Object.entries(textsOf(problem))) {
    const code = `${text}\n@group(0) @binding(0) var<storage, read> aux: array<${auxOf(problem).isU32 ? 'u32' : 'f32'}>;\n`;
    device.gpu.pushErrorScope('validation');
    const module = device.gpu.createShaderModule({ code });
    device.gpu.popErrorScope().catch(() => undefined);
    const info = await module.getCompilationInfo().catch(() => undefined);
    device.check();
    const error = info?.messages.find(({ type }) => type === 'error');
    if (error === undefined) continue;
    throw inOptions(problem, new InvalidProblemError(described(name, text, error)));
  }
}

/** A fault as the module describes those that it finds. */
function described(name: string, text: string, { lineNum, linePos, message }: GPUCompilationMessage): string {
  let [line, column] = [lineNum, linePos];
  const lines = text.split('\n');
  // Firefox may name the function alone, and draws where in it.
  const rows = message.split('\n');
  const marks = rows.findIndex((row) => /^[ │]*\^/.test(row));
  const drawn = rows[marks - 1] ?? '';
  const [, number] = /^ *(\d+) │/.exec(drawn) ?? [];
  if (number !== undefined) {
    line = Number(number);
    column = Math.max(1, 1 + rows[marks]!.indexOf('^') - drawn.length + (lines[line - 1] ?? '').length);
  }
  const words = rows.filter((row) => !/[│┌╰]/.test(row)).map((row) => row.trim()).filter((row) => row !== '').join('; ');
  // The browser counts halves of UTF-16.
  const characters = [...(lines[line - 1] ?? '').slice(0, Math.max(0, column - 1))].length;
  return fault_of_compiler(name, text, line, characters + 1, words);
}

/** @internal A fault of a text, with the option and the line in it. */
export function inOptions({ scoreMod, scoreModGrad }: Own, error: unknown): unknown {
  if (!(error instanceof InvalidProblemError)) return error;
  error.message = error.message.replace(/^(score|mask)_mod, line (\d+)/, (_, kind: string, line: string) => {
    const ofFirst = scoreMod?.split('\n').length ?? 0;
    if (kind === 'mask') return `maskMod, line ${line}`;
    return scoreModGrad !== undefined && Number(line) > ofFirst ? `scoreModGrad, line ${Number(line) - ofFirst}` : `scoreMod, line ${line}`;
  });
  return error;
}
