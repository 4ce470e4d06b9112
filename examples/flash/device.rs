use crate::failure::{Failure, Result};
use crate::tune::TuningFile;

use crate::gpu::select;
pub use crate::gpu::{Gpu, adapters, position};

/// What the command line says of the device.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// A number in `flash info`, or a part of a name.
    pub adapter: Option<&'a str>,
    /// Whether problems may run on cooperative matrices.
    pub matrices: bool,
    /// What was measured on this adapter.
    pub tuning: Option<&'a TuningFile>,
}

/// A device on the adapter with this number or name, or on the fastest kind there is.
pub async fn open(choice: Choice<'_>) -> Result<Gpu> {
    let adapters = adapters().await;
    let adapter = select(&adapters, choice.adapter)?;
    if let Some(tuning) = choice.tuning
        && tuning.adapter != adapter.get_info().name
    {
        let (measured, chosen) = (&tuning.adapter, adapter.get_info().name);
        return Err(Failure::new(format_args!(
            "the tuning file is of {measured}, not of {chosen}; run flash tune there"
        )));
    }
    open_on(adapter, choice).await
}

/// A device on this adapter, tuned if the tuning is of it.
pub async fn open_on(adapter: &wgpu::Adapter, choice: Choice<'_>) -> Result<Gpu> {
    let mut gpu = Gpu::on(adapter).await?;
    gpu.attention = gpu.attention.with_matrices(choice.matrices);
    if let Some(tuning) = choice.tuning.filter(|tuning| tuning.adapter == adapter.get_info().name) {
        gpu.attention = gpu.attention.with_tuning(tuning.tuning().map_err(Failure::new)?);
    }
    Ok(gpu)
}
