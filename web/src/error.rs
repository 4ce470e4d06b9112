use wasm_bindgen::prelude::*;
use wgpu_flash_attention::Error;

/// An error on its way to TypeScript, which makes the right subclass of `Error` of it.
#[wasm_bindgen]
pub struct Failure {
    kind: &'static str,
    message: String,
}

#[wasm_bindgen]
impl Failure {
    /// Which subclass.
    #[wasm_bindgen(getter)]
    pub fn kind(&self) -> String {
        self.kind.into()
    }

    /// The crate's message.
    #[wasm_bindgen(getter)]
    pub fn message(&self) -> String {
        self.message.clone()
    }
}

impl Failure {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Error> for Failure {
    /// Whoever reads an error reads the name of its class first. So the message leaves out what that says.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::InvalidProblem(_) | Error::Wgsl(_) => "InvalidProblem",
            Error::Unsupported { .. } | Error::TooLarge { .. } | Error::TooManyDispatches { .. } => "Unsupported",
            Error::BufferTooSmall { .. }
            | Error::BufferDestroyed { .. }
            | Error::BufferUnexpected { .. }
            | Error::BufferUsage { .. }
            | Error::BufferAlignment { .. }
            | Error::BufferAliased { .. } => "Buffer",
            Error::OutOfMemory(_) => "OutOfMemory",
            Error::DeviceLost(_) => "DeviceLost",
            Error::NoAdapter(_) => "NoWebGPU",
            Error::Shader { .. } => "Shader",
            _ => "Gpu",
        };
        let message = match error {
            Error::InvalidProblem(problem) => problem.to_string(),
            Error::Unsupported { feature, reason } => format!("{feature}: {reason}"),
            Error::OutOfMemory(task) => {
                format!("the GPU was full while {task}; destroy tensors, or make the problem smaller")
            }
            other => other.to_string(),
        };
        Self::new(kind, message)
    }
}
