use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, AuxType, Capabilities, Element, EntryLayout, KeyMask, Operand, Plan,
    ProbabilitiesProblem, ScoreMod, reference,
};

use crate::arguments::{RunAlgorithm, RunOptions};
use crate::blocks::{self, Pattern};
use crate::cached::{self, Rotation, Rows};
use crate::device::Gpu;
use crate::elements;
use crate::failure::{Failure, Result};
use crate::own_wgsl::OwnWgsl;
use crate::resident::{self, Resident, ResidentGradients};
use crate::rewritten::rewritten;
use crate::target::Target;
use crate::tensors::{self, Bias, File, Inputs, Outputs};
use crate::timing::{self, Effort};
use crate::{device, text, unused};

/// What was run, for people and for `--json`.
#[derive(Serialize)]
struct Summary {
    algorithm: &'static str,
    batch: u32,
    heads: u32,
    heads_kv: u32,
    seqlen_q: u32,
    seqlen_kv: u32,
    head_dim: u32,
    head_dim_v: u32,
    element: &'static str,
    causal: Option<&'static str>,
    /// All else that changes the answer, in words.
    with: Vec<String>,
    adapter: Option<String>,
    kernel: String,
    tiles: Option<String>,
    ms_median: f64,
    ms_min: f64,
    extra_bytes: u64,
    /// The same of the backward pass, where there was one.
    backward_kernel: Option<String>,
    backward_ms_median: Option<f64>,
    backward_extra_bytes: Option<u64>,
}

/// What was computed, and how it came about.
struct Answer {
    outputs: Outputs,
    summary: Summary,
}

pub async fn run(options: &RunOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let file = rewritten(File::read(&options.input)?, options)?;
    unused::refuse(&file, options.rotary.is_some())?;
    if file.has("k_cache") {
        return cached::run(options, &file, choice, out).await;
    }
    let mut inputs = file.inputs(options.layout)?;
    add_blocks(options, &file, &mut inputs)?;
    let own = options.wgsl.read(inputs.aux.as_ref().map_or(AuxType::F32, |(of_words, _)| *of_words))?;
    if inputs.d_o.is_some() {
        own.expect_gradient("d_o", "leave d_o out")?;
    }
    let target = Target::new(&options.output)?;

    let element = inputs.element;
    let rotated = rotated(options, &file, &inputs, choice).await?;
    if let Some([q, k]) = &rotated {
        inputs = Inputs { q, k, ..inputs };
    }

    let bias_in_file = inputs.bias.as_ref().map(|bias| (bias.counts, bias.element));
    // A bias of another 16-bit type than q is widened, which loses nothing.
    let is_odd = |bias: &Bias| bias.element != Element::F32 && bias.element != element;
    let odd_bias = inputs.bias.take_if(|bias| is_odd(bias));
    let wide = odd_bias.as_ref().map(|bias| elements::encode(Element::F32, elements::decode(bias.element, bias.bytes)));
    if let (Some(bias), Some(bytes)) = (&odd_bias, &wide) {
        inputs.bias = Some(Bias { counts: bias.counts, element: Element::F32, bytes });
    }

    if options.algorithm == RunAlgorithm::Reference && !own.is_empty() {
        return Err(Failure::new(
            "the f64 oracle cannot run WGSL: --algorithm reference takes no --score-mod or --mask-mod",
        ));
    }
    let mut problem = problem(options, &inputs, &own);
    if inputs.bias.is_some() && inputs.d_o.is_some() {
        problem = problem.with_bias_gradient();
    }
    if options.algorithm == RunAlgorithm::Standard {
        problem = problem.with_algorithm(Algorithm::Standard);
    }
    let mut answer = match options.algorithm {
        RunAlgorithm::Flash | RunAlgorithm::Standard => on_gpu(options, &problem, &inputs, choice).await?,
        RunAlgorithm::Reference => on_cpu(options, &problem, &inputs)?,
    };

    if let (Some(in_file), Some(bias)) = (bias_in_file, &inputs.bias) {
        let dbias = answer.outputs.gradients.iter_mut().find(|(operand, _)| *operand == Operand::DBias);
        dbias.into_iter().for_each(|(_, bytes)| *bytes = dbias_for_file(bytes, bias.element, in_file));
    }
    let gradient_element = problem.gradient_element();
    answer.summary.with = what_else(&problem);
    let elements = [element, gradient_element];
    let file = tensors::encoded(&problem, inputs.layout, elements, bias_in_file, &answer.outputs)?;
    target.write(&file)?;
    if options.json {
        writeln!(out, "{}", json(&answer.summary))?;
    } else {
        answer.summary.print(out)?;
        let gradients = answer.outputs.gradients.iter().map(|(operand, _)| operand.name());
        let probabilities = answer.outputs.probabilities.as_ref().map(|_| "probabilities");
        let names: Vec<_> = ["o", "lse"].into_iter().chain(probabilities).chain(gradients).collect();
        let (last, first) = names.split_last().unwrap_or((&"", &[]));
        writeln!(out, "wrote {} and {last} to {}", first.join(", "), options.output.display())?;
    }
    Ok(true)
}

