//! Each method: its answer beside its twin and beside exact attention, its time and its memory.

mod figures;
mod judge;
mod markdown;
mod record;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use wgpu_flash_attention::{DeviceClass, Element};

use crate::arguments::CompareOptions;
use crate::case::{self, Case, Given, Inputs, Problem, State, Tensor};
use crate::ceilings::{self, Ceilings};
use crate::device::{self, Gpu};
use crate::exact;
use crate::failure::{Failure, Result};
use crate::inputs::Source;
use crate::methods::{self, Exact, Method};
use crate::target::{self, Target};
use crate::tensors;
use crate::text::Table;
use crate::timing::{self, Effort};
use record::{Outcome, Record};

pub fn compare(options: &CompareOptions, adapter: Option<&str>, out: &mut dyn Write) -> Result<bool> {
    let methods = chosen(&options.methods)?;
    let source = Source::new(&options.input)?;
    let given = Given::new(options.load.as_deref().map(tensors::read).transpose()?.unwrap_or_default());
    // Whether it can be written is known before there is work to lose.
    options.dump.as_deref().map(Target::new).transpose()?;
    if let Some(folder) = options.folder() {
        make_folder(folder)?;
    }
    let gpu = device::open(adapter)?;
    let problems = problems(options, &source, &gpu)?;
    problems.iter().try_for_each(|problem| source.check_element(problem.element))?;
    if options.dump.is_some() && problems.len() != 1 {
        return Err(Failure::new("--dump is for one length and one element: name them with --seqlen and --element"));
    }
    let ceilings = match options.folder() {
        Some(_) => Some(pollster::block_on(ceilings::measure(&gpu))?),
        None => None,
    };
    let table = match options.json || options.record.is_some() {
        true => None,
        false => Some(header(&gpu, &problems, &source, out)?),
    };
    let mut run = Run {
        options,
        gpu: &gpu,
        source: &source,
        given: &given,
        has_taken: false,
        ceilings,
        records: Vec::new(),
        dumped: State::new(),
    };
    let progress = progress(problems.len() * methods.len());
    for problem in &problems {
        run.on(problem, &methods, &progress, &mut |record| {
            match &table {
                Some(table) => progress.suspend(|| record.print(table, out))?,
                None if options.json => writeln!(out, "{}", json(record)?)?,
                None => {}
            }
            // The next row may take long.
            Ok(out.flush()?)
        })?;
    }
    progress.finish_and_clear();
    if options.record.is_some() {
        write!(out, "{}", run.page())?;
    }
    if let (Some(folder), false) = (options.folder(), options.json) {
        writeln!(out, "\nwrote compare.json, compare.csv and figures to {}", folder.display())?;
    }
    // A method that failed has said why.
    let has_failed = run.records.iter().any(|record| record.outcome == Outcome::Failed);
    if let (Some(path), false) = (&options.load, run.has_taken || has_failed) {
        let path = path.display();
        let names = given.names().join(", ");
        return Err(Failure::new(format_args!("no method took a tensor of {path}, which has: {names}")));
    }
    Ok(is_success(&run.records, !options.methods.is_empty()))
}

/// Whether every answer was right and every method ran that should: those that are named must be defined for each problem, and
/// of all methods at least one.
fn is_success(records: &[Record], are_named: bool) -> bool {
    let is_fine = |record: &Record| match record.outcome {
        Outcome::Good => true,
        Outcome::Undefined => !are_named,
        Outcome::Failed | Outcome::Wrong => false,
    };
    records.iter().all(is_fine) && records.iter().any(Record::is_good)
}

/// A comparison under way.
struct Run<'a> {
    options: &'a CompareOptions,
    gpu: &'a Gpu,
    source: &'a Source,
    /// What `--load` gives, and whether a method has taken any of it.
    given: &'a Given,
    has_taken: bool,
    ceilings: Option<Ceilings>,
    records: Vec<Record>,
    /// What `--dump` writes.
    dumped: State,
}

