//! How both benches take times.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;

/// The middle of the times of `repeats` runs, in seconds, and what the last run gave. `prepare` is not timed. A run before
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
    let (_, mut given) = once()?;
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        let (time, last) = once()?;
        seconds.push(time);
        given = last;
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[repeats / 2], given))
}
