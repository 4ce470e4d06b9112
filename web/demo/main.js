// The page: asks for a GPU, and hands it to the three parts.
import { FlashAttention } from '../pkg/index.js';
import { heatMap } from './heat.js';
import { race } from './race.js';
import { tiles } from './tiles.js';
import { bytes } from './text.js';

const problem = document.querySelector('#problem');

/** Tells the visitor what went wrong, and what may be done. */
export function complain(error) {
  const name = document.createElement('strong');
  name.textContent = error?.name ?? 'Error';
  problem.replaceChildren(name, `: ${error?.message ?? error}`);
  if (error?.name === 'DeviceLostError') {
    const again = document.createElement('button');
    again.type = 'button';
    again.textContent = 'Start again';
    again.addEventListener('click', () => location.reload());
    problem.append(' ', again);
  }
  problem.hidden = false;
}

export function complainNoMore() {
  problem.hidden = true;
}

function describe({ adapter, shaderF16, subgroups, limits }) {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter;
  const name = description || [vendor, architecture, device].filter(Boolean).join(' ') || 'not told by the browser';
  const rows = {
    'Adapter': `${name}${isFallbackAdapter ? ' (software: no GPU, expect slow times)' : ''}`,
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

tiles();
try {
  const attention = await FlashAttention.create();
  describe(await attention.info());
  void attention.device.lost.then(({ message }) => complain({ name: 'DeviceLostError', message: `the GPU device was lost (${message || 'the browser does not say why'})` }));
  race(attention, { complain, complainNoMore });
  await heatMap(attention);
  // For whoever plays with it in the console.
  globalThis.attention = attention;
} catch (error) {
  document.querySelector('#gpu').replaceChildren();
  complain(error);
}
