// `npm run bench`: what a call costs at N = 16 over a bare submission of the same dispatches, in Node.js on Dawn and in browsers.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { serve } from '../server.mjs';
import { browsers, softwareVulkan } from '../tests/browsers.mjs';

function show(name, { one, many, submissions, queued }) {
  const table = (title, times, calls) => {
    const heads = ['median', 'least', 'more', 'more CPU'].map((word) => word.padStart(10));
    console.log(`${name}, ${title}: ms a call\n  ${' '.repeat(10)} ${heads.join(' ')}`);
    for (const [way, time] of Object.entries(times)) {
      // `forward` makes O and LSE, and so does the bare submission that it is compared with.
      const bare = times[way === 'forward' ? 'bare, new' : 'bare'];
      const all = [time.median, time.least, time.median - bare.median, time.processor - bare.processor];
      // Browsers do not tell the processor's time.
      const known = all.map((value, index) => index === 3 && !Number.isFinite(bare.processor) ? '' : (value / calls).toFixed(3).padStart(10));
      console.log(`  ${way.padEnd(10)} ${known.join(' ')}`);
    }
  };
  table('one call and the wait for it', one, 1);
  table(`${queued} calls at once`, many, queued);
  console.log(`  submissions of ${queued} calls: run ${submissions.run}, forward ${submissions.forward}\n`);
}

const wanted = process.argv.slice(2);
const isWanted = (name) => wanted.length === 0 || wanted.includes(name);
if (isWanted('node')) {
  const program = fileURLToPath(new URL('node.mjs', import.meta.url));
  // Dawn reads the environment when it is loaded, and may crash when the process ends.
  const { stdout } = spawnSync(process.execPath, [...process.execArgv, program], { env: softwareVulkan, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  show('Node.js on Dawn', JSON.parse(stdout));
}
for (const [name, open] of Object.entries(browsers)) {
  if (!isWanted(name)) continue;
  const server = await serve(fileURLToPath(new URL('..', import.meta.url)));
  const browser = await open();
  try {
    await browser.page.goto(`http://127.0.0.1:${server.address().port}/tests/blank.html`);
    show(name, await browser.page.evaluate(async () => {
      const [{ FlashAttention }, { overhead }] = await Promise.all([import('/pkg/index.js'), import('/bench/overhead.js')]);
      return overhead(await FlashAttention.create());
    }));
  } finally {
    await browser.close();
    server.close();
  }
}