/// Q and K, rotated by their positions in their sequence, if that is asked for.
async fn rotated(
    options: &RunOptions,
    file: &File,
    inputs: &Inputs<'_>,
    choice: device::Choice<'_>,
) -> Result<Option<[Vec<u8>; 2]>> {
    let Some(rotation) = Rotation::read(options, file)? else { return Ok(None) };
    if inputs.d_o.is_some() {
        let reason = "has d_o; rotary embeddings have no gradient: rotate q and k beforehand, and leave --rotary out";
        return Err(file.failure(reason));
    }
    let gpu = device::open(choice).await?;
    let (shape, layout) = (inputs.shape, inputs.layout.of(&inputs.shape));
    let firsts = vec![0; shape.batch as usize];
    let of = |side: usize| inputs.cu_seqlens.as_ref().map(|sums| &sums[side][..]);
    let count = |side: usize, seqlen: u32| of(side).map_or(seqlen, |sums| sums.last().copied().unwrap_or(0));
    let q_counts = [shape.batch, shape.num_heads, count(0, shape.seqlen_q), shape.head_dim];
    let k_counts = [shape.batch, shape.num_heads_kv, count(1, shape.seqlen_kv), shape.head_dim];
    let q = Rows { name: "q", layout: layout.q, counts: q_counts, firsts: &firsts, sums: of(0) };
    let k = Rows { name: "k", layout: layout.k, counts: k_counts, firsts: &firsts, sums: of(1) };
    Ok(Some([
        rotation.of(&gpu, inputs.element, inputs.q, &q).await?,
        rotation.of(&gpu, inputs.element, inputs.k, &k).await?,
    ]))
}

/// The tensors that belong to options, which decide whether they may be there.
fn add_blocks<'a>(options: &RunOptions, file: &'a File, inputs: &mut Inputs<'a>) -> Result<()> {
    let shape = inputs.shape;
    inputs.alibi_slopes = file.alibi_slopes(&shape)?;
    inputs.document_ids = file.document_ids(&shape)?;
    inputs.block_mask = file.block_mask(&shape, options.block_size.unwrap_or([128; 2]))?;
    let pattern = options.blocks.block_mask.as_ref();
    let reason = match (inputs.document_ids.is_some(), pattern == Some(&Pattern::Documents)) {
        (false, true) => "has no document_ids, which --block-mask documents needs",
        (true, false) => "has document_ids, which only --block-mask documents uses",
        _ if inputs.block_mask.is_some() && pattern.is_some() => "has a block_mask: leave --block-mask out",
        _ if inputs.block_mask.is_none() && options.block_size.is_some() => {
            "has no block_mask, to whose blocks --block-size belongs"
        }
        _ if inputs.alibi_slopes.is_some() && options.scores.alibi => "has alibi_slopes: leave --alibi out",
        _ => return Ok(()),
    };
    Err(file.failure(reason))
}

