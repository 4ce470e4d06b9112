use crate::error::Failure;
use crate::problem::{Append, Problem};
use crate::tensor::Tensors;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::{
    CacheElement, Call, Error, FlashAttention, Operand, Plan, PreparedAppend, PreparedBackward, PreparedForward,
    PreparedProbabilities, ProbabilitiesProblem, wgpu,
};

/// The crate's `FlashAttention` on a device of the browser.
#[wasm_bindgen]
pub struct Attention(pub(crate) FlashAttention);

#[wasm_bindgen]
impl Attention {
    /// On the device that the TypeScript side has ready: `web/ts/view.ts` answers what wgpu asks the browser for.
    pub async fn create() -> Result<Attention, Failure> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions::default())
            .await
            .map_err(|_| Failure::new("NoWebGPU", "the browser offers no WebGPU adapter"))?;
        let descriptor = FlashAttention::device_descriptor(&adapter);
        let (device, queue) =
            adapter.request_device(&descriptor).await.map_err(|error| Failure::from(Error::Gpu(error.to_string())))?;
        Ok(Self(FlashAttention::new(&adapter, &device, &queue)))
    }

    /// The device was given subgroups, of which wgpu knows nothing.
    pub fn use_subgroups(&mut self) {
        self.0 = self.0.clone().with_browser_subgroups();
    }

    /// How a problem would run. Nothing is compiled or allocated.
    pub fn plan(&self, problem: &Problem) -> Result<Planned, Failure> {
        let is_int8 = problem.0.cache().is_some_and(|cache| cache.element == CacheElement::Int8);
        let bytes: &[Operand] = if is_int8 { &[Operand::K, Operand::V] } else { &[] };
        Ok(Planned { plan: self.0.plan_forward(&problem.0).build()?, bytes })
    }

    pub fn plan_backward(&self, problem: &Problem) -> Result<Planned, Failure> {
        Ok(Planned { plan: self.0.plan_backward(&problem.0).build()?, bytes: &[] })
    }

    pub fn plan_probabilities(
        &self,
        problem: &Problem,
        first_head: u32,
        end_head: u32,
        first_row: u32,
        end_row: u32,
    ) -> Result<Planned, Failure> {
        let chosen = ProbabilitiesProblem::new(problem.0.clone(), first_head..end_head, first_row..end_row);
        Ok(Planned { plan: self.0.plan_probabilities(&chosen).build()?, bytes: &[] })
    }

    pub fn plan_append(&self, append: &Append) -> Result<Planned, Failure> {
        let is_int8 = append.0.cache.element == CacheElement::Int8;
        let bytes: &[Operand] = if is_int8 { &[Operand::KCache, Operand::VCache] } else { &[] };
        Ok(Planned { plan: self.0.plan_append(&append.0).build()?, bytes })
    }

    pub async fn prepare(&self, problem: &Problem) -> Result<Prepared, Failure> {
        Ok(Prepared(Operation::Forward(self.0.prepare_forward(&problem.0).await?)))
    }

    pub async fn prepare_backward(&self, problem: &Problem) -> Result<Prepared, Failure> {
        Ok(Prepared(Operation::Backward(self.0.prepare_backward(&problem.0).await?)))
    }

    pub async fn prepare_append(&self, append: &Append) -> Result<Prepared, Failure> {
        Ok(Prepared(Operation::Append(self.0.prepare_append(&append.0).await?)))
    }

    /// The probabilities of the heads and rows from a first one, up to and without an end.
    pub async fn prepare_probabilities(
        &self,
        problem: &Problem,
        first_head: u32,
        end_head: u32,
        first_row: u32,
        end_row: u32,
    ) -> Result<Prepared, Failure> {
        let chosen = ProbabilitiesProblem::new(problem.0.clone(), first_head..end_head, first_row..end_row);
        Ok(Prepared(Operation::Probabilities(self.0.prepare_probabilities(&chosen).await?)))
    }
}

enum Operation {
    Forward(PreparedForward),
    Backward(PreparedBackward),
    Probabilities(PreparedProbabilities),
    Append(PreparedAppend),
}

/// The crate's `Prepared`.
#[wasm_bindgen]
pub struct Prepared(Operation);

#[wasm_bindgen]
impl Prepared {
    #[wasm_bindgen(getter)]
    pub fn num_dispatches(&self) -> Result<usize, Failure> {
        let call = Call::default();
        Ok(match &self.0 {
            Operation::Forward(forward) => forward.num_dispatches(&call)?,
            Operation::Backward(backward) => backward.num_dispatches(&call)?,
            Operation::Probabilities(probabilities) => probabilities.num_dispatches(&call)?,
            Operation::Append(append) => append.num_dispatches(&call)?,
        })
    }

    #[wasm_bindgen(getter)]
    pub fn scratch_bytes(&self) -> f64 {
        self.plan().scratch_bytes() as f64
    }