impl Run<'_> {
    /// All methods on one problem.
    fn on(
        &mut self,
        problem: &Problem,
        methods: &[Box<dyn Method>],
        progress: &ProgressBar,
        print: &mut dyn FnMut(&Record) -> Result<()>,
    ) -> Result<()> {
        progress.set_message(format!("{} tokens: inputs and the exact answer", problem.seqlen));
        let inputs = self.source.inputs(problem, self.options.seed);
        // One upload for all methods.
        let case = Case::new(self.gpu, &inputs, self.options.seed, self.given);
        if self.options.dump.is_some() {
            self.dump("q", problem, problem.num_heads, inputs.q.clone());
            self.dump("k", problem, problem.num_heads_kv, inputs.k.clone());
            self.dump("v", problem, problem.num_heads_kv, inputs.v.clone());
        }
        let mut exact = ExactOutputs::default();
        let mut flash_ms = None;
        for (i, method) in methods.iter().enumerate() {
            progress.set_message(format!("{} tokens, {}: {}", problem.seqlen, problem.element.name(), method.name()));
            let mut record =
                Record::new(method.name(), problem, &self.source.name(), self.options.seed, self.gpu.describe());
            record.exact = method.exact().name();
            let result = match (method.supports(problem), &case) {
                (Ok(()), Ok(case)) => self.measure(method.as_ref(), case, &mut exact, &mut record),
                (Ok(()), Err(failure)) => Err(Failure::new(failure.line())),
                (Err(reason), _) => {
                    (record.outcome, record.error) = (Outcome::Undefined, Some(reason));
                    Ok(())
                }
            };
            if let Err(failure) = result {
                (record.outcome, record.error) = (Outcome::Failed, Some(failure.line().to_owned()));
            }
            let taken = self.given.taken();
            if record.outcome != Outcome::Failed {
                self.has_taken |= !taken.is_empty();
                record.notes.extend(taken.into_iter().map(|name| ("loaded".to_owned(), name)));
            }
            if record.method == "flash" && record.is_good() {
                flash_ms = record.ms_median;
            }
            record.times_flash = record.ms_median.zip(flash_ms).map(|(ms, flash)| ms / flash);
            progress.inc(1);
            print(&record)?;
            self.records.push(record);
            self.write_files()?;
            self.write_dump(problem, &exact, i + 1 == methods.len())?;
        }
        Ok(())
    }

    /// One method: runs it, then judges what the last run has left.
    fn measure(
        &mut self,
        method: &dyn Method,
        case: &Case,
        exact: &mut ExactOutputs,
        record: &mut Record,
    ) -> Result<()> {
        let (gpu, inputs) = (self.gpu, case.inputs);
        let problem = &inputs.problem;
        let prepared = method.prepare(gpu, case)?;
        let time = timing::measure(gpu, self.effort(), |encoder| prepared.encode(encoder))?;
        let state = prepared.state(gpu)?;
        let twin = judge::from_twin(gpu, inputs, method, &state, prepared.output())?;
        let exact = exact.of(gpu, inputs, method.exact())?;
        let deviation = judge::from_exact(gpu, problem, prepared.output(), exact)?;
        record.time(&time, &prepared.cost(), self.ceilings.as_ref());
        record.judge(&twin, &deviation);
        record.notes = prepared.report(gpu)?;
        if method.exact() != Exact::Attention {
            record.notes.push(("error against".to_owned(), method.exact().name().to_owned()));
        }
        if self.options.dump.is_some() {
            let o = case::read(gpu, problem.element, prepared.output(), 0, problem.q_len())?;
            let o = o.into_iter().map(|value| value as f32).collect();
            self.dump(&format!("{}.o", method.name()), problem, problem.num_heads, o);
            self.dumped.extend(state);
        }
        Ok(())
    }

    fn dump(&mut self, name: &str, problem: &Problem, heads: u32, values: Vec<f32>) {
        let dims = [problem.batch, heads, problem.seqlen, problem.head_dim].map(|dim| dim as usize);
        self.dumped.insert(name.to_owned(), Tensor::f32(&dims, values));
    }

    /// The dump anew, so that what is interrupted leaves what is done; on standard output only once.
    fn write_dump(&mut self, problem: &Problem, exact: &ExactOutputs, is_last: bool) -> Result<()> {
        let Some(path) = self.options.dump.as_deref() else { return Ok(()) };
        if target::is_pipe(path) && !is_last {
            return Ok(());
        }
        for (exact, o) in &exact.all {
            let name = match exact {
                Exact::Attention => "exact.o",
                Exact::SharedQk => "exact_shared_qk.o",
            };
            if !self.dumped.contains_key(name) {
                self.dump(name, problem, problem.num_heads, o.clone());
            }
        }
        Target::new(path)?.write(&tensors::file(&self.dumped)?)
    }

    fn effort(&self) -> Effort {
        // Idle GPUs take a while to reach their clocks; a software driver has none.
        let software = self.gpu.attention.capabilities().device_class == DeviceClass::Cpu;
        let warm_up = Duration::from_millis(if software { 0 } else { 1000 });
        let budget = Duration::from_millis(400);
        let (least, most) = self.options.repeats.map_or((3, 20), |repeats| (repeats, repeats));
        Effort { least, most, budget, warm_up }
    }

    /// All tables in Markdown.
    fn page(&self) -> String {
        markdown::page(&self.records, &self.gpu.describe(), self.ceilings.as_ref())
    }

    /// All files anew, each whole or not at all: records, and three figures for each element.
    fn write_files(&self) -> Result<()> {
        let Some(folder) = self.options.folder() else { return Ok(()) };
        let write = |name: String, text: String| Target::new(&folder.join(name))?.write(text.as_bytes());
        let json = serde_json::to_string_pretty(&self.records)
            .map_err(|error| Failure::new(format_args!("no JSON: {error}")))?;
        write("compare.json".to_owned(), json + "\n")?;
        write("compare.csv".to_owned(), Record::csv(&self.records))?;
        if self.options.record.is_some() {
            write("compare.md".to_owned(), self.page())?;
        }
        let elements = markdown::distinct(self.records.iter().map(|record| record.element));
        for element in &elements {
            let own: Vec<&Record> = self.records.iter().filter(|record| record.element == *element).collect();
            let subtitle = subtitle(self.gpu, own[0]);
            let several = self.options.record.is_some() || self.options.element.len() > 1;
            let name = |figure: &str| match several {
                true => format!("{figure}-{element}.svg"),
                false => format!("{figure}.svg"),
            };
            write(name("time"), figures::time(&own, &subtitle)?)?;
            write(name("memory"), figures::memory(&own, &subtitle)?)?;
            write(name("error"), figures::error(&own, &subtitle)?)?;
        }
        Ok(())
    }
}