/// The gradient of a bias as the file has the bias: in its type, and with entries of 0 where the problem has no scores.
fn dbias_for_file(bytes: &[u8], element: Element, (counts, in_file): ([u32; 4], Element)) -> Vec<u8> {
    let mut bytes = match element == in_file {
        true => bytes.to_vec(),
        false => elements::encode(in_file, elements::decode(element, bytes)),
    };
    let len: usize = counts.iter().map(|count| *count as usize).product();
    bytes.resize(len * in_file.size() as usize, 0);
    bytes
}

/// What a problem has beside shape, element and causal.
pub fn what_else(problem: &AttentionProblem) -> Vec<String> {
    let mask = problem.mask;
    let side = |limit: Option<u32>| limit.map_or("inf".to_owned(), |limit| limit.to_string());
    let is_window = mask.window_left.is_some() || mask.window_right.is_some_and(|right| right > 0);
    let window = is_window.then(|| format!("window {},{}", side(mask.window_left), side(mask.window_right)));
    let scores = problem.scores().iter().map(|modifier| match modifier {
        ScoreMod::Softcap(softcap) => format!("softcap {softcap}"),
        other => other.name().to_owned(),
    });
    let masks = problem.key_masks().iter().map(|mask| match mask {
        KeyMask::Wgsl(_) => mask.name().to_owned(),
        _ => format!("{} mask", mask.name()),
    });
    let sink = problem.has_sink().then(|| "sink".to_owned());
    let lengths = problem.has_lengths().then(|| match problem.total_q() {
        Some(_) => "packed sequences".to_owned(),
        None => "lengths of sequences".to_owned(),
    });
    let dropout = problem.dropout.map(|dropout| format!("dropout {}", dropout.dropout_p));
    window.into_iter().chain(scores).chain(masks).chain(lengths).chain(sink).chain(dropout).collect()
}

/// One line of JSON. Plain structs of numbers and strings always have one.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub fn problem(options: &RunOptions, inputs: &Inputs, own: &OwnWgsl) -> AttentionProblem {
    let problem =
        AttentionProblem::new(inputs.shape).with_element(inputs.element).with_layout(inputs.layout.of(&inputs.shape));
    let mut problem = options.scores.apply(options.causal.apply(problem), own);
    if let Some(slopes) = &inputs.alibi_slopes {
        problem = problem.with_score(ScoreMod::Alibi(slopes.clone()));
    }
    let documents = inputs.document_ids.as_ref().map(|(batch, ids)| (*batch, &ids[..]));
    problem = options.blocks.apply(problem, documents);
    if let Some((counts, sides, bytes)) = &inputs.block_mask {
        problem = problem.with_key_mask(KeyMask::Blocks(blocks::of_tensor(*counts, *sides, bytes)));
    }
    if let Some(bias) = &inputs.bias {
        let layout = EntryLayout::contiguous(bias.counts);
        problem = problem.with_score(ScoreMod::Bias { layout, element: bias.element });
    }
    if let Some(mask) = &inputs.mask {
        problem = problem.with_key_mask(KeyMask::Boolean(EntryLayout::packed_bits(mask.counts)));
    }
    problem = own.mask(problem);
    if let Some((_, words)) = &inputs.aux {
        problem = problem.with_aux(u32::try_from(words.len() / 4).unwrap_or(u32::MAX));
    }
    if inputs.sink.is_some() {
        problem = problem.with_sink();
    }
    if let Some([cu_seqlens_q, cu_seqlens_kv]) = &inputs.cu_seqlens {
        problem = problem.with_cu_seqlens(cu_seqlens_q.clone(), cu_seqlens_kv.clone());
    }
    if let Some([seqlens_q, seqlens_kv]) = &inputs.lengths {
        problem = problem.with_lengths(seqlens_q.clone(), seqlens_kv.clone());
    }
    if let Some(window) = options.window {
        problem = problem.with_window(window.left, window.right);
    }
    if let Some(scale) = options.scale {
        problem = problem.with_softmax_scale(scale);
    }
    if let Some(dropout_p) = options.dropout {
        problem = problem.with_dropout(dropout_p, options.seed.unwrap_or(0));
    }
    if options.f32_gradients {
        problem = problem.with_f32_gradients();
    }
    problem
}

