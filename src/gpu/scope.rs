//! wgpu reports errors to scopes; without one, it panics.

use crate::error::Error;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Catches the errors of all calls on this thread until it is closed. Dropped unclosed, it forgets them.
pub(super) struct ErrorScope {
    // Popped in this order, the reverse of the pushes.
    internal: Option<wgpu::ErrorScopeGuard>,
    memory: Option<wgpu::ErrorScopeGuard>,
    validation: wgpu::ErrorScopeGuard,
    task: &'static str,
}

impl ErrorScope {
    /// `task` completes the sentence "out of GPU memory while …".
    pub(super) fn open(device: &wgpu::Device, task: &'static str) -> Self {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = Some(device.push_error_scope(wgpu::ErrorFilter::OutOfMemory));
        let internal = Some(device.push_error_scope(wgpu::ErrorFilter::Internal));
        Self { internal, memory, validation, task }
    }

    /// For calls that make nothing and so cannot run out of memory. They are many, and this saves two thirds of a scope.
    pub(super) fn of_validation(device: &wgpu::Device) -> Self {
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        Self { internal: None, memory: None, validation, task: "" }
    }

    /// Closes it at once; the future brings the first error.
    pub(super) fn close(self) -> impl Future<Output = Result<(), Error>> {
        let [internal, memory] = [self.internal, self.memory].map(|scope| scope.map(wgpu::ErrorScopeGuard::pop));
        let validation = self.validation.pop();
        async move {
            // All are awaited, so that none is left behind.
            let errors = [answer(memory).await, validation.await, answer(internal).await];
            match errors.into_iter().flatten().next() {
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
