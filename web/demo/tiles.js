// How tiles walk: a small attention, drawn step by step with its true numbers.
const [ROWS, KEYS, TILE, DIM] = [12, 12, 3, 4];
const [Q_TILES, KV_TILES] = [ROWS / TILE, KEYS / TILE];
const [CELL, LEFT, TOP] = [22, 120, 100];
const SVG = 'http://www.w3.org/2000/svg';

const score = (i, j) => {
  let sum = 0;
  for (let d = 0; d < DIM; d++) sum += 1.6 * Math.sin(1.3 * i + 2.1 * d) * Math.cos(0.9 * j - 1.7 * d);
  return sum;
};

/** The steps of all Q tiles: the tile, and of its last row, m, l and α after it. */
function walk(causal) {
  const steps = [];
  for (let i = 0; i < Q_TILES; i++) {
    let [m, l] = [-Infinity, 0];
    const last = (i + 1) * TILE - 1;
    for (let j = 0; j < KV_TILES; j++) {
      if (causal && j * TILE > last) continue;
      const scores = Array.from({ length: TILE }, (_, key) => j * TILE + key).filter((key) => !causal || key <= last).map((key) => score(last, key));
      const mNew = Math.max(m, ...scores);
      const alpha = Math.exp(m - mNew);
      l = alpha * l + scores.reduce((sum, score) => sum + Math.exp(score - mNew), 0);
      m = mNew;
      steps.push({ i, j, m, l, alpha });
    }
    steps.push({ i, j: null, m, l, alpha: 1 });
  }
  return steps;
}

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
    const { i, j, m, l, alpha } = steps[now];
    const nodes = [];
    const rectangle = (x, y, width, height, className) => nodes.push(element('rect', { x, y, width, height, class: className }));
    const text = (x, y, content, className = '', anchor = 'start') => nodes.push(element('text', { x, y, class: className, 'text-anchor': anchor }, content));
    const side = TILE * CELL;

    // The score matrix, tile by tile; only the one in the chip's memory exists.
    for (let row = 0; row < Q_TILES; row++) {
      for (let column = 0; column < KV_TILES; column++) {
        const isHidden = causal.checked && column > row;
        const wasSeen = steps.slice(0, now).some((step) => step.i === row && step.j === column);
        const className = row === i && column === j ? 'cell now' : isHidden ? 'cell skipped' : wasSeen ? 'cell done' : 'cell';
        rectangle(LEFT + column * side + 1, TOP + row * side + 1, side - 2, side - 2, className);
      }
    }
    for (let row = 0; row < Q_TILES; row++) rectangle(LEFT - 38, TOP + row * side + 2, 26, side - 4, `q${row === i ? '' : ' idle'}`);
    for (let column = 0; column < KV_TILES; column++) {
      rectangle(LEFT + column * side + 2, TOP - 38, side - 4, 26, `k${column === j ? '' : ' idle'}`);
      rectangle(LEFT + column * side + 2, TOP - 70, side - 4, 26, `v${column === j ? '' : ' idle'}`);
    }
    text(LEFT - 46, TOP + 2 * side + 5, 'Q', '', 'end');
    text(LEFT - 8, TOP - 19, 'Kᵀ', '', 'end');
    text(LEFT - 8, TOP - 51, 'V', '', 'end');
    text(LEFT + 2 * side, TOP + Q_TILES * side + 20, 'S = Q Kᵀ: only the coloured tile exists', 'quiet', 'middle');

    // What the last row of the Q tile holds.
    const bottom = TOP + Q_TILES * side;
    const [x, top] = narrow.matches ? [LEFT - 38, bottom + 56] : [LEFT + KV_TILES * side + 36, TOP];
    svg.setAttribute('viewBox', narrow.matches ? `${LEFT - 66} 20 344 ${bottom + 300}` : '0 0 640 400');
    text(x, top + 2, `Q tile ${i + 1}, its last row:`, 'quiet');
    const meter = (y, name, value, share) => {
      text(x, y, `${name} = ${value}`);
      rectangle(x, y + 8, 170, 10, 'frame');
      rectangle(x, y + 8, Math.max(0, Math.min(1, share)) * 170, 10, 'meter');
    };
    meter(top + 36, 'm', m.toFixed(2), (m + 6) / 12);
    meter(top + 86, 'α', now > 0 && steps[now - 1].i === i ? alpha.toFixed(3) : '0 (nothing before)', now > 0 && steps[now - 1].i === i ? alpha : 0);
    meter(top + 136, 'l', l.toFixed(3), l / 8);
    text(x, top + 200, j === null ? 'O = O / l, LSE = m + ln l' : 'O = α · O + P V');
    rectangle(x, top + 208, 170, 26, j === null ? 'q' : 'q idle');
    text(x, top + 254, j === null ? 'written to memory' : 'in registers', 'quiet');
    svg.replaceChildren(...nodes);

    caption.textContent = j === null
      ? `Step ${now + 1} of ${steps.length}: Q tile ${i + 1} has seen every tile it may see; O and LSE are written.`
      : `Step ${now + 1} of ${steps.length}: Q tile ${i + 1} meets K and V tile ${j + 1}. m = ${m.toFixed(2)}, l = ${l.toFixed(3)}${causal.checked && i === j ? '; on the diagonal the mask hides later keys' : ''}.`;
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
    timer = isPlaying ? setInterval(advance, 900) : undefined;
    play.textContent = isPlaying ? 'Pause' : 'Play';
    play.setAttribute('aria-pressed', String(isPlaying));
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