async fn on_gpu(
    options: &RunOptions,
    problem: &AttentionProblem,
    inputs: &Inputs<'_>,
    choice: device::Choice<'_>,
) -> Result<Answer> {
    let gpu = device::open(choice).await?;
    // What has no gradient is refused before there is work to lose.
    let backward = inputs.d_o.map(|_| gpu.attention.plan_backward(problem).build()).transpose()?;
    let plan = gpu.attention.plan_forward(problem);
    let plan = options.num_splits.into_iter().fold(plan, |plan, splits| plan.with_splits(splits)).build()?;
    let prepared = gpu.attention.prepare_forward_plan(plan).await?;
    let mut tensors = Resident::new(&gpu, problem).await?;
    if let Some(bias) = &inputs.bias {
        tensors.add(&gpu, Operand::Bias, bias.bytes.to_vec()).await?;
    }
    if let Some(mask) = &inputs.mask {
        tensors.add(&gpu, Operand::KeyMask, mask.words.iter().flat_map(|word| word.to_le_bytes()).collect()).await?;
    }
    if let Some(sink) = inputs.sink {
        tensors.add(&gpu, Operand::Sink, sink.to_vec()).await?;
    }
    if let Some((_, words)) = &inputs.aux {
        tensors.add(&gpu, Operand::Aux, words.to_vec()).await?;
    }
    for (buffer, bytes) in [(&tensors.q, inputs.q), (&tensors.k, inputs.k), (&tensors.v, inputs.v)] {
        resident::upload(&gpu, buffer, 0, bytes.to_vec())?;
    }
    let time = timing::measure(&gpu, Effort::ASIDE, |encoder| tensors.encode(&prepared, encoder))?;

    let shape = problem.shape;
    let o_len = problem.lse_len() * u64::from(shape.head_dim_v) * problem.element.size();
    let plan = prepared.plan();
    let mut summary = Summary {
        adapter: Some(gpu.describe()),
        kernel: text::kernels(plan),
        tiles: Some(plan.tiles().to_string()),
        ms_median: time.median(),
        ms_min: time.min(),
        extra_bytes: plan.extra_bytes(),
        ..Summary::new(options, problem.algorithm.name(), &shape, problem.element)
    };
    let gradients = match inputs.d_o.zip(backward) {
        Some((d_o, plan)) => gradients_on_gpu(&gpu, problem, &tensors, plan, d_o, inputs.d_lse, &mut summary).await?,
        None => Vec::new(),
    };
    let probabilities = match &options.probabilities {
        Some(chosen) => Some((chosen.rows.len() as u32, tensors.probabilities(&gpu, &chosen.of(problem)).await?)),
        None => None,
    };
    let outputs = Outputs {
        o: resident::read(&gpu, &tensors.o, 0, o_len)?,
        lse: resident::read(&gpu, &tensors.lse, 0, problem.lse_len() * 4)?,
        gradients,
        probabilities,
    };
    Ok(Answer { outputs, summary })
}

