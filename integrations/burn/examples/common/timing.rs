//! How all benches take times.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::Device;

/// What is slow is not repeated after this time.
const ENOUGH: Duration = Duration::from_secs(10);

/// The middle of the times of at most `repeats` runs, in seconds, and what the last run gave. `prepare` is not timed. A run before
/// them, for pipelines and memory, does not count.
pub fn timed<S, T>(
    device: &Device,
    repeats: usize,
    prepare: impl Fn() -> Result<S>,
    run: impl Fn(S) -> Result<T>,
) -> Result<(f64, T)> {
    let once = || -> Result<(f64, T)> {
        let prepared = prepare()?;
        device.sync()?;
        let start = Instant::now();
        let given = run(prepared)?;
        Ok((start.elapsed().as_secs_f64(), given))
    };
    once()?;
    let start = Instant::now();
    let (first, mut given) = once()?;
    let mut seconds = vec![first];
    while seconds.len() < repeats && start.elapsed() < ENOUGH {
        let (time, last) = once()?;
        seconds.push(time);
        given = last;
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[seconds.len() / 2], given))
}
