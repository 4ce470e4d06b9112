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

/** Places for a label beside a point: above and below, each on the left and on the right; in lines of text. */
const PLACES = [[-10, -0.7, 'end'], [10, -0.7, 'start'], [10, 1.3, 'start'], [-10, 1.3, 'end']];

/**
 * Gives labels their places, so that none lies on another, nor on a line of these points if it can be. One without a place is left
 * out: the caption says it too.
 */
function labels(size, lines) {
  const steps = Array.from({ length: 10 }, (_, step) => step / 10);
  const dots = lines.flatMap((line) => line.slice(1).flatMap(([x, y], index) => steps.map((step) => [x - step * (x - line[index][0]), y - step * (y - line[index][1])])));
  const taken = [];
  const width = (text) => 0.6 * size * text.length;
  return (name, text, x, y) => {
    const boxes = PLACES.map(([dx, lines, anchor]) => {
      const at = [x + dx, y + lines * size];
      const left = anchor === 'end' ? at[0] - width(text) : at[0];
      return { at, anchor, left, right: left + width(text), top: at[1] - size, bottom: at[1] + 4 };
    });
    const isFree = ({ left, right, top, bottom }) => left > LEFT && right <= WIDTH && bottom < BOTTOM + 8
      && taken.every((other) => right < other.left || left > other.right || bottom < other.top || top > other.bottom);
    const isClear = ({ left, right, top, bottom }) => !dots.some(([x, y]) => x > left && x < right && y > top && y < bottom);
    const box = boxes.find((box) => isFree(box) && isClear(box)) ?? boxes.find(isFree);
    if (!box) return [];
    taken.push(box);
    return [element('text', { x: box.at[0], y: box.at[1], 'text-anchor': box.anchor, class: name }, text)];
  };
}

/** Returns a function that draws the plot for a problem. */
export function growth(attention, { UnsupportedError }) {
  const svg = document.querySelector('#growth');
  const caption = document.querySelector('#growth-caption');
  // On a phone the letters are larger.
  const narrow = matchMedia('(max-width: 34rem)');
  let paint = () => undefined;
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

  narrow.addEventListener('change', () => paint());

  return async function draw(problem) {
    const [flash, standard] = [await points(problem, 'flash'), await points(problem, 'standard')];
    paint = () => show(problem.shape.seqlen, flash, standard);
    paint();
  };

  function show(seqlen, flash, standard) {
    const [nodes, names] = [[], []];
    const label = labels(narrow.matches ? 22 : 14, [flash, standard].map((line) => line.map(([power, count]) => [x(power), y(count)])));
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
    // Where it no longer grows, its rows are computed in parts.
    const inParts = standard.find(([, count], index) => index > 0 && count < 1.5 * standard[index - 1][1]);
    for (const [name, line] of Object.entries({ standard, flash })) {
      if (line.length === 0) continue;
      nodes.push(element('polyline', { points: line.map(([power, count]) => `${x(power)},${y(count)}`).join(' '), class: `line ${name}` }));
      const [power, count] = line.at(-1);
      const isEnd = power < LAST;
      nodes.push(element('circle', { cx: x(power), cy: y(count), r: 5, class: `point ${name}` }));
      names.push(...label(name, isEnd ? `${name} to N = ${2 ** power}` : name, x(power), y(count)));
    }
    const last = (line) => line.length === 0 ? 'nothing that this GPU can hold' : `${bytes(line.at(-1)[1])} at N = ${2 ** line.at(-1)[0]}`;
    if (inParts) {
      nodes.push(element('circle', { cx: x(inParts[0] - 1), cy: y(inParts[1]), r: 5, class: 'point standard' }));
      names.push(...label('standard', 'whole up to here', x(inParts[0] - 1), y(inParts[1])));
    }
    svg.replaceChildren(...nodes, ...names);
    svg.closest('figure').hidden = false;
    const parts = inParts ? `From N = ${2 ** inParts[0]} on, the whole score matrix does not fit this GPU any more, and is made in parts. ` : '';
    const end = standard.at(-1)?.[0] ?? LAST;
    const tooLarge = flash.at(-1)?.[0] === end ? 'Q, K and V themselves are' : 'its score matrix is';
    const ending = end < LAST ? `Beyond N = ${2 ** end} ${tooLarge} more than this GPU can bind.` : '';
    caption.textContent = `Memory beyond Q, K, V and O, on logarithmic axes: standard attention takes ${last(standard)}, flash ${last(flash)}. ${parts}${ending}`;
  }
}