/// The gradients of what the forward pass has left in `tensors`.
async fn gradients_on_gpu(
    gpu: &Gpu,
    problem: &AttentionProblem,
    tensors: &Resident,
    plan: Plan,
    d_o: &[u8],
    d_lse: Option<&[u8]>,
    summary: &mut Summary,
) -> Result<Vec<(Operand, Vec<u8>)>> {
    let prepared = gpu.attention.prepare_backward_plan(plan).await?;
    let gradients = ResidentGradients::new(gpu, problem, d_lse.is_some()).await?;
    resident::upload(gpu, &gradients.d_o, 0, d_o.to_vec())?;
    if let (Some(buffer), Some(d_lse)) = (&gradients.d_lse, d_lse) {
        resident::upload(gpu, buffer, 0, d_lse.to_vec())?;
    }
    let time = timing::measure(gpu, Effort::ASIDE, |encoder| tensors.encode_backward(&gradients, &prepared, encoder))?;
    summary.backward_kernel = Some(text::passes(prepared.plan()));
    summary.backward_ms_median = Some(time.median());
    summary.backward_extra_bytes = Some(prepared.plan().extra_bytes());

    let size = problem.gradient_element().size();
    let shape = problem.shape;
    let q_len = problem.lse_len() * u64::from(shape.head_dim);
    let rows = problem.total_kv().map_or(u64::from(shape.batch) * u64::from(shape.seqlen_kv), u64::from);
    let kv_rows = u64::from(shape.num_heads_kv) * rows;
    let (k_len, v_len) = (kv_rows * u64::from(shape.head_dim), kv_rows * u64::from(shape.head_dim_v));
    let mut written = vec![
        (Operand::Dq, &gradients.dq, q_len * size),
        (Operand::Dk, &gradients.dk, k_len * size),
        (Operand::Dv, &gradients.dv, v_len * size),
    ];
    written.extend(gradients.dsink.as_ref().map(|dsink| (Operand::DSink, dsink, u64::from(shape.num_heads) * 4)));
    let dbias_len = resident::dbias_bytes(problem).unwrap_or(0);
    written.extend(gradients.dbias.as_ref().map(|dbias| (Operand::DBias, dbias, dbias_len)));
    written.into_iter().map(|(operand, buffer, len)| Ok((operand, resident::read(gpu, buffer, 0, len)?))).collect()
}

fn on_cpu(options: &RunOptions, problem: &AttentionProblem, inputs: &Inputs) -> Result<Answer> {
    // The oracle panics on what the planner refuses, so the planner judges first, for a device without limits.
    let mut unlimited = Capabilities::webgpu_defaults();
    (unlimited.max_buffer, unlimited.max_binding) = (u64::MAX, u64::MAX);
    unlimited.max_storage_buffers = u32::MAX;
    Plan::forward(problem, &unlimited).build()?;
    let chosen = options.probabilities.as_ref().map(|chosen| chosen.of(problem));
    if let Some(chosen) = &chosen {
        Plan::probabilities(chosen, &unlimited).build()?;
    }
    let [q, k, v] =
        [inputs.q, inputs.k, inputs.v].map(|bytes| elements::decode(inputs.element, bytes).collect::<Vec<_>>());
    let bias: Option<Vec<f64>> = inputs.bias.as_ref().map(|bias| elements::decode(bias.element, bias.bytes).collect());
    let mask = inputs.mask.as_ref().map_or(&[][..], |mask| &mask.words);
    let sink: Vec<f64> = inputs.sink.into_iter().flat_map(|bytes| elements::decode(Element::F32, bytes)).collect();
    let case = reference::Case::new(problem, bias.as_deref().unwrap_or_default(), mask).with_sink(&sink);
    let start = Instant::now();
    let answer = reference::forward(case, &q, &k, &v);
    let ms = start.elapsed().as_secs_f64() * 1e3;
    let gradients = inputs.d_o.map_or_else(Vec::new, |d_o| {
        let d_o: Vec<f64> = elements::decode(inputs.element, d_o).collect();
        let d_lse: Option<Vec<f64>> = inputs.d_lse.map(|d_lse| elements::decode(Element::F32, d_lse).collect());
        let gradients = reference::backward(case, &q, &k, &v, &d_o, d_lse.as_deref());
        let element = problem.gradient_element();
        let of_inputs = [(Operand::Dq, gradients.dq), (Operand::Dk, gradients.dk), (Operand::Dv, gradients.dv)];
        let of_inputs = of_inputs.into_iter().map(|(operand, values)| (operand, element, values));
        let of_sink = inputs.sink.map(|_| (Operand::DSink, Element::F32, gradients.dsink));
        let of_bias = inputs.bias.as_ref().map(|bias| (Operand::DBias, bias.element, gradients.dbias));
        let encoded =
            |(operand, element, values): (_, _, Vec<f64>)| (operand, elements::encode(element, values.into_iter()));
        of_inputs.chain(of_sink).chain(of_bias).map(encoded).collect()
    });
    let probabilities = chosen.map(|ProbabilitiesProblem { heads, rows, .. }| {
        let all = reference::probabilities(case, &q, &k, heads, rows.clone());
        (rows.len() as u32, elements::encode(Element::F32, all.into_iter()))
    });
    let outputs = Outputs {
        o: elements::encode(problem.element, answer.o.into_iter()),
        lse: elements::encode(Element::F32, answer.lse.into_iter()),
        gradients,
        probabilities,
    };
    let summary =
        Summary { ms_median: ms, ms_min: ms, ..Summary::new(options, "reference", &problem.shape, problem.element) };
    Ok(Answer { outputs, summary })
}

