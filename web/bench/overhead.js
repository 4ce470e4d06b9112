// What a call costs beside its dispatches: the same pipeline, bind group and grid, submitted by this package and by hand.

/** An encoder that passes everything on, and remembers what its compute passes were told. */
function remembering(encoder, told) {
  const known = ['setPipeline', 'setBindGroup', 'dispatchWorkgroups'];
  return {
    label: encoder.label,
    finish: () => encoder.finish(),
    beginComputePass(descriptor) {
      const pass = encoder.beginComputePass(descriptor);
      const calls = known.map((name) => [name, (...all) => {
        told.push([name, all.map((value) => value instanceof Uint32Array ? value.slice() : value)]);
        return pass[name](...all);
      }]);
      return { ...Object.fromEntries(calls), end: () => pass.end() };
    },
  };
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** On a slow machine there are fewer turns. */
const SECONDS = 20;
const FEWEST = 5;

/** Milliseconds of the processor that this process has had, in Node.js: on a busy machine they say more than a clock. */
function processor() {
  const { user, system } = globalThis.process?.cpuUsage() ?? { user: NaN, system: NaN };
  return (user + system) / 1000;
}

/** Milliseconds that each of some ways takes, by turns: the least and the median of `turns` times `calls` in a row. */
async function race(ways, turns, calls) {
  const times = Object.fromEntries(Object.keys(ways).map((name) => [name, { clock: [], processor: [] }]));
  const start = performance.now();
  // The first ones warm up.
  for (let turn = -2; turn < turns && (turn < FEWEST || performance.now() - start < 1000 * SECONDS); turn++) {
    for (const [name, way] of Object.entries(ways)) {
      const [began, had] = [performance.now(), processor()];
      for (let call = 0; call < calls; call++) await way();
      if (turn < 0) continue;
      times[name].clock.push((performance.now() - began) / calls);
      times[name].processor.push((processor() - had) / calls);
    }
  }
  return Object.fromEntries(Object.entries(times).map(([name, { clock, processor }]) =>
    [name, { least: Math.min(...clock), median: median(clock), processor: median(processor) }]));
}

/** What the device's `createBindGroup` is given during `work`. */
async function bindGroupsOf(device, work) {
  const prototype = Object.getPrototypeOf(device);
  const { createBindGroup } = prototype;
  const given = [];
  prototype.createBindGroup = function (descriptor) {
    given.push(descriptor);
    return createBindGroup.call(this, descriptor);
  };
  try {
    await work();
  } finally {
    prototype.createBindGroup = createBindGroup;
  }
  return given;
}

/** Submissions that a queue gets during `work`. */
async function submissionsOf(queue, work) {
  const prototype = Object.getPrototypeOf(queue);
  const { submit } = prototype;
  let count = 0;
  prototype.submit = function (buffers) {
    count++;
    return submit.call(this, buffers);
  };
  try {
    await work();
  } finally {
    prototype.submit = submit;
  }
  return count;
}

/** Times in milliseconds and counts of submissions, at N = 16 and d = 64, f32, all tensors on the GPU. */
export async function overhead(flash, { turns = 40, calls = 10, queued = 100 } = {}) {
  const { device } = flash;
  const problem = { shape: { seqlen: 16, headDim: 64 } };
  const values = (phase) => Float32Array.from({ length: 16 * 64 }, (_, index) => Math.sin(0.37 * index + phase));
  const [q, k, v, o] = await Promise.all([0, 1, 2, 3].map((phase) => flash.upload(values(phase))));
  const lse = await flash.upload(new Float32Array(16));
  const prepared = await flash.prepare(problem);
  const tensors = { q, k, v, o, lse };

  const told = [];
  const first = device.createCommandEncoder();
  const [descriptor] = await bindGroupsOf(device, () => prepared.encode(remembering(first, told), tensors));
  device.queue.submit([first.finish()]);
  const byHand = (encoder) => {
    const pass = encoder.beginComputePass();
    for (const [name, all] of told) pass[name](...all);
    pass.end();
  };
  const submitted = async (record) => {
    const encoder = device.createCommandEncoder();
    record(encoder);
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
  };
  // As `forward` must: O and LSE are new.
  const withNew = (made) => (encoder) => {
    const fresh = new Map([o, lse].map(({ buffer }) => [buffer, device.createBuffer({ size: buffer.size, usage: buffer.usage })]));
    made.push(...fresh.values());
    const entries = descriptor.entries.map(({ binding, resource }) => ({ binding, resource: { ...resource, buffer: fresh.get(resource.buffer) ?? resource.buffer } }));
    const group = device.createBindGroup({ ...descriptor, entries });
    const pass = encoder.beginComputePass();
    for (const [name, all] of told) name === 'setBindGroup' ? pass[name](all[0], group, ...all.slice(2)) : pass[name](...all);
    pass.end();
  };
  const bareWithNew = async (count) => {
    const made = [];
    await submitted((encoder) => Array.from({ length: count }, () => withNew(made)(encoder)));
    for (const buffer of made) buffer.destroy();
  };
  const all = (call) => Array.from({ length: queued }, call);
  const free = (results) => {
    for (const { o, lse } of results) for (const tensor of [o, lse]) tensor.destroy();
  };
  const forward = () => flash.forward({ ...problem, q, k, v });

  const one = await race({
    bare: () => submitted(byHand),
    encode: () => submitted((encoder) => prepared.encode(encoder, tensors)),
    run: () => prepared.run(tensors),
    'bare, new': () => bareWithNew(1),
    forward: async () => free([await forward()]),
  }, turns, calls);
  const many = await race({
    bare: () => submitted((encoder) => all(() => byHand(encoder))),
    encode: () => submitted((encoder) => all(() => prepared.encode(encoder, tensors))),
    run: () => Promise.all(all(() => prepared.run(tensors))),
    'bare, new': () => bareWithNew(queued),
    forward: async () => free(await Promise.all(all(forward))),
  }, Math.ceil(turns / 3), 1);
  const submissions = {
    run: await submissionsOf(device.queue, () => Promise.all(all(() => prepared.run(tensors)))),
    forward: await submissionsOf(device.queue, async () => free(await Promise.all(all(forward)))),
  };
  prepared.destroy();
  for (const tensor of Object.values(tensors)) tensor.destroy();
  return { one, many, submissions, queued };
}
