//! A call that is refused leaves the caller's encoder as it was: what was recorded before it runs, what is recorded after
//! it too, and wgpu hears of no error.

use std::sync::{Arc, Mutex};

use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, BackwardBuffers, Call, Error, FlashAttention, ForwardBuffers,
    MergeBuffers, MergeProblem, Operand, PreparedBackward, PreparedForward, PreparedMerge,
};

use crate::support::adapter;

const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC);

/// A device of its own, and the errors that reached its last handler.
struct Device {
    attention: FlashAttention,
    uncaptured: Arc<Mutex<Vec<String>>>,
}

impl Device {
    fn new() -> Self {
        let attention = pollster::block_on(FlashAttention::from_adapter(adapter())).expect("the adapter has a device");
        let uncaptured: Arc<Mutex<Vec<String>>> = Arc::default();
        let errors = uncaptured.clone();
        let keep = move |error: wgpu::Error| errors.lock().unwrap().push(error.to_string());
        attention.device().on_uncaptured_error(Arc::new(keep));
        Self { attention, uncaptured }
    }

    fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.attention.device().create_buffer(&descriptor)
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.attention.device().create_command_encoder(&Default::default())
    }

    /// The error of a call between two copies that must both be carried out.
    fn refusal(&self, call: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>) -> Error {
        let bytes: Vec<u8> = (0..64).collect();
        let source = self.buffer(64, wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
        let copy = self.buffer(64, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        self.attention.queue().write_buffer(&source, 0, &bytes);
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(&source, 0, &copy, 0, 32);
        let error = call(&mut encoder).expect_err("the call is refused");
        encoder.copy_buffer_to_buffer(&source, 32, &copy, 32, 32);
        self.attention.queue().submit([encoder.finish()]);
        copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
        self.attention.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
        assert_eq!(copy.slice(..).get_mapped_range().unwrap().to_vec(), bytes, "the encoder was lost to: {error}");
        self.hears_nothing();
        error
    }

    fn hears_nothing(&self) {
        let errors = self.uncaptured.lock().unwrap();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// Any of the operations.
enum Prepared {
    Forward(PreparedForward),
    Backward(PreparedBackward),
    Merge(PreparedMerge),
}

/// By which method.
#[derive(Clone, Copy, Debug)]
enum Form {
    Whole,
    Call,
    Dispatches,
    NoSuchDispatch,
}

const FORMS: [Form; 3] = [Form::Whole, Form::Call, Form::Dispatches];

/// A caller's buffers, by operand.
type Buffers = Vec<(Operand, wgpu::Buffer)>;

/// The slice of a buffer that a call passes.
type Slicing = fn(&wgpu::Buffer) -> wgpu::BufferSlice<'_>;

fn encode_as<D>(
    form: Form,
    prepared: &wgpu_flash_attention::Prepared<D>,
    encoder: &mut wgpu::CommandEncoder,
    buffers: &wgpu_flash_attention::Buffers<D>,
    call: &Call,
) -> Result<(), Error> {
    match form {
        Form::Whole if *call == Call::default() => prepared.encode(encoder, buffers),
        Form::Whole | Form::Call => prepared.encode_call(encoder, buffers, call),
        // Every dispatch, for not every one binds every buffer.
        Form::Dispatches => {
            let count = prepared.num_dispatches(&Call::default()).unwrap();
            prepared.encode_dispatches(encoder, buffers, call, 0..count)
        }
        Form::NoSuchDispatch => prepared.encode_dispatches(encoder, buffers, call, 0..99),
    }
}

impl Prepared {
    fn all(device: &Device, shape: AttentionShape) -> Vec<Self> {
        let mut all = Vec::new();
        for algorithm in [Algorithm::Flash, Algorithm::Standard] {
            let problem = AttentionProblem::new(shape).with_algorithm(algorithm);
            all.push(Self::Forward(pollster::block_on(device.attention.prepare_forward(&problem)).unwrap()));
            all.push(Self::Backward(pollster::block_on(device.attention.prepare_backward(&problem)).unwrap()));
        }
        let merge = MergeProblem::of(&AttentionProblem::new(shape), 2);
        all.push(Self::Merge(pollster::block_on(device.attention.prepare_merge(&merge)).unwrap()));
        all
    }

    fn operands(&self) -> Vec<Operand> {
        self.plan().operands().collect()
    }

    fn plan(&self) -> &wgpu_flash_attention::Plan {
        match self {
            Self::Forward(forward) => forward.plan(),
            Self::Backward(backward) => backward.plan(),
            Self::Merge(merge) => merge.plan(),
        }
    }

    /// Buffers of exactly the size that is needed, and 16 bytes before it.
    fn buffers(&self, device: &Device) -> Buffers {
        let size = |operand| 16 + self.plan().required_bytes(operand);
        self.operands().iter().map(|&operand| (operand, device.buffer(size(operand), STORAGE))).collect()
    }

    fn encode(&self, form: Form, encoder: &mut wgpu::CommandEncoder, buffers: &Buffers) -> Result<(), Error> {
        self.encode_with(form, encoder, buffers, None, &Call::default())
    }

    /// Encodes with the slice of one operand taken in another way.
    fn encode_with(
        &self,
        form: Form,
        encoder: &mut wgpu::CommandEncoder,
        buffers: &Buffers,
        change: Option<(Operand, Slicing)>,
        call: &Call,
    ) -> Result<(), Error> {
        let slice = |operand: Operand| {
            let (_, buffer) = buffers.iter().find(|(other, _)| *other == operand).expect("the operand is the caller's");
            match change {
                Some((changed, slice)) if changed == operand => slice(buffer),
                _ => buffer.slice(16..),
            }
        };
        match self {
            Self::Forward(forward) => {
                let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(slice);
                encode_as(form, forward, encoder, &ForwardBuffers::new(q, k, v, o, lse), call)
            }
            Self::Backward(backward) => {
                let [q, k, v, o, lse] = [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(slice);
                let [d_o, dq, dk, dv] = [Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv].map(slice);
                let buffers = BackwardBuffers::new(ForwardBuffers::new(q, k, v, o, lse), d_o, dq, dk, dv);
                encode_as(form, backward, encoder, &buffers.with(Operand::DLse, slice(Operand::DLse)), call)
            }
            Self::Merge(merge) => {
                let operands = [Operand::OParts, Operand::LseParts, Operand::O, Operand::Lse];
                let [o_parts, lse_parts, o, lse] = operands.map(slice);
                encode_as(form, merge, encoder, &MergeBuffers::new(o_parts, lse_parts, o, lse), call)
            }
        }
    }

    fn destroy(&self) {
        match self {
            Self::Forward(forward) => forward.destroy(),
            Self::Backward(backward) => backward.destroy(),
            Self::Merge(merge) => merge.destroy(),
        }
    }

    /// Encodes and submits.
    fn run(&self, device: &Device, buffers: &Buffers) {
        let mut encoder = device.encoder();
        self.encode(Form::Whole, &mut encoder, buffers).expect("the buffers fit");
        device.attention.queue().submit([encoder.finish()]);
        device.hears_nothing();
    }
}

const SHAPE: AttentionShape = AttentionShape::new(1, 4, 40, 8).with_num_heads_kv(2);

#[test]
fn slices_that_do_not_fit() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        let buffers = prepared.buffers(&device);
        for operand in prepared.operands() {
            for form in FORMS {
                let refusal = |slice: Slicing| {
                    device.refusal(|encoder| {
                        prepared.encode_with(form, encoder, &buffers, Some((operand, slice)), &Call::default())
                    })
                };
                let short = refusal(|buffer| buffer.slice(32..));
                assert!(matches!(short, Error::BufferTooSmall { operand: o, .. } if o == operand), "{short}");
                let odd = refusal(|buffer| buffer.slice(4..));
                assert!(matches!(odd, Error::BufferAlignment { operand: o, .. } if o == operand), "{odd}");
            }
        }
        prepared.run(&device, &buffers);
    }
}

#[test]
fn buffers_that_do_not_fit() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        let sound = prepared.buffers(&device);
        for (place, &operand) in prepared.operands().iter().enumerate() {
            let size = 16 + prepared.plan().required_bytes(operand);
            for form in FORMS {
                let mut buffers = sound.clone();
                buffers[place].1 = device.buffer(size, wgpu::BufferUsages::COPY_SRC);
                let error = device.refusal(|encoder| prepared.encode(form, encoder, &buffers));
                assert_eq!(error, Error::BufferUsage { operand, needed: "STORAGE" });
                // An operand that is written shares the buffer of another.
                let written = sound.last().unwrap();
                if operand != written.0 {
                    let mut buffers = sound.clone();
                    let shared = device.buffer(1 << 16, STORAGE);
                    (buffers[place].1, buffers.last_mut().unwrap().1) = (shared.clone(), shared);
                    let error = device.refusal(|encoder| prepared.encode(form, encoder, &buffers));
                    assert!(matches!(error, Error::BufferAliased { .. }), "{error}");
                }
            }
        }
        prepared.run(&device, &sound);
    }
}

