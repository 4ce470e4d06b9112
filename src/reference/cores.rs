//! Work on all cores.

use std::ops::Range;

/// Fewer products than this are not worth a thread.
const WORTH_A_THREAD: u64 = 1 << 18;

/// `of(0), of(1), …, of(count - 1)`, each of about `cost` products.
pub(super) fn map<T: Send>(count: usize, cost: u64, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let worthwhile = (count as u64).saturating_mul(cost) / WORTH_A_THREAD;
    let threads = cores.min(worthwhile.min(1 << 16) as usize).max(1);
    let of_run = |run: Range<usize>| -> Vec<T> { run.map(&of).collect() };
    if threads == 1 {
        return of_run(0..count);
    }
    let run = count.div_ceil(threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .step_by(run)
            .map(|first| first..(first + run).min(count))
            .map(|run| scope.spawn(|| of_run(run)))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("the work could be done")).collect()
    })
}
