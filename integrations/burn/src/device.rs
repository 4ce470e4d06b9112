//! Where the wgpu handles of a Burn device are, and what was prepared on them.

use crate::error::Error;
use burn::backend::DispatchDevice;
use burn::tensor::Device;
use burn::tensor::wgpu::WgpuSetup;
use burn_cubecl::CubeDevice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu_flash_attention::{
    AppendProblem, AttentionProblem, FlashAttention, PreparedAppend, PreparedBackward, PreparedForward,
};

/// Burn's default wgpu device, with attention on it. Call it once, before anything else uses this device. Clone the device to
/// use it again; `device.autodiff()` is the same device with gradients.
///
/// # Errors
/// [`Error::Device`] if there is no GPU, or if Burn's default device is in use already.
pub fn init() -> Result<Device, Error> {
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    install(&device, &setup)?;
    Ok(device)
}

/// Attention on a device that the program made by itself: with [`Device::wgpu_options`] and `init_with_setup`, or from its own
/// wgpu handles with `setup`. Matrix units need `Features::EXPERIMENTAL_COOPERATIVE_MATRIX`, which Burn asks for where it makes
/// the wgpu device; `FlashAttention::device_descriptor` asks for it too.
///
/// # Errors
/// [`Error::NotWgpu`] for a device of another runtime.
pub fn install(device: &Device, setup: &WgpuSetup) -> Result<(), Error> {
    let device = cube_device(device)?;
    let mut all = lock(&INSTALLED);
    all.retain(|(other, _)| *other != device);
    all.push((device, Arc::new(Installed::of(setup))));
    Ok(())
}

/// Drops what was prepared on a device: scratch memory, and the buffers of Burn's memory pools that it remembers. Compiled
/// pipelines stay. What is needed later is prepared again.
///
/// # Errors
/// [`Error::NotWgpu`] and [`Error::NotInstalled`].
pub fn release_memory(device: &Device) -> Result<(), Error> {
    let installed = installed(&cube_device(device)?, "release_memory")?;
    lock(&installed.forward).clear();
    lock(&installed.backward).clear();
    lock(&installed.append).clear();
    Ok(())
}

static INSTALLED: Mutex<Vec<(CubeDevice, Arc<Installed>)>> = Mutex::new(Vec::new());

/// Operations of each kind that are kept prepared.
const PREPARED: usize = 64;

/// Attention on one device.
pub(crate) struct Installed {
    pub attention: FlashAttention,
    forward: Mutex<Vec<(AttentionProblem, PreparedForward)>>,
    backward: Mutex<Vec<(AttentionProblem, PreparedBackward)>>,
    append: Mutex<Vec<(AppendProblem, PreparedAppend)>>,
    /// Problems that can be planned.
    checked: Mutex<Vec<(AttentionProblem, ())>>,
    checked_backward: Mutex<Vec<(AttentionProblem, ())>>,
    checked_appends: Mutex<Vec<(AppendProblem, ())>>,
}

impl Installed {
    fn of(setup: &WgpuSetup) -> Self {
        Self {
            attention: FlashAttention::new(&setup.adapter, &setup.device, &setup.queue).with_shared_buffers(true),
            forward: Mutex::default(),
            backward: Mutex::default(),
            append: Mutex::default(),
            checked: Mutex::default(),
            checked_backward: Mutex::default(),
            checked_appends: Mutex::default(),
        }
    }

    pub fn forward(&self, problem: &AttentionProblem) -> Result<PreparedForward, Error> {
        kept(&self.forward, problem, || pollster::block_on(self.attention.prepare_forward(problem)))
    }

    pub fn backward(&self, problem: &AttentionProblem) -> Result<PreparedBackward, Error> {
        kept(&self.backward, problem, || pollster::block_on(self.attention.prepare_backward(problem)))
    }

    pub fn append(&self, problem: &AppendProblem) -> Result<PreparedAppend, Error> {
        kept(&self.append, problem, || pollster::block_on(self.attention.prepare_append(problem)))
    }

    /// Whether a problem can be planned.
    pub fn check(&self, problem: &AttentionProblem) -> Result<(), Error> {
        kept(&self.checked, problem, || self.attention.plan_forward(problem).build().map(|_| ()))
    }

    /// As `check`, of its gradients.
    pub fn check_backward(&self, problem: &AttentionProblem) -> Result<(), Error> {
        kept(&self.checked_backward, problem, || self.attention.plan_backward(problem).build().map(|_| ()))
    }

    /// As `check`, of an append.
    pub fn check_append(&self, append: &AppendProblem) -> Result<(), Error> {
        kept(&self.checked_appends, append, || self.attention.plan_append(append).build().map(|_| ()))
    }

    /// Runs what `record` records, behind all that was submitted before.
    pub fn submit(
        &self,
        record: impl FnOnce(&mut wgpu_flash_attention::wgpu::CommandEncoder) -> Result<(), wgpu_flash_attention::Error>,
    ) -> Result<(), Error> {
        let mut encoder = self.attention.device().create_command_encoder(&Default::default());
        record(&mut encoder)?;
        self.attention.queue().submit([encoder.finish()]);
        Ok(())
    }
}

/// The operation of a problem, the last used of which is kept last.
fn kept<P: Clone + PartialEq, O: Clone>(
    all: &Mutex<Vec<(P, O)>>,
    problem: &P,
    prepare: impl FnOnce() -> Result<O, wgpu_flash_attention::Error>,
) -> Result<O, Error> {
    let found = |all: &mut Vec<(P, O)>| {
        let position = all.iter().rposition(|(other, _)| other == problem)?;
        let found = all.remove(position);
        let operation = found.1.clone();
        all.push(found);
        Some(operation)
    };
    if let Some(operation) = found(&mut lock(all)) {
        return Ok(operation);
    }
    // Other threads go on meanwhile.
    let operation = prepare()?;
    let mut all = lock(all);
    if found(&mut all).is_none() {
        if all.len() == PREPARED {
            all.remove(0);
        }
        all.push((problem.clone(), operation.clone()));
    }
    Ok(operation)
}

/// What is installed on the device of a tensor.
pub(crate) fn installed(device: &CubeDevice, tensor: &'static str) -> Result<Arc<Installed>, Error> {
    let all = lock(&INSTALLED);
    let found = all.iter().find(|(other, _)| other == device);
    found.map(|(_, installed)| installed.clone()).ok_or(Error::NotInstalled(tensor))
}

/// The device below Burn's dispatch.
pub(crate) fn cube_device(device: &Device) -> Result<CubeDevice, Error> {
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Cube(device @ CubeDevice::Wgpu(_)) => Ok(device.clone()),
        other => Err(Error::NotWgpu(format!("{other:?}"))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
