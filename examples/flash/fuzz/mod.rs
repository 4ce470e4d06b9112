//! Random problems against the f64 oracle.

mod append;
mod case;
mod draw;
mod functions;
mod gpu_call;
mod judge;
mod kept;
mod problem;
mod random;
mod solve;
mod values;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use wgpu_flash_attention::DeviceClass;

use crate::arguments::FuzzOptions;
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use case::Case;
use draw::Limits;
use solve::{Libraries, Outcome, solve};

/// Each thread holds a problem and its oracle.
const MOST_THREADS: usize = 16;

/// Threads that share a batch. When it begins they wait for its pipelines, and when it ends for the last of them: other batches
/// fill that time.
const THREADS_OF_BATCH: usize = 2;

/// Runs that may be spent to make a case simpler.
const MOST_STEPS: usize = 300;

/// Time that may be spent on it: a software driver compiles for long.
const MOST_TIME: Duration = Duration::from_secs(40);

/// Misses of a batch that are made simpler: often all have one cause.
const SIMPLIFIED: usize = 3;

/// So many misses are enough.
const MOST_MISSES: usize = 20;

/// What has been seen.
#[derive(Default)]
struct Tally {
    problems: u64,
    /// How often the planner said what.
    refused: BTreeMap<String, u64>,
    largest_share: f64,
    missed: usize,
    /// Those of batches that have ended.
    misses: Vec<Miss>,
}

struct Miss {
    case: Case,
    reason: String,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "flash fuzz --case '{}'\n  {}", self.case, self.reason)
    }
}

thread_local! {
    /// What the last panic of this thread said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

pub async fn fuzz(options: &FuzzOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let limits = limits(options, choice.matrices)?;
    let given = given(options)?;
    let gpu = device::open(choice).await?;
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let matrices = limits.matrices && !software && gpu.attention.capabilities().matrix_side.is_some();
    let limits = Limits { software, matrices, ..limits };
    if !options.json {
        writeln!(out, "{}", gpu.describe())?;
    }
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string().replace('\n', " "))));
    let fuzzer = Fuzzer { gpu: &gpu, tally: Mutex::default(), ended: Arc::default() };
    let start = Instant::now();
    let seed = options.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    });
    if given.is_empty() {
        fuzzer.end_by_signals();
        let time = options.minutes.unwrap_or(if options.problems.is_some() { f64::INFINITY } else { 1.0 });
        let end = Duration::try_from_secs_f64(time * 60.0).ok().and_then(|time| start.checked_add(time));
        let most = options.problems.unwrap_or(u64::MAX);
        fuzzer.tell(options, out, |tell| fuzzer.draw(&limits, seed, most, end, tell))?;
    } else {
        fuzzer.tell(options, out, |tell| fuzzer.solve_all(&given, tell))?;
    }
    let tally = fuzzer.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.print(options, seed, start.elapsed(), out)?;
    Ok(tally.misses.is_empty())
}

fn limits(options: &FuzzOptions, matrices: bool) -> Result<Limits> {
    let known: Vec<&str> = Case::features().collect();
    if let Some(name) = options.features.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::new(format_args!("'{name}' is no feature: {}", known.join(", "))));
    }
    Ok(Limits { features: options.features.clone(), matrices, software: false })
}

/// The cases that the options name, if they name some.
fn given(options: &FuzzOptions) -> Result<Vec<Case>> {
    let kept = kept::KEPT.iter().copied().filter(|_| options.kept);
    let lines = options.case.as_deref().into_iter().chain(kept);
    lines.map(|line| line.parse().map_err(Failure::new)).collect()
}

struct Fuzzer<'a> {
    gpu: &'a Gpu,
    tally: Mutex<Tally>,
    /// Set by a signal, or after too many misses.
    ended: Arc<AtomicBool>,
}

