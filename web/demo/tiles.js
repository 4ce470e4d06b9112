// How tiles walk: a small attention, drawn step by step with its true numbers.
const [ROWS, KEYS, TILE, DIM] = [12, 12, 3, 4];
const [Q_TILES, KV_TILES] = [ROWS / TILE, KEYS / TILE];
const [CELL, LEFT, TOP] = [22, 96, 100];
const SVG = 'http://www.w3.org/2000/svg';
/** What the meters go to. */
const [MOST_L, MOST_M, MOST_O] = [8, 6, 5];

const score = (i, j) => {
  let sum = 0;
  for (let d = 0; d < DIM; d++) sum += 1.6 * Math.sin(1.3 * i + 2.1 * d) * Math.cos(0.9 * j - 1.7 * d);
  return sum;
};
const value = (j, d) => Math.sin(0.8 * j + 1.1 * d);

/** With the sign that is as wide as a digit. */
const minus = (text) => text.replace('-', '−');

/**
 * The steps of all Q tiles: the tile, what happens, and of the tile's last row m, l, α and O after it. `before` is what they were, and
 * `moved` how many numbers were read or written in this step.
 */
function walk(causal) {
  const steps = [];
  for (let i = 0; i < Q_TILES; i++) {
    let state = { m: -Infinity, l: 0, o: Array(DIM).fill(0) };
    const last = (i + 1) * TILE - 1;
    const push = (what, j, alpha, next, moved) => {
      steps.push({ what, i, j, alpha, before: state, moved, ...next });
      state = next;
    };
    for (let j = 0; j < KV_TILES; j++) {
      if (causal && j * TILE > last) continue;
      const keys = Array.from({ length: TILE }, (_, key) => j * TILE + key).filter((key) => !causal || key <= last);
      const scores = keys.map((key) => score(last, key));
      const m = Math.max(state.m, ...scores);
      const alpha = Math.exp(state.m - m);
      // The first tile also brings Q.
      const moved = 2 * TILE * DIM + (state.l === 0 ? TILE * DIM : 0);
      const grows = alpha < 1 && state.l > 0;
      if (grows) push('shrink', j, alpha, { m, l: alpha * state.l, o: state.o.map((number) => alpha * number) }, moved);
      const chances = scores.map((score) => Math.exp(score - m));
      const l = state.l + chances.reduce((sum, chance) => sum + chance, 0);
      const o = state.o.map((number, d) => number + keys.reduce((sum, key, index) => sum + chances[index] * value(key, d), 0));
      push('add', j, alpha, { m, l, o }, grows ? 0 : moved);
    }
    push('write', null, 1, { m: state.m, l: state.l, o: state.o.map((number) => number / state.l) }, TILE * DIM + TILE);
  }
  return steps;
}

/**
 * Numbers that standard attention moves for the rows of one Q tile: Q, K and V once, S written, read and overwritten by P, P read, O
 * written.
 */
const STANDARD = 2 * TILE * DIM + 2 * KEYS * DIM + 4 * TILE * KEYS;