/// Exact answers on the same inputs, each computed once.
#[derive(Default)]
struct ExactOutputs {
    all: Vec<(Exact, Vec<f32>)>,
}

impl ExactOutputs {
    fn of(&mut self, gpu: &Gpu, inputs: &Inputs, exact: Exact) -> Result<&[f32]> {
        let at = match self.all.iter().position(|(other, _)| *other == exact) {
            Some(at) => at,
            None => {
                self.all.push((exact, exact::output(gpu, inputs, exact)?));
                self.all.len() - 1
            }
        };
        Ok(&self.all[at].1)
    }
}

/// The methods of these names, or all.
fn chosen(names: &[String]) -> Result<Vec<Box<dyn Method>>> {
    let all = methods::all();
    if let Some(name) = names.iter().find(|name| !all.iter().any(|method| method.name() == **name)) {
        let known = all.iter().map(|method| method.name()).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format_args!("there is no method '{name}'; there is {known}")));
    }
    let is_chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    Ok(all.into_iter().filter(|method| is_chosen(method.name())).collect())
}

/// The problems of the options, short ones first.
fn problems(options: &CompareOptions, source: &Source, gpu: &Gpu) -> Result<Vec<Problem>> {
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let of_file = source.problem();
    let has_shape = [options.head_dim, options.heads, options.heads_kv, options.batch].iter().any(Option::is_some);
    if of_file.is_some() && has_shape {
        return Err(Failure::new("--head-dim, --heads, --heads-kv and --batch are those of the file"));
    }
    let heads = options.heads.unwrap_or(if software { 2 } else { 16 });
    let first = of_file.unwrap_or(Problem {
        batch: options.batch.unwrap_or(1),
        num_heads: heads,
        num_heads_kv: options.heads_kv.unwrap_or(heads),
        seqlen: 0,
        head_dim: options.head_dim.unwrap_or(64),
        element: Element::F32,
        causal: false,
    });
    if !first.num_heads.is_multiple_of(first.num_heads_kv) {
        return Err(Failure::new("--heads must be a multiple of --heads-kv"));
    }
    let defaults = match of_file {
        Some(file) => vec![file.seqlen],
        None if software => vec![256, 512],
        None => (9..=16).map(|power| 1 << power).collect(),
    };
    let mut lengths = if options.seqlen.is_empty() { defaults } else { options.seqlen.clone() };
    lengths.sort_unstable();
    lengths.dedup();
    if let Some(file) = of_file
        && let Some(long) = lengths.iter().find(|seqlen| **seqlen > file.seqlen)
    {
        return Err(Failure::new(format_args!("the file has {} tokens, not {long}", file.seqlen)));
    }
    for &seqlen in &lengths {
        Problem { seqlen, ..first }.check_size()?;
    }
    let elements = if options.record.is_some() { &[Element::F32, Element::F16] } else { &options.element[..] };
    let problem = |seqlen: &u32, element: &Element| Problem {
        seqlen: *seqlen,
        element: *element,
        causal: options.causal,
        ..first
    };
    Ok(lengths.iter().flat_map(|seqlen| elements.iter().map(move |element| problem(seqlen, element))).collect())
}

