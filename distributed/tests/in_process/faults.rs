//! A rank that fails: all others end with an error that names it.

use crate::support::{TIMEOUT, device};
use std::time::{Duration, Instant};
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, EntryLayout, FlashAttention, Operand, ScoreMod};
use wgpu_flash_attention_distributed::{Error, InProcess, RingAttention, Scheme, Transport, adapters, run_in_process};

fn problem() -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(1, 2, 64, 16)).with_causal()
}

fn ring(transport: InProcess, problem: &AttentionProblem) -> Result<RingAttention<InProcess>, Error> {
    ring_on(&device(), transport, problem)
}

fn ring_on(
    device: &FlashAttention,
    transport: InProcess,
    problem: &AttentionProblem,
) -> Result<RingAttention<InProcess>, Error> {
    let mut ring = RingAttention::new(transport, device, Scheme::Zigzag, problem)?;
    let bytes = vec![0; ring.rows().iter().map(|span| span.len as usize * 2 * 16 * 4).sum()];
    for operand in [Operand::Q, Operand::K, Operand::V] {
        ring.set(operand, &bytes)?;
    }
    Ok(ring)
}

fn texts<T>(results: Vec<Result<T, Error>>) -> Vec<String> {
    results.into_iter().map(|result| result.err().map_or("ended well".into(), |error| error.to_string())).collect()
}

#[test]
fn ranks_started_for_other_problems_are_named() {
    for (change, name) in [
        ((|problem| problem.with_element(Element::F16)) as fn(AttentionProblem) -> _, "element = f16"),
        (|_| AttentionProblem::new(AttentionShape::new(1, 2, 65, 16)).with_causal(), "seqlen_q = 65"),
        (|problem| problem.with_dropout(0.1, 1), "dropout = "),
        (|problem| problem.with_score(ScoreMod::Softcap(3.0)), "score modifiers = "),
    ] {
        let results = run_in_process(vec![device(); 3], TIMEOUT, |transport, _| {
            let own = if transport.rank() == 2 { change(problem()) } else { problem() };
            ring(transport, &own).map(drop)
        });
        let texts = texts(results);
        // Who sees it first tells the others. Rank 2 may be the first, and names what the others have.
        let (field, own) = name.split_once("= ").unwrap();
        let is_named = |text: &String| match text.strip_prefix("rank 2 failed: ") {
            Some(seen) => seen.contains(&format!(" has {field}= ")) && seen.contains(&format!("this rank {own}")),
            None => text.contains(&format!("rank 2 has {name}")),
        };
        assert!(texts.iter().any(is_named), "{texts:?}");
        assert!(texts.iter().all(|text| text.starts_with("rank ")), "{texts:?}");
    }
}

/// In the middle of a call: by an error, by a panic, by an early end.
#[test]
fn a_rank_that_ends_ends_all() {
    type End = fn(InProcess) -> Result<(), Error>;
    let ends: [(End, &str); 3] = [
        (
            |mut transport| {
                transport.fail("its device is lost");
                Ok(())
            },
            "rank 2 failed: its device is lost",
        ),
        (|_| panic!("a rank ends on purpose"), "rank 2 failed: its thread panicked"),
        (|_| Ok(()), "rank 2 failed: it ended before the others"),
    ];
    for (end, text) in ends {
        for _ in 0..20 {
            let start = Instant::now();
            let results = run_in_process(vec![device(); 4], TIMEOUT, |mut transport, device| {
                if transport.rank() == 2 {
                    // The others wait for its greeting.
                    std::thread::sleep(Duration::from_millis(5));
                    drop(device);
                    return end(transport);
                }
                transport.barrier()?;
                ring(transport, &problem())?.forward().map(drop)
            });
            let texts = texts(results);
            let others = [0, 1, 3].map(|rank| texts[rank].as_str());
            assert!(others.iter().all(|other| other.starts_with("rank ")), "{texts:?}");
            assert!(others.contains(&text), "{texts:?}");
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}

/// A device that is lost in the middle, at any moment: no rank waits for it, and all name it and its cause.
#[test]
fn a_lost_device_ends_all() {
    for delay in [0, 1, 5, 20, 60] {
        let adapter = adapters().unwrap().remove(0);
        let open = |_| pollster::block_on(FlashAttention::from_adapter(&adapter)).unwrap();
        let devices: Vec<_> = (0..3).map(open).collect();
        let lost = devices[1].clone();
        let start = Instant::now();
        let results = run_in_process(devices, TIMEOUT, |transport, device| {
            let is_lost = transport.rank() == 1;
            let mut ring = ring_on(&device, transport, &problem())?;
            let bytes = vec![0; ring.rows().iter().map(|span| span.len as usize * 2 * 16 * 4).sum()];
            ring.set(Operand::DO, &bytes)?;
            ring.forward()?;
            std::thread::scope(|scope| {
                if is_lost {
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_millis(delay));
                        lost.device().destroy();
                    });
                }
                loop {
                    ring.forward()?;
                    ring.backward()?;
                }
            })
        });
        let texts = texts::<()>(results);
        assert!(texts[1].contains("lost"), "after {delay} ms: {texts:?}");
        for other in [&texts[0], &texts[2]] {
            assert!(other.starts_with("rank 1 failed: ") && other.contains("lost"), "after {delay} ms: {texts:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(60), "after {delay} ms: {:?}", start.elapsed());
    }
}

#[test]
fn a_rank_that_is_silent_is_named() {
    let results = run_in_process(vec![device(); 2], Duration::from_secs(1), |mut transport, _| {
        if transport.rank() == 1 {
            std::thread::sleep(Duration::from_secs(3));
        }
        transport.barrier()
    });
    assert_eq!(texts(results)[0], "nothing came from rank 1 for 1 s");
}

#[test]
fn problems_that_cannot_be_cut_are_refused() {
    let bias = |layout| ScoreMod::Bias { layout, element: Element::F32 };
    let transposed = EntryLayout { stride_row: 1, stride_key: 64, ..EntryLayout::contiguous([1, 2, 64, 64]) };
    let repeated = problem().with_score(bias(EntryLayout::contiguous([1, 2, 1, 64]))).with_bias_gradient();
    for (problem, text) in [
        (problem().with_lengths(vec![3], vec![4]), "sequences with lengths of their own"),
        (problem().with_score(bias(transposed)), "entries in another layout"),
        (repeated, "the gradient of a bias that repeats along rows or keys"),
    ] {
        let results = run_in_process(vec![device(); 2], TIMEOUT, |transport, _| ring(transport, &problem).map(drop));
        assert!(texts(results).iter().any(|found| found.contains(text)));
    }
}

/// A rank that did not set what the problem has ends all.
#[test]
fn tensors_that_are_not_set_are_named() {
    let results = run_in_process(vec![device(); 2], TIMEOUT, |transport, _| {
        let is_first = transport.rank() == 0;
        let mut ring = ring(transport, &problem().with_sink())?;
        if is_first {
            ring.set(Operand::Sink, &[0; 8])?;
        }
        ring.forward().map(drop)
    });
    let texts = texts(results);
    assert!(texts[1].contains("not set") && texts[1].contains("sink"), "{texts:?}");
    assert!(texts[0].starts_with("rank 1 failed: "), "{texts:?}");
}
