//! What goes wrong around the library: dropped futures, panics of the caller's, lost devices, many threads. The next call works.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};

use wgpu_flash_attention::unstable::run_out_of_memory_after;
use wgpu_flash_attention::wgpu;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardSlices, Error, FlashAttention, ForwardBuffers, ForwardOutput, Operand,
    ScoreMod,
};

use crate::support::adapter;

const LEN: usize = 2 * 4 * 20 * 16;

fn problem() -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(2, 4, 20, 16)).with_causal()
}

fn new_attention() -> FlashAttention {
    pollster::block_on(FlashAttention::from_adapter(adapter())).expect("the adapter has a device")
}

fn values() -> Vec<f32> {
    (0..LEN).map(|n| (n as f32 * 0.37).sin()).collect()
}

fn solve(attention: &FlashAttention) -> Result<ForwardOutput<f32>, Error> {
    let values = values();
    pollster::block_on(attention.forward(&problem(), &values, &values, &values))
}

/// Wakes the thread that it was made on.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future so many times, and drops it. Whether it was ready before.
fn polled<T>(future: impl Future<Output = T>, polls: usize) -> bool {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return true;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    false
}

/// A future may be dropped wherever it waits.
#[test]
fn dropped_futures_leave_nothing_behind() {
    let attention = new_attention();
    let values = values();
    let expected = solve(&attention).expect("it runs");
    let slices = BackwardSlices::new(&values, &values, &values, &values, &values[..2 * 4 * 20], &values);
    for polls in 0..6 {
        polled(attention.forward(&problem(), &values, &values, &values), polls);
        polled(attention.backward(&problem(), &slices), polls);
        // Kernels that no other call has compiled.
        let other = problem().with_score(ScoreMod::Softcap(polls as f32 + 1.0));
        polled(attention.prepare_forward(&other), polls);
        polled(attention.prepare_backward(&other), polls);
        assert_eq!(solve(&attention), Ok(expected.clone()), "after {polls} polls");
    }
}

/// Memory runs out at each step that allocates, one after the other: the call says so, and the same call works afterwards.
#[test]
fn memory_that_runs_out_anywhere_is_an_error() {
    type Attempt = fn(&FlashAttention) -> Result<(), Error>;
    fn forward(attention: &FlashAttention) -> Result<(), Error> {
        solve(attention).map(drop)
    }
    fn backward(attention: &FlashAttention) -> Result<(), Error> {
        let values = values();
        let slices = BackwardSlices::new(&values, &values, &values, &values, &values[..2 * 4 * 20], &values);
        pollster::block_on(attention.backward(&problem(), &slices)).map(drop)
    }
    fn encode(attention: &FlashAttention) -> Result<(), Error> {
        let prepared = pollster::block_on(attention.prepare_forward(&problem()))?;
        let buffer = |operand| {
            attention.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: prepared.plan().required_bytes(operand),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(buffer);
        let mut encoder = attention.device().create_command_encoder(&Default::default());
        let buffers = ForwardBuffers::new(q.slice(..), k.slice(..), v.slice(..), o.slice(..), lse.slice(..));
        let encoded = prepared.encode(&mut encoder, &buffers);
        attention.queue().submit([encoder.finish()]);
        encoded
    }
    // Text and pipeline of each pass are steps (those of several passes belong to other threads), and so are scratch memory,
    // uploads with the run, and what encoding makes.
    let calls: [(&str, Attempt, u32); 3] = [("forward", forward, 5), ("backward", backward, 3), ("encode", encode, 4)];
    for (name, call, expected) in calls {
        let mut steps = 0;
        loop {
            let attention = new_attention();
            run_out_of_memory_after(Some(steps));
            let first = call(&attention);
            if run_out_of_memory_after(None) {
                assert_eq!(first, Ok(()), "{name}");
                break;
            }
            assert!(matches!(first, Err(Error::OutOfMemory(_))), "{name}, step {steps}: {first:?}");
            assert_eq!(call(&attention), Ok(()), "{name}, after step {steps}");
            steps += 1;
        }
        assert_eq!(steps, expected, "steps of {name} that allocate");
    }
}

/// Two hundred threads on one attention, each with calls of its own.
#[test]
fn many_threads_share_one_attention() {
    let attention = new_attention();
    let expected = solve(&attention).expect("it runs");
    let barrier = Barrier::new(200);
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(solve(&attention), Ok(expected.clone()));
            });
        }
    });
}

/// A thread that panics while it holds operations and encoders of this attention disturbs no other.
#[test]
fn a_panic_of_the_caller_disturbs_nothing() {
    let attention = new_attention();
    let expected = solve(&attention).expect("it runs");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let prepared = pollster::block_on(attention.prepare_forward(&problem())).expect("it can be prepared");
        let _encoder = attention.device().create_command_encoder(&Default::default());
        assert!(prepared.plan().passes().is_empty(), "as intended");
    }));
    assert!(panicked.is_err());
    assert_eq!(solve(&attention), Ok(expected));
}

/// A waker that panics, in the middle of a call. The next call works.
#[test]
fn a_panicking_waker_disturbs_nothing() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("as intended");
        }
    }
    let attention = new_attention();
    let expected = solve(&attention).expect("it runs");
    let values = values();
    let waker = Waker::from(Arc::new(Panics));
    let problem = problem();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut call = pin!(attention.forward(&problem, &values, &values, &values));
        let poll = call.as_mut().poll(&mut Context::from_waker(&waker));
        std::thread::sleep(std::time::Duration::from_millis(50));
        matches!(poll, Poll::Ready(Ok(_)))
    }));
    drop(outcome);
    assert_eq!(solve(&attention), Ok(expected));
}

/// The device is destroyed while calls are on their way: each ends, by an answer or an error of its own.
#[test]
fn a_device_destroyed_in_the_middle() {
    let attention = new_attention();
    let expected = solve(&attention).expect("it runs");
    let barrier = Barrier::new(9);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20 {
                    match solve(&attention) {
                        Ok(answer) => assert_eq!(answer, expected),
                        Err(Error::DeviceLost(_)) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        barrier.wait();
        std::thread::sleep(std::time::Duration::from_millis(30));
        attention.device().destroy();
    });
    assert!(matches!(solve(&attention), Err(Error::DeviceLost(_))));
    // Another device is none the worse.
    assert_eq!(solve(&new_attention()), Ok(expected));
}

/// Thousands of operations, prepared and dropped: the process does not grow. Other tests would grow it meanwhile, so it is one of
/// its own.
#[cfg(target_os = "linux")]
#[test]
fn thousands_of_prepares_are_flat() {
    const ALONE: &str = "FLASH_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let program = std::env::current_exe().expect("a test has a path");
        let name = "faults::thousands_of_prepares_are_flat";
        let child = std::process::Command::new(program).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output();
        let output = child.expect("the program of this test starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test has another name");
        return;
    }
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number of pages") * 4096
    };
    let attention = new_attention();
    // Each with a table and scratch memory of its own.
    let prepare = |number: u32| {
        let problem = problem().with_score(ScoreMod::Softcap(number as f32 + 1.0));
        pollster::block_on(attention.prepare_forward(&problem)).expect("it can be prepared");
        if number.is_multiple_of(64) {
            attention.queue().submit([]);
            attention.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
        }
    };
    (0..500).for_each(prepare);
    let before = resident();
    (500..4500).for_each(prepare);
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "4,000 operations left {grown} bytes");
    assert_eq!(attention.statistics().compilations, attention.statistics().pipelines as u64);
}
