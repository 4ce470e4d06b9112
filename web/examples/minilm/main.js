// The page: files in, passages ranked.
import { FlashAttention } from '../../pkg/index.js';
import { Encoder, readSafetensors } from './model.js';
import { Tokenizer } from './tokenizer.js';

const [form, files, passages, query, problem, status, results] =
  ['#search', '#files', '#passages', '#query', '#problem', '#status', '#results'].map((id) => document.querySelector(id));
let attention;
let model;

async function load() {
  const chosen = (end) => [...files.files].find(({ name }) => name.endsWith(end));
  const [weights, tokenizer] = [chosen('.safetensors'), chosen('.json')];
  if (!weights || !tokenizer) throw new Error('choose both files, model.safetensors and tokenizer.json');
  status.textContent = 'Reading the model …';
  attention ??= await FlashAttention.create();
  model = {
    encoder: new Encoder(attention, readSafetensors(await weights.arrayBuffer())),
    tokenizer: new Tokenizer(await tokenizer.text()),
  };
}

async function search() {
  if (!model) await load();
  const lines = passages.value.split('\n').map((line) => line.trim()).filter(Boolean);
  status.textContent = 'Computing …';
  const began = performance.now();
  const vectors = await model.encoder.embed([query.value, ...lines].map((text) => model.tokenizer.encode(text)));
  const size = vectors.length / (lines.length + 1);
  const near = lines.map((line, index) => {
    const at = (index + 1) * size;
    return { line, score: vectors.subarray(0, size).reduce((sum, value, i) => sum + value * vectors[at + i], 0) };
  });
  results.replaceChildren(...near.sort((a, b) => b.score - a.score).map(({ line, score }) => {
    const item = document.createElement('li');
    item.textContent = `${score.toFixed(3)}  ${line}`;
    return item;
  }));
  status.textContent = `${lines.length + 1} sentences in ${Math.round(performance.now() - began)} ms.`;
}

files.addEventListener('change', () => {
  problem.hidden = true;
  model?.encoder.destroy();
  model = undefined;
});
form.addEventListener('submit', async (event) => {
  event.preventDefault();
  problem.hidden = true;
  results.replaceChildren();
  try {
    await search();
  } catch (error) {
    problem.textContent = `${error.name}: ${error.message}`;
    problem.hidden = false;
    status.textContent = 'Nothing was found.';
  }
});