impl Summary {
    fn new(options: &RunOptions, algorithm: &'static str, shape: &AttentionShape, element: Element) -> Self {
        Self {
            algorithm,
            batch: shape.batch,
            heads: shape.num_heads,
            heads_kv: shape.num_heads_kv,
            seqlen_q: shape.seqlen_q,
            seqlen_kv: shape.seqlen_kv,
            head_dim: shape.head_dim,
            head_dim_v: shape.head_dim_v,
            element: element.name(),
            causal: options.causal.causal.map(|causal| causal.name()),
            with: Vec::new(),
            adapter: None,
            kernel: algorithm.to_owned(),
            tiles: None,
            ms_median: 0.0,
            ms_min: 0.0,
            extra_bytes: 0,
            backward_kernel: None,
            backward_ms_median: None,
            backward_extra_bytes: None,
        }
    }

    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "batch {}, heads {} (kv {}), seqlen {} × {}, head_dim {} (v {}), {}",
            self.batch,
            self.heads,
            self.heads_kv,
            self.seqlen_q,
            self.seqlen_kv,
            self.head_dim,
            self.head_dim_v,
            self.element
        )?;
        let causal = self.causal.map(|causal| format!("{causal} causal"));
        let with: Vec<&str> = causal.iter().chain(&self.with).map(String::as_str).collect();
        if !with.is_empty() {
            writeln!(out, "with {}", with.join(", "))?;
        }
        match (&self.adapter, &self.tiles) {
            (Some(adapter), Some(tiles)) => {
                writeln!(out, "{adapter}")?;
                writeln!(out, "{} in tiles of {tiles}", self.kernel)?;
                writeln!(
                    out,
                    "{} on the GPU, {} beyond q, k, v and o",
                    text::milliseconds(self.ms_median),
                    text::bytes(self.extra_bytes)
                )?;
            }
            _ => writeln!(out, "f64 oracle on the CPU, {}", text::milliseconds(self.ms_median))?,
        }
        if let (Some(kernel), Some(ms), Some(bytes)) =
            (&self.backward_kernel, self.backward_ms_median, self.backward_extra_bytes)
        {
            let (ms, bytes) = (text::milliseconds(ms), text::bytes(bytes));
            writeln!(out, "{kernel}: {ms} on the GPU, {bytes} beyond the tensors and their gradients")?;
        }
        Ok(())
    }
}
