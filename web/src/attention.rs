use crate::error::Failure;
use crate::problem::Problem;
use crate::tensor::Tensor;
use wasm_bindgen::prelude::*;
use wgpu_flash_attention::plan::Call;
use wgpu_flash_attention::{Error, FlashAttention, ForwardBuffers, Operand, Plan, PreparedForward};

/// The crate's `FlashAttention` on a device of the browser.
#[wasm_bindgen]
pub struct Attention(pub(crate) FlashAttention);

#[wasm_bindgen]
impl Attention {
    /// Asks the browser for a device. `label` is the device's, by which the caller knows the request.
    pub async fn create(power_preference: String, label: String) -> Result<Attention, Failure> {
        let power_preference = match power_preference.as_str() {
            "high-performance" => wgpu::PowerPreference::HighPerformance,
            "low-power" => wgpu::PowerPreference::LowPower,
            _ => wgpu::PowerPreference::None,
        };
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions { power_preference, ..Default::default() })
            .await
            .map_err(|_| Failure::new("NoWebGPU", "the browser offers no WebGPU adapter"))?;
        let descriptor = wgpu::DeviceDescriptor { label: Some(&label), ..FlashAttention::device_descriptor(&adapter) };
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
        Ok(Planned(Plan::new(&problem.0, self.0.capabilities())?))
    }

    pub async fn prepare(&self, problem: &Problem) -> Result<Prepared, Failure> {
        Ok(Prepared(self.0.prepare_forward(&problem.0).await?))
    }
}

/// The crate's `PreparedForward`.
#[wasm_bindgen]
pub struct Prepared(PreparedForward);

#[wasm_bindgen]
impl Prepared {
    #[wasm_bindgen(getter)]
    pub fn num_dispatches(&self) -> Result<usize, Failure> {
        Ok(self.0.num_dispatches(&Call::default())?)
    }

    #[wasm_bindgen(getter)]
    pub fn scratch_bytes(&self) -> f64 {
        self.0.plan().scratch_bytes() as f64
    }

    /// Elements that a tensor's buffer must hold.
    pub fn required_len(&self, tensor: &str) -> f64 {
        required_len(self.0.plan(), tensor)
    }

    /// Submits dispatches `start..end`.
    #[expect(clippy::too_many_arguments, reason = "a struct of borrowed tensors cannot cross to JavaScript")]
    pub fn submit(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        lse: &Tensor,
        start: usize,
        end: usize,
        philox_seed: u64,
        philox_offset: u32,
        attention: &Attention,
    ) -> Result<(), Failure> {
        let [q, k, v, o, lse] = [q, k, v, o, lse].map(|tensor| tensor.0.slice(..));
        let buffers = ForwardBuffers { q, k, v, o, lse };
        let call = Call { philox_seed: Some(philox_seed), philox_offset: Some(philox_offset), ..Call::default() };
        let mut encoder = attention.0.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.0.encode_dispatches(&mut encoder, &buffers, &call, start..end)?;
        attention.0.queue().submit([encoder.finish()]);
        Ok(())
    }

    /// Frees the scratch memory now; the garbage collector would, but later.
    pub fn destroy(&self) {
        self.0.destroy();
    }
}

/// The crate's `Plan`.
#[wasm_bindgen]
pub struct Planned(Plan);

#[wasm_bindgen]
impl Planned {
    /// The kernels, in the order in which they run, with spaces between.
    #[wasm_bindgen(getter)]
    pub fn kernels(&self) -> String {
        let names: Vec<&str> = self.0.passes().iter().map(|pass| pass.kernel.name()).collect();
        names.join(" ")
    }

    #[wasm_bindgen(getter)]
    pub fn tiles(&self) -> String {
        self.0.tiles().to_string()
    }

    #[wasm_bindgen(getter)]
    pub fn tile_q(&self) -> u32 {
        self.0.tiles().tile_q
    }

    #[wasm_bindgen(getter)]
    pub fn tile_kv(&self) -> u32 {
        self.0.tiles().tile_kv
    }

    #[wasm_bindgen(getter)]
    pub fn extra_bytes(&self) -> f64 {
        self.0.extra_bytes() as f64
    }

    /// Elements that a tensor's buffer must hold.
    pub fn required_len(&self, tensor: &str) -> f64 {
        required_len(&self.0, tensor)
    }
}

fn required_len(plan: &Plan, tensor: &str) -> f64 {
    let operand = Operand::ALL.into_iter().find(|operand| operand.name() == tensor);
    operand.map_or(0.0, |operand| plan.required_len(operand) as f64)
}
