// The page: loads the package, asks for a GPU, and hands it to the parts.
import { compare } from './compare.js';
import { heatMap } from './heat.js';
import { growth } from './growth.js';
import { race } from './race.js';
import { tiles } from './tiles.js';
import { bytes } from './text.js';

const problem = document.querySelector('#problem');
const status = document.querySelector('#status');

/** Tells the visitor what went wrong, and what may be done here. A message's own advice is for who writes a page. */
export function complain(error) {
  const name = document.createElement('strong');
  name.textContent = error?.name ?? 'Error';
  const message = String(error?.message ?? error);
  const what = document.createElement('p');
  if (error?.name === 'DeviceLostError') {
    what.append(name, `: ${message.split(';')[0]}.`);
    const again = document.createElement('button');
    again.type = 'button';
    again.textContent = 'Start again';
    again.addEventListener('click', () => location.reload());
    problem.replaceChildren(what, again);
  } else if (error?.name === 'UnsupportedError' || error?.name === 'OutOfMemoryError') {
    what.append(name, `: ${message.split(';')[0]}.`);
    const advice = document.createElement('p');
    advice.textContent = 'Choose a shorter text, fewer heads or a smaller d.';
    problem.replaceChildren(what, advice);
  } else {
    what.append(name, `: ${message}`);
    problem.replaceChildren(what);
  }
  problem.hidden = false;
}

export function complainNoMore() {
  problem.hidden = true;
}

function describe({ adapter, shaderF16, subgroups, limits }) {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter;
  const name = description || [vendor, architecture, device].filter(Boolean).join(' ') || 'not told by the browser';
  const shown = `${name}${isFallbackAdapter ? ' (software: no GPU, expect slow times)' : ''}`;
  document.querySelector('#gpu-name').textContent = shown;
  const rows = {
    'Adapter': shown,
    'f16 in shaders': shaderF16 ? 'yes' : 'no; f16 is unpacked',
    'Subgroups': subgroups ? subgroups.min === subgroups.max ? `of ${subgroups.min}` : `of ${subgroups.min} to ${subgroups.max}` : 'no; rows are summed in workgroup memory',
    'Largest binding': bytes(limits.maxStorageBufferBindingSize),
    'Largest buffer': bytes(limits.maxBufferSize),
    'Workgroup memory': bytes(limits.maxComputeWorkgroupStorageSize),
    'Invocations of a workgroup': String(limits.maxComputeInvocationsPerWorkgroup),
  };
  document.querySelector('#gpu').replaceChildren(...Object.entries(rows).map(([term, text]) => {
    const row = document.createElement('div');
    const [dt, dd] = ['dt', 'dd'].map((tag) => row.appendChild(document.createElement(tag)));
    [dt.textContent, dd.textContent] = [term, text];
    return row;
  }));
}

async function start() {
  let api;
  try {
    api = await import('../pkg/index.js');
  } catch (error) {
    const advice = 'the package is not built, or it did not load: run `make web` in the repository, then `npm start` in web/, and load this page again';
    throw Object.assign(new Error(`${advice} (${error.message})`), { name: 'PackageMissing' });
  }
  const attention = await api.FlashAttention.create();
  describe(await attention.info());
  void attention.device.lost.then(({ message }) => complain({ name: 'DeviceLostError', message: `the GPU device was lost (${message || 'the browser does not say why'})` }));
  const plot = growth(attention, api);
  race(attention, api, { complain, complainNoMore, changed: plot });
  compare(attention, api);
  status.textContent = 'Press Run.';
  await heatMap(attention).catch((error) => noMap(`The map could not be drawn. ${error?.name ?? 'Error'}: ${error?.message ?? error}`));
  // For whoever plays with it in the console.
  globalThis.attention = attention;
}

/** Without a map there is nothing to point at. */
function noMap(why) {
  for (const id of ['#heat-controls', '#heat-view figure']) document.querySelector(id).hidden = true;
  document.querySelector('#heat-cell').textContent = why;
}

tiles();
start().catch((error) => {
  const needed = error?.name === 'PackageMissing' ? 'the package' : 'WebGPU';
  status.textContent = 'There is nothing to run on: see above.';
  document.querySelector('#progress').hidden = true;
  document.querySelector('#gpu-name').textContent = error?.name === 'PackageMissing' ? 'not asked' : 'none';
  document.querySelector('#estimate').textContent = `How fast it is cannot be told without ${needed}.`;
  noMap(`The map needs ${needed}.`);
  document.querySelector('#compare-caption').textContent = `The comparison needs ${needed}.`;
  complain(error);
});