impl Fuzzer<'_> {
    fn end_by_signals(&self) {
        #[cfg(unix)]
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second one ends the program at once.
            let _ = signal_hook::flag::register_conditional_default(signal, Arc::clone(&self.ended));
            let _ = signal_hook::flag::register(signal, Arc::clone(&self.ended));
        }
    }

    /// Runs `work`, and writes what it tells.
    fn tell(&self, options: &FuzzOptions, out: &mut dyn Write, work: impl FnOnce(Sender<String>) + Send) -> Result<()> {
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| work(tell));
            let written = told.iter().filter(|_| !options.json).try_for_each(|line| {
                writeln!(out, "{line}")?;
                Ok(out.flush()?)
            });
            self.ended.store(true, Ordering::Relaxed);
            written
        })
    }

    /// Draws and solves, batch by batch, some batches at a time, until the time is over.
    fn draw(&self, limits: &Limits, seed: u64, most: u64, end: Option<Instant>, tell: Sender<String>) {
        let is_over = || self.ended.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
        let next_batch = AtomicU64::new(0);
        on_threads(threads().div_ceil(THREADS_OF_BATCH), || {
            while !is_over() {
                let first = next_batch.fetch_add(limits.batch(), Ordering::Relaxed);
                let last = first.saturating_add(limits.batch()).min(most);
                if first >= last {
                    break;
                }
                // Its pipelines are dropped with it.
                let libraries = Libraries::new(&self.gpu.attention);
                let (next, missed) = (AtomicU64::new(first), Mutex::default());
                on_threads(THREADS_OF_BATCH, || {
                    while !is_over() {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= last {
                            break;
                        }
                        self.solve(&libraries, &limits.case(seed, index), &missed);
                    }
                });
                self.report(&libraries, missed, &tell);
            }
        });
    }

    /// Tells of the misses of a batch, the first of them as simple as they can be.
    fn report(&self, libraries: &Libraries, missed: Mutex<Vec<Miss>>, tell: &Sender<String>) {
        let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (number, mut miss) in missed.into_iter().enumerate() {
            // Who listens no more has ended the run.
            let _ = tell.send(miss.to_string());
            if number < SIMPLIFIED {
                self.shrink(libraries, &mut miss);
                let _ = tell.send(format!("  at its simplest: {miss}"));
            }
            self.lock().misses.push(miss);
        }
    }

    fn solve_all(&self, cases: &[Case], tell: Sender<String>) {
        let (next, missed) = (AtomicU64::new(0), Mutex::default());
        let libraries = Libraries::new(&self.gpu.attention);
        on_threads(threads(), || {
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                self.solve(&libraries, case, &missed);
            }
        });
        for miss in missed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let _ = tell.send(miss.to_string());
            self.lock().misses.push(miss);
        }
    }

    /// Solves a case and counts it.
    fn solve(&self, libraries: &Libraries, case: &Case, missed: &Mutex<Vec<Miss>>) {
        let outcome = self.attempt(libraries, case);
        let mut tally = self.lock();
        tally.problems += 1;
        match outcome {
            Outcome::Good(share) => tally.largest_share = tally.largest_share.max(share),
            Outcome::Refused(reason) => *tally.refused.entry(reason).or_default() += 1,
            Outcome::Bad(reason) => {
                tally.missed += 1;
                missed.lock().unwrap_or_else(PoisonError::into_inner).push(Miss { case: *case, reason });
            }
        }
        if tally.missed >= MOST_MISSES {
            self.ended.store(true, Ordering::Relaxed);
        }
    }

    /// A panic, and what the device reports by itself, is a miss too.
    fn attempt(&self, libraries: &Libraries, case: &Case) -> Outcome {
        let outcome = catch_unwind(AssertUnwindSafe(|| solve(libraries, case)));
        match (outcome, self.gpu.fault()) {
            (Ok(outcome @ Outcome::Bad(_)), _) | (Ok(outcome), Ok(())) => outcome,
            (Ok(_), Err(failure)) => Outcome::Bad(failure.line().to_owned()),
            (Err(_), _) => Outcome::Bad(PANIC.take()),
        }
    }

    /// Makes a miss as simple as it can be.
    fn shrink(&self, libraries: &Libraries, miss: &mut Miss) {
        let mut reason = miss.reason.clone();
        let end = Instant::now() + MOST_TIME;
        let attempt = |case: &Case| (Instant::now() < end).then(|| self.attempt(libraries, case));
        miss.case = miss.case.shrunk(MOST_STEPS, |case| match attempt(case) {
            Some(Outcome::Bad(of_simpler)) => {
                reason = of_simpler;
                true
            }
            _ => false,
        });
        miss.reason = reason;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS))
}

fn on_threads(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(&work))));
}

impl Tally {
    fn print(&self, options: &FuzzOptions, seed: u64, time: Duration, out: &mut dyn Write) -> Result<()> {
        let seconds = time.as_secs_f64();
        if options.json {
            let miss = |miss: &Miss| json!({ "case": miss.case.to_string(), "reason": miss.reason });
            let misses: Vec<_> = self.misses.iter().map(miss).collect();
            let object = json!({
                "seed": seed,
                "problems": self.problems,
                "seconds": seconds,
                "refused": self.refused,
                "largest_share": self.largest_share,
                "misses": misses,
            });
            writeln!(out, "{object}")?;
            return Ok(());
        }
        for (reason, count) in &self.refused {
            writeln!(out, "refused {count} times: {reason}")?;
        }
        let (problems, misses) = (self.problems, self.misses.len());
        let refused: u64 = self.refused.values().sum();
        let rate = problems as f64 / seconds;
        let drawn = if options.case.is_some() || options.kept { String::new() } else { format!("seed {seed}: ") };
        writeln!(
            out,
            "{drawn}{problems} problems in {seconds:.0} s, {rate:.0} a second; {refused} refused; the largest error \
             took {:.2} of its bound; {misses} misses",
            self.largest_share
        )?;
        Ok(())
    }
}
