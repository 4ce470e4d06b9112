//! What the features `tracing` and `serde` add: spans of all that is done, and plans as records.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::{Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Capabilities, FlashAttention, ForwardBuffers, Operand, Plan, Tiles,
};

/// The subscriber of this process.
struct Collected;

/// A span that was opened, with those around it.
struct Opened {
    metadata: &'static Metadata<'static>,
    path: String,
}

/// All spans, by their numbers less 1, and a line for each span and event: its path and fields.
static SPANS: Mutex<Vec<Opened>> = Mutex::new(Vec::new());
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// The spans that are entered on this thread.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

fn path_of(id: Option<Id>) -> String {
    id.map_or(String::new(), |id| SPANS.lock().unwrap()[id.into_u64() as usize - 1].path.clone())
}

fn entered() -> Option<Id> {
    ENTERED.with_borrow(|entered| entered.last().cloned())
}

impl Subscriber for Collected {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target() == "wgpu_flash_attention"
    }

    fn new_span(&self, attributes: &Attributes) -> Id {
        let around = path_of(attributes.parent().cloned().or_else(entered));
        let separator = if around.is_empty() { "" } else { "/" };
        let path = format!("{around}{separator}{}", attributes.metadata().name());
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        LINES.lock().unwrap().push(format!("{path}{}", fields.0));
        let mut spans = SPANS.lock().unwrap();
        spans.push(Opened { metadata: attributes.metadata(), path });
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        LINES.lock().unwrap().push(format!("{}{}", path_of(event.parent().cloned().or_else(entered)), fields.0));
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, id: &Id) {
        let left = ENTERED.with_borrow_mut(Vec::pop);
        assert_eq!(left.as_ref(), Some(id), "spans are left in order");
    }

    fn current_span(&self) -> Current {
        entered().map_or_else(Current::none, |id| {
            let metadata = SPANS.lock().unwrap()[id.into_u64() as usize - 1].metadata;
            Current::new(id, metadata)
        })
    }
}

/// What is told while this runs.
fn told(work: impl FnOnce()) -> Vec<String> {
    static ALONE: Mutex<()> = Mutex::new(());
    static BEGUN: Once = Once::new();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    BEGUN.call_once(|| tracing::subscriber::set_global_default(Collected).expect("it is the first"));
    LINES.lock().unwrap().clear();
    work();
    std::mem::take(&mut LINES.lock().unwrap())
}

fn problem() -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(1, 2, 8, 8).with_seqlen_kv(64))
}

const TITLE: &str = "operation=forward 1x2x8x64x8 f32";

/// The lines that begin so.
fn of<'a>(lines: &'a [String], name: &str) -> Vec<&'a str> {
    let is_it = |line: &&str| line.split(' ').next() == Some(name);
    lines.iter().map(String::as_str).filter(is_it).collect()
}

#[test]
fn spans_of_the_slice_form() {
    let attention = pollster::block_on(FlashAttention::request()).expect("an adapter");
    let tensor = vec![0.5; 2 * 64 * 8];
    let problem = problem();
    let lines = told(|| {
        pollster::block_on(attention.forward(&problem, &tensor, &tensor, &tensor)).expect("it runs");
    });
    // The span, and what was planned in it.
    let planned = of(&lines, "plan").join("\n");
    let plan = attention.plan_forward(&problem).build().expect("it can be planned");
    for part in [TITLE, &format!("reason={}", plan.reason()), plan.passes()[0].kernel.name(), "message=planned"] {
        assert!(planned.contains(part), "{planned} has no {part}");
    }
    assert_eq!(of(&lines, "prepare").len(), 1, "{lines:#?}");
    assert_eq!(of(&lines, "prepare/compile").len(), plan.passes().len(), "{lines:#?}");
    assert_eq!(of(&lines, "submit").len(), 1, "{lines:#?}");
    assert_eq!(of(&lines, "read_back"), ["read_back tensor=\"o\"", "read_back tensor=\"lse\""]);
}

/// Kernels that are compiled by several threads belong to the operation that needs them.
#[test]
fn spans_of_a_prepared_operation() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let options = wgpu::RequestAdapterOptions::default();
    let adapter = pollster::block_on(instance.request_adapter(&options)).expect("an adapter");
    let attention = pollster::block_on(FlashAttention::from_adapter(&adapter)).expect("a device");
    let problem = problem();
    let lines = told(|| {
        let plan = attention.plan_forward(&problem).with_splits(2).build().expect("it can be planned");
        let forward = pollster::block_on(attention.prepare_forward_plan(plan)).expect("it can be prepared");
        let buffer = |operand| {
            let (size, usage) = (forward.plan().required_bytes(operand), wgpu::BufferUsages::STORAGE);
            let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
            attention.device().create_buffer(&descriptor)
        };
        let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(buffer);
        let buffers = ForwardBuffers::new(q.slice(..), k.slice(..), v.slice(..), o.slice(..), lse.slice(..));
        let mut encoder = attention.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        forward.encode(&mut encoder, &buffers).expect("the buffers fit");
    });
    let compiled = of(&lines, "prepare/compile");
    assert!(compiled.len() == 2 && compiled.iter().any(|line| line.contains("combine")), "{lines:#?}");
    assert_eq!(of(&lines, "encode"), [format!("encode {TITLE}")]);
}

#[test]
fn plans_as_records() {
    let (problem, capabilities) = (problem(), Capabilities::webgpu_defaults());
    let tiles = [Tiles::new(64, 16, 2, 4)];
    let builder = Plan::forward(&problem, &capabilities).with_tiles(&tiles).with_splits(2);
    let plan = builder.build().expect("it can be planned");
    let passes = plan.passes().iter().map(
        |pass| serde_json::json!({ "kernel": pass.kernel.name(), "tiles": pass.specialization.tiles.to_string() }),
    );
    let passes: Vec<_> = passes.collect();
    assert_eq!(passes.len(), 2);
    let expected = serde_json::json!({
        "direction": "forward", "element": "f32", "batch": 1, "num_heads": 2, "num_heads_kv": 2, "seqlen_q": 8,
        "seqlen_kv": 64, "head_dim": 8, "head_dim_v": 8, "reason": plan.reason(),
        "passes": passes,
        "num_splits": 2, "scratch_bytes": plan.scratch_bytes(),
    });
    assert_eq!(serde_json::to_value(&plan).unwrap(), expected);
}
