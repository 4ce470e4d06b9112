// The examples of web/README.md, as the tests run them.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const text = readFileSync(fileURLToPath(new URL('../README.md', import.meta.url)), 'utf8');

/** The code of all blocks in a language, with the heading that each stands under. */
export function blocks(language) {
  const found = [];
  let heading = '';
  let code;
  for (const line of text.split('\n')) {
    if (code !== undefined && line === '```') {
      found.push({ heading, code: code.join('\n') });
      code = undefined;
    } else if (code !== undefined) code.push(line);
    else if (line === `\`\`\`${language}`) code = [];
    else if (line.startsWith('#')) heading = line.replace(/^#+ /, '');
  }
  return found;
}

const END = 'attention.destroy();';
const IN_NODE = 'create({ gpu: create([]) })';
const FOR_ESBUILD = 'wasm_bg.wasm';

/** Each example in JavaScript as a whole program, as the README says that it is put together. */
export function programs() {
  const [first, ...others] = blocks('js');
  const whole = [{ name: first.heading, code: first.code }];
  let before;
  for (const { heading, code } of others) {
    const name = `${heading}: ${code.trim().split('\n').at(-1).slice(0, 60)}`;
    if (code.includes('FlashAttention.create(')) {
      // The first lines of the first example, in another form.
      const rest = first.code.split('\n').filter((line) => !/^import|FlashAttention\.create\(/.test(line)).join('\n');
      whole.push({ name, code: `${code}\n${rest}`, isOfNode: code.includes(IN_NODE), isOfEsbuild: code.includes(FOR_ESBUILD) });
      continue;
    }
    const goesOn = code.startsWith('// Goes on from the example above.');
    // Then the one above runs in this one.
    if (goesOn) whole.pop();
    const start = goesOn ? before : first.code.replace(END, '');
    whole.push({ name, code: `${start}\n${code}\n${END}` });
    before = `${start}\n${code}`;
  }
  return whole;
}