#[test]
fn calls_that_do_not_fit() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        let buffers = prepared.buffers(&device);
        for form in FORMS {
            let call = Call::new().with_seqlen_q(41);
            let error = device.refusal(|encoder| prepared.encode_with(form, encoder, &buffers, None, &call));
            assert!(matches!(error, Error::LengthExceedsPrepared { found: 41, .. }), "{error}");
        }
        let error = device.refusal(|encoder| prepared.encode(Form::NoSuchDispatch, encoder, &buffers));
        assert!(matches!(error, Error::NoSuchDispatch { end: 99, .. }), "{error}");
    }
}

/// Whether their bind groups are new or were made by calls before.
#[test]
fn destroyed_buffers() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        for operand in prepared.operands() {
            for earlier_calls in [0, 1, 3] {
                let buffers = prepared.buffers(&device);
                (0..earlier_calls).for_each(|_| prepared.run(&device, &buffers));
                buffers.iter().find(|(other, _)| *other == operand).unwrap().1.destroy();
                for form in FORMS {
                    let error = device.refusal(|encoder| prepared.encode(form, encoder, &buffers));
                    assert_eq!(error, Error::BufferDestroyed { operand }, "after {earlier_calls} calls");
                }
            }
        }
        prepared.run(&device, &prepared.buffers(&device));
    }
}