    /// Records dispatches `start..end` into the encoder that the TypeScript side has ready, which finishes and submits it.
    pub fn encode(
        &self,
        attention: &Attention,
        tensors: &Tensors,
        start: usize,
        end: usize,
        philox_seed: u64,
        philox_offset: u32,
    ) -> Result<(), Failure> {
        let call = Call::new().with_philox_seed(philox_seed).with_philox_offset(philox_offset);
        let mut encoder = attention.0.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        match &self.0 {
            Operation::Forward(forward) => {
                forward.encode_dispatches(&mut encoder, &tensors.forward()?, &call, start..end)?;
            }
            Operation::Backward(backward) => {
                backward.encode_dispatches(&mut encoder, &tensors.backward()?, &call, start..end)?;
            }
            Operation::Probabilities(probabilities) => {
                probabilities.encode_dispatches(&mut encoder, &tensors.probabilities()?, &call, start..end)?;
            }
            Operation::Append(append) => {
                append.encode_dispatches(&mut encoder, &tensors.append()?, &call, start..end)?;
            }
        }
        Ok(())
    }

    /// Lets go of the tensors that bind groups hold.
    pub fn release_buffers(&self) {
        match &self.0 {
            Operation::Forward(forward) => forward.release_buffers(),
            Operation::Backward(backward) => backward.release_buffers(),
            Operation::Probabilities(probabilities) => probabilities.release_buffers(),
            Operation::Append(append) => append.release_buffers(),
        }
    }

    /// Lets go of the tensors, and frees the scratch memory now; the garbage collector would, but later.
    pub fn destroy(&self) {
        match &self.0 {
            Operation::Forward(forward) => forward.destroy(),
            Operation::Backward(backward) => backward.destroy(),
            Operation::Probabilities(probabilities) => probabilities.destroy(),
            Operation::Append(append) => append.destroy(),
        }
    }
}

impl Prepared {
    fn plan(&self) -> &Plan {
        match &self.0 {
            Operation::Forward(forward) => forward.plan(),
            Operation::Backward(backward) => backward.plan(),
            Operation::Probabilities(probabilities) => probabilities.plan(),
            Operation::Append(append) => append.plan(),
        }
    }
}

/// The crate's `Plan`.
#[wasm_bindgen]
pub struct Planned {
    plan: Plan,
    /// The tensors that are a cache of bytes.
    bytes: &'static [Operand],
}

#[wasm_bindgen]
impl Planned {
    /// The kernels, in the order in which they run, with spaces between.
    #[wasm_bindgen(getter)]
    pub fn kernels(&self) -> String {
        let names: Vec<&str> = self.plan.passes().iter().map(|pass| pass.kernel.name()).collect();
        names.join(" ")
    }

    #[wasm_bindgen(getter)]
    pub fn tiles(&self) -> String {
        self.plan.tiles().to_string()
    }

    #[wasm_bindgen(getter)]
    pub fn tile_q(&self) -> u32 {
        self.plan.tiles().tile_q
    }

    #[wasm_bindgen(getter)]
    pub fn tile_kv(&self) -> u32 {
        self.plan.tiles().tile_kv
    }

    #[wasm_bindgen(getter)]
    pub fn extra_bytes(&self) -> f64 {
        self.plan.extra_bytes() as f64
    }

    /// Elements that a tensor's buffer must hold.
    pub fn required_len(&self, tensor: &str) -> f64 {
        operand(tensor).map_or(0.0, |operand| self.plan.required_len(operand) as f64)
    }

    /// The type of a tensor's entries. Those of a mask and of an int8 cache are words, and so are lengths, pages and slots.
    pub fn element(&self, tensor: &str) -> Option<String> {
        use Operand::{CacheSeqlens, CuSeqlensKv, CuSeqlensNew, CuSeqlensQ, KeyMask, NewCacheSeqlens, PageTable};
        use Operand::{SeqlensKv, SeqlensQ, SlotMapping};
        let operand = operand(tensor)?;
        let element = self.plan.element(operand)?.name();
        let is_word = match operand {
            KeyMask | SeqlensQ | SeqlensKv | CuSeqlensQ | CuSeqlensKv | CuSeqlensNew => true,
            CacheSeqlens | NewCacheSeqlens | PageTable | SlotMapping => true,
            _ => self.bytes.contains(&operand),
        };
        Some(if is_word { "u32" } else { element }.into())
    }

    /// Whether the problem's layout places a tensor; the others are contiguous.
    pub fn has_layout(&self, tensor: &str) -> bool {
        operand(tensor).is_some_and(Operand::holds_elements)
    }
}

/// The operand that the TypeScript side calls by this name.
pub(crate) fn operand(name: &str) -> Option<Operand> {
    Operand::ALL.iter().copied().find(|operand| operand.name() == name)
}
