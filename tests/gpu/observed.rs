//! What a program can see and steer: passes and labels of its own, plans in words, what was compiled.

use std::collections::HashSet;

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Call, FlashAttention, Operand, ScoreMod};

use crate::support::{Library, Tensors, Variant, adapter, inputs, library, run, run_dispatch_by_dispatch};

fn problem() -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(300)).with_causal()
}

fn new_attention() -> FlashAttention {
    pollster::block_on(FlashAttention::from_adapter(adapter())).expect("the adapter has a device")
}

/// In a pass of the caller's, between timestamps of the caller's where there are some: the same bits.
#[test]
fn passes_of_the_caller() {
    let library = library(Variant::Full).clone().splits(3);
    let (problem, given) = (problem(), inputs(&problem(), 1));
    let expected = run(&library, &problem, &given);
    let prepared = library.prepare(&problem).unwrap();
    let [first, second] = [0, 1].map(|_| Tensors::new(&library, &problem, &given));
    let mut encoder = library.device().create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        prepared.encode_in_pass(&mut pass, &first.buffers(), &Call::new()).unwrap();
        // A refused call leaves the pass as it was.
        let without = second.buffers().with(Operand::V, None);
        prepared.encode_in_pass(&mut pass, &without, &Call::new()).unwrap_err();
        prepared.encode_in_pass(&mut pass, &second.buffers(), &Call::new()).unwrap();
    }
    library.queue().submit([encoder.finish()]);
    for tensors in [first, second] {
        assert!(tensors.finish(&library, &problem, &Call::new()) == expected);
    }
}

/// Labels change nothing, whole or dispatch by dispatch.
#[test]
fn labels_change_nothing() {
    let plain = library(Variant::Full).clone().splits(3);
    let labelled: Library = plain.labelled("layer 7");
    let (problem, given) = (problem().with_bounded_work(1), inputs(&problem(), 2));
    let expected = run(&plain, &problem, &given);
    assert!(run(&labelled, &problem, &given) == expected);
    assert!(run_dispatch_by_dispatch(&labelled, &problem, &given) == expected);
}

/// Two hundred threads that prepare the same problems compile each kernel once.
#[test]
fn each_kernel_is_compiled_once() {
    let attention = new_attention();
    let problems = [problem(), problem().with_score(ScoreMod::Softcap(5.0))];
    let barrier = std::sync::Barrier::new(200);
    std::thread::scope(|scope| {
        for number in 0..200 {
            let (attention, problem, barrier) = (attention.clone(), &problems[number % 2], &barrier);
            scope.spawn(move || {
                barrier.wait();
                pollster::block_on(attention.prepare_forward(problem)).expect("it can be prepared");
            });
        }
    });
    // Where keys are split, both problems have the same merge.
    let plans = problems.each_ref().map(|problem| attention.plan_forward(problem).build().expect("it can be planned"));
    let passes = plans.iter().flat_map(|plan| plan.passes());
    let kernels: HashSet<_> = passes.map(|pass| &pass.specialization).collect();
    let made = attention.statistics();
    assert_eq!((made.pipelines, made.compilations), (kernels.len(), kernels.len() as u64));
}

/// A plan says what it is.
#[test]
fn plans_in_words() {
    let plan = library(Variant::Full).plan_forward(&problem()).with_splits(3).build().unwrap();
    let words = plan.to_string();
    let lines: Vec<&str> = words.lines().collect();
    assert!(lines[0].starts_with("forward 2x4/2x37x300x16 f32: "), "{words}");
    assert!(lines[1].trim_start().starts_with("flash_forward"), "{words}");
    assert!(lines.contains(&"  3 splits of the keys"), "{words}");
    assert!(lines.last().unwrap().ends_with(&format!("{} bytes of scratch memory", plan.scratch_bytes())), "{words}");
}

/// Through a cache of the caller's the answer is the same, and the cache then holds something.
#[test]
fn a_pipeline_cache() {
    if !adapter().features().contains(wgpu::Features::PIPELINE_CACHE) {
        println!("skipped: the adapter has no pipeline caches");
        return;
    }
    let mut descriptor = FlashAttention::device_descriptor(adapter());
    descriptor.required_features |= wgpu::Features::PIPELINE_CACHE;
    let (device, queue) = pollster::block_on(adapter().request_device(&descriptor)).expect("the adapter has a device");
    let new = |data: Option<&[u8]>| {
        // SAFETY: the data, if there is some, is of a cache of the same device.
        unsafe {
            let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
            device.create_pipeline_cache(&descriptor)
        }
    };
    let solve = |cache: &wgpu::PipelineCache| {
        let attention = FlashAttention::new(adapter(), &device, &queue).with_pipeline_cache(cache.clone());
        let tensor = vec![0.5f32; 4 * 8 * 16];
        let problem = AttentionProblem::new(AttentionShape::new(1, 4, 8, 16));
        pollster::block_on(attention.forward(&problem, &tensor, &tensor, &tensor)).expect("it runs")
    };
    let first = new(None);
    let expected = solve(&first);
    let data = first.get_data().expect("the driver gives its data");
    assert!(data.len() > 64, "{} bytes", data.len());
    assert_eq!(solve(&new(Some(&data))), expected);
}
