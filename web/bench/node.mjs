// Prints what `overhead` finds in Node.js, as JSON.
import { FlashAttention } from 'wgpu-flash-attention';
import { create } from 'webgpu';
import { overhead } from './overhead.js';

const attention = await FlashAttention.create({ gpu: create(['backend=vulkan']) });
console.log(JSON.stringify(await overhead(attention)));
attention.destroy();
