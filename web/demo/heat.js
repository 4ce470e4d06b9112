// The probabilities of one head of a real model, computed on the GPU and drawn on a canvas.
const [HEADS, TOKENS, HEAD_DIM] = [12, 128, 32];
const CELL = 5;

export async function heatMap(attention) {
  const canvas = document.querySelector('#heat');
  const caption = document.querySelector('#heat-cell');
  const form = document.querySelector('#heat-controls');
  const context = canvas.getContext('2d');
  const response = await fetch(new URL('./minilm.bin', import.meta.url));
  const data = new Uint16Array(await response.arrayBuffer());
  // With V the identity, O is P.
  const identity = new Uint16Array(TOKENS * TOKENS);
  for (let key = 0; key < TOKENS; key++) identity[key * TOKENS + key] = 0x3c00;

  let probabilities;
  let latest = 0;
  let cell = { row: 40, column: 20 };
  const dark = matchMedia('(prefers-color-scheme: dark)');

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
    draw();
    canvas.setAttribute('aria-label', `Heat map of the attention probabilities of head ${head}: ${TOKENS} rows, ${TOKENS} columns`);
    canvas.dataset.head = String(head);
  }

  /** A probability is a number from 0 to 1, and so is none of the special ones. */
  function half(bits) {
    const exponent = bits >>> 10;
    const fraction = bits & 0x3ff;
    return exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  }

  function draw() {
    if (!probabilities) return;
    const style = getComputedStyle(document.documentElement);
    const [paper, ink] = ['--paper', '--flash'].map((name) => channels(style.getPropertyValue(name)));
    const image = context.createImageData(TOKENS * CELL, TOKENS * CELL);
    for (let row = 0; row < TOKENS; row++) {
      for (let column = 0; column < TOKENS; column++) {
        // The eye sees the small ones so: most are near 1/128.
        const strength = Math.min(1, Math.sqrt(probabilities[row * TOKENS + column]) * 1.6);
        const colour = paper.map((from, channel) => from + (ink[channel] - from) * strength);
        for (let y = row * CELL; y < (row + 1) * CELL; y++) {
          for (let x = column * CELL; x < (column + 1) * CELL; x++) image.data.set([...colour, 255], (y * TOKENS * CELL + x) * 4);
        }
      }
    }
    context.putImageData(image, 0, 0);
    context.strokeStyle = style.getPropertyValue('--ink');
    context.lineWidth = 2;
    context.strokeRect(cell.column * CELL - 1, cell.row * CELL - 1, CELL + 2, CELL + 2);
  }

  function channels(colour) {
    const digits = colour.trim().slice(1);
    return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
  }

  function select(row, column) {
    const inside = (value) => Math.max(0, Math.min(TOKENS - 1, value));
    cell = { row: inside(row), column: inside(column) };
    draw();
    if (!probabilities) return;
    const chance = probabilities[cell.row * TOKENS + cell.column];
    caption.textContent = `Token ${cell.row + 1} takes ${(100 * chance).toPrecision(2)} % from token ${cell.column + 1}.`;
  }

  canvas.addEventListener('pointermove', ({ offsetX, offsetY }) =>
    select(Math.floor(offsetY / canvas.clientHeight * TOKENS), Math.floor(offsetX / canvas.clientWidth * TOKENS)));
  canvas.addEventListener('keydown', (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    select(cell.row + down, cell.column + right);
  });
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', () => void compute().catch(() => undefined));
  dark.addEventListener('change', draw);
  await compute();
}
