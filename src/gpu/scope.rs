//! wgpu reports errors to scopes; without one, it panics.

use crate::error::Error;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

thread_local! {
    /// See [`run_out_of_memory_after`].
    static REMAINING: Cell<Option<u32>> = const { Cell::new(None) };
}

/// For tests: of the steps of this thread that allocate, so many more succeed. The next one reports that memory ran out, and
/// those after it succeed again. True if an earlier call's step has not come yet.
pub fn run_out_of_memory_after(steps: Option<u32>) -> bool {
    REMAINING.replace(steps).is_some()
}

/// Whether the step that begins now is the one to fail.
fn runs_out_of_memory() -> bool {
    let remaining = REMAINING.get();
    REMAINING.set(remaining.and_then(|steps| steps.checked_sub(1)));
    remaining == Some(0)
}

/// Catches the errors of all calls on this thread until it is closed. Dropped unclosed, it forgets them.
pub(super) struct ErrorScope {
    // Popped in this order, the reverse of the pushes.
    internal: Option<wgpu::ErrorScopeGuard>,
    memory: Option<wgpu::ErrorScopeGuard>,
    validation: wgpu::ErrorScopeGuard,
    task: &'static str,
    is_out_of_memory: bool,
}

impl ErrorScope {
    /// `task` completes the sentence "out of GPU memory while …".
    pub(super) fn open(device: &wgpu::Device, task: &'static str) -> Self {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = Some(device.push_error_scope(wgpu::ErrorFilter::OutOfMemory));
        let internal = Some(device.push_error_scope(wgpu::ErrorFilter::Internal));
        Self { internal, memory, validation, task, is_out_of_memory: runs_out_of_memory() }
    }

    /// For calls that make nothing and so cannot run out of memory. They are many, and this saves two thirds of a scope.
    pub(super) fn of_validation(device: &wgpu::Device) -> Self {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        Self { internal: None, memory: None, validation, task: "", is_out_of_memory: false }
    }

    /// Closes it at once; the future brings the first error.
    pub(super) fn close(self) -> impl Future<Output = Result<(), Error>> {
        let [internal, memory] = [self.internal, self.memory].map(|scope| scope.map(wgpu::ErrorScopeGuard::pop));
        let validation = self.validation.pop();
        async move {
            // All are awaited, so that none is left behind.
            let errors = [answer(memory).await, validation.await, answer(internal).await];
            match errors.into_iter().flatten().next() {
                None if self.is_out_of_memory => Err(Error::OutOfMemory(self.task)),
                None => Ok(()),
                Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory(self.task)),
                Some(wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. }) => {
                    Err(Error::Gpu(description))
                }
            }
        }
    }

    /// Closes it and returns what is known now. Native backends always know. A browser answers later; its late answers go to
    /// the page's own error handler and do not panic.
    pub(super) fn close_now(self) -> Result<(), Error> {
        match pin!(self.close()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }
}

async fn answer(popped: Option<impl Future<Output = Option<wgpu::Error>>>) -> Option<wgpu::Error> {
    match popped {
        Some(popped) => popped.await,
        None => None,
    }
}
