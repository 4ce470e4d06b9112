// How much memory each algorithm takes beyond Q, K, V and O, over N: what `plan` says, without running anything.
import { bytes } from './text.js';

const SVG = 'http://www.w3.org/2000/svg';
const [WIDTH, LEFT, RIGHT, TOP, BOTTOM] = [640, 110, 610, 24, 205];
/** Powers of two: N along x, bytes along y. */
const [FIRST, LAST] = [8, 16];
const [LEAST, MOST] = [10, 36];

function element(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Returns a function that draws the plot for a problem. */
export function growth(attention, { UnsupportedError }) {
  const svg = document.querySelector('#growth');
  const caption = document.querySelector('#growth-caption');
  const x = (power) => LEFT + (power - FIRST) / (LAST - FIRST) * (RIGHT - LEFT);
  const y = (count) => BOTTOM - (Math.log2(Math.max(count, 2 ** LEAST)) - LEAST) / (MOST - LEAST) * (BOTTOM - TOP);

  /** Points of one algorithm, up to the last N that this GPU can hold. */
  async function points(problem, algorithm) {
    const found = [];
    for (let power = FIRST; power <= LAST; power++) {
      try {
        const { extraBytes } = await attention.plan({ ...problem, algorithm, shape: { ...problem.shape, seqlen: 2 ** power } });
        found.push([power, extraBytes]);
      } catch (error) {
        if (!(error instanceof UnsupportedError)) throw error;
        break;
      }
    }
    return found;
  }

  return async function draw(problem) {
    const { seqlen } = problem.shape;
    const [flash, standard] = [await points(problem, 'flash'), await points(problem, 'standard')];
    const nodes = [];
    for (let power = FIRST; power <= LAST; power += 2) {
      // The last one must not pass the edge, however large the letters are.
      const [at, anchor] = power === LAST ? [WIDTH - 4, 'end'] : [x(power), 'middle'];
      nodes.push(element('text', { x: at, y: BOTTOM + 30, 'text-anchor': anchor, class: 'quiet' }, String(2 ** power)));
    }
    for (let power = LEAST; power <= MOST; power += 6) {
      nodes.push(element('line', { x1: LEFT, x2: RIGHT, y1: y(2 ** power), y2: y(2 ** power), class: 'grid' }));
      nodes.push(element('text', { x: LEFT - 8, y: y(2 ** power) + 5, 'text-anchor': 'end', class: 'quiet' }, bytes(2 ** power)));
    }
    nodes.push(element('text', { x: RIGHT, y: BOTTOM + 56, 'text-anchor': 'end', class: 'quiet' }, 'N, the length of the text'));
    const at = Math.log2(seqlen);
    if (at >= FIRST && at <= LAST) nodes.push(element('line', { x1: x(at), x2: x(at), y1: TOP, y2: BOTTOM, class: 'here' }));
    for (const [name, line] of Object.entries({ standard, flash })) {
      if (line.length === 0) continue;
      nodes.push(element('polyline', { points: line.map(([power, count]) => `${x(power)},${y(count)}`).join(' '), class: `line ${name}` }));
      const [power, count] = line.at(-1);
      const isEnd = power < LAST;
      nodes.push(element('circle', { cx: x(power), cy: y(count), r: 5, class: `point ${name}` }));
      const label = isEnd ? `${name} ends here: N = ${2 ** power}` : name;
      // That of flash may stand close below the other line.
      nodes.push(element('text', { x: x(power) - 10, y: y(count) - (name === 'flash' ? 7 : 10), 'text-anchor': 'end', class: name }, label));
    }
    const last = (line) => line.length === 0 ? 'nothing that this GPU can hold' : `${bytes(line.at(-1)[1])} at N = ${2 ** line.at(-1)[0]}`;
    // Where it no longer grows, its rows are computed in parts.
    const inParts = standard.find(([, count], index) => index > 0 && count < 1.5 * standard[index - 1][1]);
    if (inParts) {
      nodes.push(element('circle', { cx: x(inParts[0] - 1), cy: y(inParts[1]), r: 5, class: 'point standard' }));
      // Above the line, unless its end is named there.
      const isAbove = standard.at(-1)[0] === LAST;
      const [dy, anchor] = isAbove ? [-12, 'end'] : [22, 'middle'];
      nodes.push(element('text', { x: x(inParts[0] - 1), y: y(inParts[1]) + dy, 'text-anchor': anchor, class: 'standard' }, 'whole up to here'));
    }
    svg.replaceChildren(...nodes);
    svg.closest('figure').hidden = false;
    const parts = inParts ? `From N = ${2 ** inParts[0]} on, the whole score matrix does not fit this GPU any more, and is made in parts. ` : '';
    const ending = standard.length > 0 && standard.at(-1)[0] < LAST ? `Beyond N = ${2 ** standard.at(-1)[0]} its score matrix is more than this GPU can bind.` : '';
    caption.textContent = `Memory beyond Q, K, V and O, on logarithmic axes: standard attention takes ${last(standard)}, flash ${last(flash)}. ${parts}${ending}`;
  };
}
