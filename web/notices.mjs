// The licences of what is compiled into the WebAssembly module, for THIRD-PARTY.md.
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** Crates that the module is built from, by `cargo tree`: those that only run at build time are not among them. */
function crates(cargo, root) {
  const options = ['tree', '--package', 'wgpu-flash-attention-web', '--target', 'wasm32-unknown-unknown', '--edges', 'normal,no-proc-macro', '--prefix', 'none', '--format', '{p}|{l}|{r}'];
  const lines = execFileSync(cargo, options, { cwd: root, encoding: 'utf8' }).split('\n').filter((line) => line.includes('|'));
  const parsed = lines.map((line) => {
    const [what, licence, repository] = line.replace(' (*)', '').split('|');
    const [name, version] = what.split(' ');
    return { name, version: version.slice(1), licence, repository };
  });
  const unique = new Map(parsed.map((crate) => [`${crate.name} ${crate.version}`, crate]));
  return [...unique.values()].filter(({ name }) => !name.startsWith('wgpu-flash-attention'));
}

export function notices(cargo, root) {
  const used = crates(cargo, root);
  const { packages } = JSON.parse(execFileSync(cargo, ['metadata', '--format-version', '1', '--offline'], { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 28 }));
  const texts = new Map();
  for (const { name, version } of used) {
    const folder = dirname(packages.find((other) => other.name === name && other.version === version).manifest_path);
    // Of a choice, the MIT licence is taken where there is one.
    const files = readdirSync(folder).filter((file) => /^(licen[sc]e|copying|notice)/i.test(file));
    const chosen = files.filter((file) => /mit/i.test(file));
    for (const file of chosen.length > 0 ? chosen : files) {
      const text = readFileSync(join(folder, file), 'utf8').trim();
      texts.set(text, [...texts.get(text) ?? [], name]);
    }
  }
  const rows = used.map(({ name, version, licence, repository }) => `| ${name} | ${version} | ${licence} | ${repository} |`);
  const parts = [...texts].map(([text, names]) => `## ${[...new Set(names)].join(', ')}\n\n\`\`\`text\n${text}\n\`\`\``);
  return ['# Third parties', '', 'The WebAssembly module holds code of these crates, besides the Rust standard library (MIT or Apache-2.0).', '',
    '| crate | version | licence | repository |', '|---|---|---|---|', ...rows, '', parts.join('\n\n'), ''].join('\n');
}