function element(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export function tiles() {
  const svg = document.querySelector('#tiles');
  const caption = document.querySelector('#tiles-caption');
  const form = document.querySelector('#tile-controls');
  const [play, step] = ['#play', '#step'].map((id) => document.querySelector(id));
  const { at, causal } = form.elements;
  // On a phone the numbers stand below the matrix.
  const narrow = matchMedia('(max-width: 34rem)');
  let steps;
  let timer;

  function draw() {
    const now = Number(at.value);
    const current = steps[now];
    const { what, i, j, m, l, o, alpha, before } = current;
    const nodes = [];
    const rectangle = (x, y, width, height, className) => nodes.push(element('rect', { x, y, width: Math.max(0, width), height, class: className }));
    const text = (x, y, content, className = '', anchor = 'start') => nodes.push(element('text', { x, y, class: className, 'text-anchor': anchor }, minus(content)));
    const side = TILE * CELL;

    // The score matrix, tile by tile; only the one in the chip's memory exists. O on its right: a tile for each tile of Q.
    for (let row = 0; row < Q_TILES; row++) {
      for (let column = 0; column < KV_TILES; column++) {
        const isHidden = causal.checked && column > row;
        const wasSeen = steps.slice(0, now).some((step) => step.i === row && step.j === column);
        const className = row === i && column === j ? 'cell now' : isHidden ? 'cell skipped' : wasSeen ? 'cell done' : 'cell';
        rectangle(LEFT + column * side + 1, TOP + row * side + 1, side - 2, side - 2, className);
      }
    }
    const right = LEFT + KV_TILES * side;
    for (let row = 0; row < Q_TILES; row++) {
      rectangle(LEFT - 38, TOP + row * side + 2, 26, side - 4, `q${row === i ? '' : ' idle'}`);
      const isWritten = row < i || row === i && what === 'write';
      rectangle(right + 12, TOP + row * side + 2, 26, side - 4, `o${isWritten ? '' : ' idle'}`);
    }
    for (let column = 0; column < KV_TILES; column++) {
      rectangle(LEFT + column * side + 2, TOP - 38, side - 4, 26, `k${column === j ? '' : ' idle'}`);
      rectangle(LEFT + column * side + 2, TOP - 70, side - 4, 26, `v${column === j ? '' : ' idle'}`);
    }
    text(LEFT - 46, TOP + 2 * side + 5, 'Q', '', 'end');
    text(LEFT - 8, TOP - 19, 'Kᵀ', '', 'end');
    text(LEFT - 8, TOP - 51, 'V', '', 'end');
    text(right + 25, TOP - 14, 'O', '', 'middle');
    const bottom = TOP + Q_TILES * side;
    text(LEFT + 2 * side, bottom + 22, 'S = Q Kᵀ: only the filled tile exists', 'quiet', 'middle');

    // What the last row of the Q tile holds.
    const [x, top] = narrow.matches ? [LEFT - 38, bottom + 60] : [right + 66, TOP - 76];
    const width = narrow.matches ? 290 : 190;
    svg.setAttribute('viewBox', narrow.matches ? `${LEFT - 66} 20 372 ${bottom + 466}` : '0 0 640 470');
    text(x, top, `Tile ${i + 1} of Q, its last row`, 'quiet');
    const meter = (y, name, shown, [from, to], old, most, least = 0) => {
      const place = (number) => x + Math.max(0, Math.min(1, (number - least) / (most - least))) * width;
      text(x, y, `${name} = ${shown}`);
      rectangle(x, y + 8, width, 12, 'frame');
      rectangle(Math.min(place(from), place(to)), y + 8, Math.abs(place(to) - place(from)), 12, 'meter');
      // Where it was before this step.
      if (old !== undefined) nodes.push(element('line', { x1: place(old), x2: place(old), y1: y + 4, y2: y + 24, class: 'was' }));
      text(x, y + 36, String(least), 'scale');
      text(x + width, y + 36, String(most), 'scale', 'end');
    };
    const known = Number.isFinite(before.m);
    meter(top + 30, 'm', m.toFixed(2), [-MOST_M, m], known ? before.m : undefined, MOST_M, -MOST_M);
    meter(top + 88, 'α', what === 'shrink' ? `${alpha.toFixed(3)}: l and O shrink` : '1', [0, what === 'shrink' ? alpha : 1], undefined, 1);
    meter(top + 146, 'l', l.toFixed(3), [0, l], known ? before.l : undefined, MOST_L);
    const doing = { shrink: 'O = α · O', add: 'O = O + P V', write: 'O = O / l, written' }[what];
    text(x, top + 204, doing);
    o.forEach((number, d) => {
      const [middle, half] = [x + width / 2, width / 2];
      const y = top + 214 + d * 16;
      const place = (number) => middle + Math.max(-1, Math.min(1, number / MOST_O)) * half;
      rectangle(x, y, width, 12, 'frame');
      rectangle(Math.min(middle, place(number)), y, Math.abs(place(number) - middle), 12, 'o');
      if (known) nodes.push(element('line', { x1: place(before.o[d]), x2: place(before.o[d]), y1: y - 1, y2: y + 13, class: 'was' }));
    });
    text(x, top + 292, String(-MOST_O), 'scale');
    text(x + width / 2, top + 292, '0', 'scale', 'middle');
    text(x + width, top + 292, String(MOST_O), 'scale', 'end');

    // Numbers moved to and from memory, for the same tiles of Q.
    const moved = steps.slice(0, now + 1).reduce((sum, { moved }) => sum + moved, 0);
    const standard = STANDARD * (i + 1);
    const most = STANDARD * Q_TILES;
    text(x, top + 322, 'Numbers read and written');
    for (const [index, [name, count]] of [['flash', moved], ['standard', standard]].entries()) {
      const y = top + 332 + index * 36;
      rectangle(x, y, width, 12, 'frame');
      rectangle(x, y, width * count / most, 12, name);
      text(x, y + 27, `${name}: ${count}`, 'scale');
    }
    svg.replaceChildren(...nodes);

    const place = `Step ${now + 1} of ${steps.length}`;
    const diagonal = causal.checked && i === j ? ' On the diagonal the mask hides later keys.' : '';
    caption.textContent = what === 'write'
      ? `${place}: tile ${i + 1} of Q has seen every tile it may see; O and LSE are written. So far flash moved ${moved} numbers, standard attention ${standard} for the same rows; its share grows with N².`
      : what === 'shrink'
        ? `${place}: tile ${j + 1} of K brings a larger score, m = ${minus(m.toFixed(2))}. What was summed before shrinks by α = ${alpha.toFixed(3)}: l = ${l.toFixed(3)}.`
        : `${place}: tile ${i + 1} of Q meets tile ${j + 1} of K and V, which is added. m = ${minus(m.toFixed(2))}, l = ${l.toFixed(3)}.${diagonal}`;
  }

  function restart() {
    steps = walk(causal.checked);
    at.max = String(steps.length - 1);
    at.value = String(Math.min(Number(at.value), steps.length - 1));
    draw();
  }

  function advance() {
    at.value = String((Number(at.value) + 1) % steps.length);
    draw();
  }

  function setPlaying(isPlaying) {
    clearInterval(timer);
    timer = isPlaying ? setInterval(advance, 1100) : undefined;
    play.textContent = isPlaying ? 'Pause' : 'Play';
    // Someone who listens wants the steps, not a stream of them.
    caption.setAttribute('aria-live', isPlaying ? 'off' : 'polite');
  }

  play.addEventListener('click', () => setPlaying(timer === undefined));
  step.addEventListener('click', () => {
    setPlaying(false);
    advance();
  });
  at.addEventListener('input', () => {
    setPlaying(false);
    draw();
  });
  causal.addEventListener('input', restart);
  form.addEventListener('submit', (event) => event.preventDefault());
  narrow.addEventListener('change', draw);
  restart();
  setPlaying(!matchMedia('(prefers-reduced-motion: reduce)').matches);
}