#[test]
fn buffers_of_another_device() {
    let (device, other) = (Device::new(), Device::new());
    for prepared in Prepared::all(&device, SHAPE) {
        let sound = prepared.buffers(&device);
        for (place, &operand) in prepared.operands().iter().enumerate() {
            let mut buffers = sound.clone();
            buffers[place].1 = other.buffer(16 + prepared.plan().required_bytes(operand), STORAGE);
            // Flash attention binds all operands in its first dispatch, standard attention in three.
            let forms = if prepared.plan().passes().len() == 1 { &FORMS[..] } else { &FORMS[..2] };
            // Often enough that their bind groups would be kept.
            for form in forms.iter().cycle().take(6) {
                let error = device.refusal(|encoder| prepared.encode(*form, encoder, &buffers));
                assert!(matches!(error, Error::Gpu(_)), "{error}");
            }
        }
        prepared.run(&device, &sound);
    }
    other.hears_nothing();
}

#[test]
fn operations_whose_scratch_memory_was_freed() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        let buffers = prepared.buffers(&device);
        (0..3).for_each(|_| prepared.run(&device, &buffers));
        prepared.destroy();
        match prepared.plan().scratch().first() {
            Some(&(operand, _)) => {
                for form in FORMS {
                    let error = device.refusal(|encoder| prepared.encode(form, encoder, &buffers));
                    assert_eq!(error, Error::BufferDestroyed { operand });
                }
            }
            None => prepared.run(&device, &buffers),
        }
    }
}

/// wgpu does not tell whose an encoder is. It says so when that is finished, and to the encoder's device.
#[test]
fn an_encoder_of_another_device() {
    let (device, other) = (Device::new(), Device::new());
    for prepared in Prepared::all(&device, SHAPE) {
        let buffers = prepared.buffers(&device);
        let mut encoder = other.encoder();
        prepared.encode(Form::Whole, &mut encoder, &buffers).expect("nothing tells");
        let scope = other.attention.device().push_error_scope(wgpu::ErrorFilter::Validation);
        drop(encoder.finish());
        assert!(pollster::block_on(scope.pop()).is_some());
        other.hears_nothing();
        prepared.run(&device, &buffers);
    }
}

/// The caller broke it before.
#[test]
fn an_encoder_with_an_open_pass() {
    let device = Device::new();
    for prepared in Prepared::all(&device, SHAPE) {
        let buffers = prepared.buffers(&device);
        let mut encoder = device.encoder();
        let open = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        let result = prepared.encode(Form::Whole, &mut encoder, &buffers);
        assert!(matches!(result, Err(Error::Gpu(_))), "{result:?}");
        device.hears_nothing();
        let scope = device.attention.device().push_error_scope(wgpu::ErrorFilter::Validation);
        drop(open);
        drop(encoder.finish());
        assert!(pollster::block_on(scope.pop()).is_some());
        prepared.run(&device, &buffers);
    }
}
