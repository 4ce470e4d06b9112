// The entry for Node.js, whose `fetch` reads no files.
import { readFile } from 'node:fs/promises';
import { besideThis } from './location.js';
import { useWasm } from './load.js';

useWasm(() => readFile(besideThis()));

export * from './index.js';