/// What all rows share, and the head of the table.
fn header(gpu: &Gpu, problems: &[Problem], source: &Source, out: &mut dyn Write) -> Result<Table> {
    writeln!(out, "{}", gpu.describe())?;
    if let Some(problem) = problems.first() {
        writeln!(out, "{}", conditions(problem, &source.name()))?;
    }
    let clock = if timing::has_clock(gpu) { "GPU timestamps" } else { "the wall clock" };
    writeln!(out, "Times by {clock}. Errors are ‖O − exact‖ / ‖exact‖, of all rows and of the worst row.")?;
    let whole = judge::WHOLE_TO;
    writeln!(
        out,
        "To {whole} tokens all rows are compared with the f64 twin, beyond 64 rows of the first and the last head."
    )?;
    writeln!(out)?;
    Table::new("", Record::columns(), out)
}

fn conditions(problem: &Problem, input: &str) -> String {
    let mut text = format!("batch {}, heads {}", problem.batch, problem.num_heads);
    if problem.num_heads_kv != problem.num_heads {
        text += &format!(" (kv {})", problem.num_heads_kv);
    }
    let causal = if problem.causal { ", causal" } else { "" };
    text + &format!(", head_dim {}{causal}, {input} inputs", problem.head_dim)
}

/// The adapter and the conditions, below a figure's title.
fn subtitle(gpu: &Gpu, record: &Record) -> String {
    let causal = if record.causal { ", causal" } else { "" };
    let Record { batch, heads, head_dim, element, input, .. } = record;
    let adapter = &gpu.attention.capabilities().adapter_name;
    format!("{adapter} · batch {batch}, heads {heads}, head_dim {head_dim}, {element}{causal}, {input} inputs")
}

fn json(record: &Record) -> Result<String> {
    serde_json::to_string(record).map_err(|error| Failure::new(format_args!("no JSON: {error}")))
}

/// Makes a folder, and finds out whether files can be put there: hours of work must not end at one that is not writable.
pub fn make_folder(folder: &Path) -> Result<()> {
    let failure = |error: std::io::Error| Failure::new(format_args!("cannot write into {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failure)?;
    tempfile::tempfile_in(folder).map(|_| ()).map_err(failure)
}

fn progress(len: usize) -> ProgressBar {
    let progress = ProgressBar::new(len as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed}  {msg}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    progress
}
