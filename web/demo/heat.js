// The probabilities of one head of a real model, computed on the GPU and drawn on a canvas, with the words that they are of.
import { TOKENS as WORDS } from './tokens.js';

const [HEADS, TOKENS, HEAD_DIM] = [12, 128, 32];
/** Pixels: of a cell, and of the axes on the left and above. */
const [CELL, AXIS] = [10, 200];
/** Every so many tokens the axes show a word, in this size; those of the cursor are larger. On a phone the map is small. */
const [WIDE, NARROW] = [{ step: 4, size: 26, chosen: 40 }, { step: 8, size: 54, chosen: 64 }];

/** A word as it is read: without the marks of WordPiece. */
function word(index) {
  return WORDS[index].replace(/^##/, '…');
}

function percent(chance) {
  return chance < 0.001 ? 'less than 0.1 %' : `${Number((100 * chance).toPrecision(2))} %`;
}

export async function heatMap(attention) {
  const canvas = document.querySelector('#heat');
  const [caption, strongest, text] = ['#heat-cell', '#strongest', '#heat-text'].map((id) => document.querySelector(id));
  const form = document.querySelector('#heat-controls');
  const context = canvas.getContext('2d');
  const response = await fetch(new URL('./minilm.bin', import.meta.url));
  if (!response.ok) throw new Error(`minilm.bin did not load: the server answered ${response.status}`);
  const data = new Uint16Array(await response.arrayBuffer());
  // With V the identity, O is P.
  const identity = new Uint16Array(TOKENS * TOKENS);
  for (let key = 0; key < TOKENS; key++) identity[key * TOKENS + key] = 0x3c00;

  let probabilities;
  let latest = 0;
  let cell = { row: 40, column: 20 };
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const narrow = matchMedia('(max-width: 34rem)');
  const spans = WORDS.map((token, index) => {
    const span = document.createElement('span');
    span.textContent = token.replace(/^##/, '');
    return [...index > 0 && !token.startsWith('##') ? [' '] : [], span];
  });
  text.replaceChildren(...spans.flat());

  async function compute() {
    const mine = ++latest;
    const head = Number(form.elements.head.value);
    form.querySelector('output').value = String(head);
    const tensor = (index) => data.subarray((index * HEADS + head - 1) * TOKENS * HEAD_DIM, (index * HEADS + head) * TOKENS * HEAD_DIM);
    const { o } = await attention.forward({
      shape: { seqlen: TOKENS, headDim: HEAD_DIM, headDimV: TOKENS },
      q: tensor(0), k: tensor(1), v: identity, element: 'f16', causal: form.elements.causal.checked,
    });
    if (mine !== latest) return;
    probabilities = Float32Array.from(o, half);
    select(cell.row, cell.column);
    canvas.setAttribute('aria-label', `Heat map of the attention probabilities of head ${head}: ${TOKENS} rows, ${TOKENS} columns`);
    canvas.dataset.head = String(head);
  }

  /** A probability is a number from 0 to 1, and so is none of the special ones. */
  function half(bits) {
    const exponent = bits >>> 10;
    const fraction = bits & 0x3ff;
    return exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  }

  /** From nothing over the colour to the ink; the square root, because most are small, shows 5 % as 0.22 and 40 % as 0.63. */
  function colourOf(chance, [paper, middle, ink]) {
    const strength = Math.sqrt(Math.min(1, chance));
    const [from, to, share] = strength < 0.6 ? [paper, middle, strength / 0.6] : [middle, ink, (strength - 0.6) / 0.4];
    return from.map((value, channel) => Math.round(value + (to[channel] - value) * share));
  }

  function palette() {
    const style = getComputedStyle(document.documentElement);
    return ['--paper', '--heat', '--ink'].map((name) => {
      const digits = style.getPropertyValue(name).trim().slice(1);
      return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
    });
  }

  function draw() {
    if (!probabilities) return;
    const colours = palette();
    const css = (channels) => `rgb(${channels.join(' ')})`;
    const ink = css(colours[2]);
    context.fillStyle = css(colours[0]);
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (let row = 0; row < TOKENS; row++) {
      for (let column = 0; column < TOKENS; column++) {
        context.fillStyle = css(colourOf(probabilities[row * TOKENS + column], colours));
        context.fillRect(AXIS + column * CELL, AXIS + row * CELL, CELL, CELL);
      }
    }
    axes(ink);
    context.strokeStyle = ink;
    context.lineWidth = 3;
    context.strokeRect(AXIS, AXIS, TOKENS * CELL, TOKENS * CELL);
    // The row and the column of the cursor, and where they meet.
    context.lineWidth = 2;
    context.strokeRect(AXIS, AXIS + cell.row * CELL - 1, TOKENS * CELL, CELL + 2);
    context.strokeRect(AXIS + cell.column * CELL - 1, AXIS, CELL + 2, TOKENS * CELL);
    context.lineWidth = 5;
    context.strokeRect(AXIS + cell.column * CELL - 3, AXIS + cell.row * CELL - 3, CELL + 6, CELL + 6);
    spans.forEach((parts, index) => {
      const span = parts.at(-1);
      const chance = probabilities[cell.row * TOKENS + index];
      const strong = Math.sqrt(chance) > 0.6;
      span.style.background = css(colourOf(chance, colours));
      span.style.color = strong ? css(colours[0]) : ink;
      span.className = index === cell.row ? 'looks' : '';
    });
  }

  /** Words beside rows and above columns: every few, and those of the cursor. */
  function axes(ink) {
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const { step, size, chosen: large } = narrow.matches ? NARROW : WIDE;
    const write = (index, chosen, place) => {
      const near = Math.abs(index - chosen);
      if (index !== chosen && (index % step !== 0 || near < step)) return;
      context.save();
      place(AXIS + (index + 0.5) * CELL);
      context.fillStyle = ink;
      context.fillText(fitting(word(index), index === chosen ? 'bold' : 'normal', index === chosen ? large : size), 0, 0);
      context.restore();
    };
    for (let index = 0; index < TOKENS; index++) {
      write(index, cell.row, (at) => context.translate(AXIS - 10, at));
      write(index, cell.column, (at) => {
        context.translate(at, AXIS - 10);
        context.rotate(Math.PI / 2);
      });
    }
  }

  /** Chooses letters in which a word fits an axis; one that would be too small loses its end. */
  function fitting(text, weight, size) {
    const widthIn = (size, text) => {
      context.font = `${weight} ${size}px system-ui, sans-serif`;
      return context.measureText(text).width;
    };
    const room = AXIS - 14;
    const fits = Math.max(0.6 * size, size * Math.min(1, room / widthIn(size, text)));
    let shown = text;
    while (widthIn(fits, shown) > room + 1) shown = `${shown.replace('…', '').slice(0, -1)}…`;
    return shown;
  }

  function select(row, column) {
    const inside = (value) => Math.max(0, Math.min(TOKENS - 1, value));
    cell = { row: inside(row), column: inside(column) };
    if (!probabilities) return;
    draw();
    const chances = probabilities.subarray(cell.row * TOKENS, (cell.row + 1) * TOKENS);
    caption.textContent = `Token ${cell.row + 1}, “${word(cell.row)}”, takes ${percent(chances[cell.column])} from token ${cell.column + 1}, “${word(cell.column)}”.`;
    const order = Array.from(chances.keys()).sort((a, b) => chances[b] - chances[a]).slice(0, 5);
    strongest.replaceChildren(...order.map((index) => {
      const item = document.createElement('li');
      const bar = document.createElement('span');
      bar.style.width = `${100 * chances[index]}%`;
      item.append(`“${word(index)}” (token ${index + 1}): ${percent(chances[index])}`, bar);
      return item;
    }));
  }

  function point({ offsetX, offsetY }) {
    const index = (offset, size) => Math.floor((offset / size * canvas.width - AXIS) / CELL);
    select(index(offsetY, canvas.clientHeight), index(offsetX, canvas.clientWidth));
  }
  canvas.addEventListener('pointerdown', point);
  canvas.addEventListener('pointermove', point);
  canvas.addEventListener('keydown', (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    select(cell.row + down, cell.column + right);
  });
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', () => {
    compute().catch((error) => caption.textContent = `The map of this head could not be computed. ${error?.name ?? 'Error'}: ${error?.message ?? error}`);
  });
  dark.addEventListener('change', draw);
  narrow.addEventListener('change', draw);
  await compute();
}
