//! Spans and events of the crate `tracing`, at the level `DEBUG`. Without the feature `tracing`, all of this is nothing.

/// A span from here to the end of the block: `span!("encode", field = value, …)`.
macro_rules! span {
    ($($span:tt)+) => {
        #[cfg(feature = "tracing")]
        let _span = tracing::debug_span!(target: "wgpu_flash_attention", $($span)+).entered();
    };
}

/// A future whose polls are in a span: `spanned!(future, "compile", field = value, …).await`.
macro_rules! spanned {
    ($future:expr, $($span:tt)+) => {{
        #[cfg(feature = "tracing")]
        let span = tracing::debug_span!(target: "wgpu_flash_attention", $($span)+);
        let future = $future;
        #[cfg(feature = "tracing")]
        let future = tracing::Instrument::instrument(future, span);
        future
    }};
}

/// An event in the current span: `event!(field = value, …, "message")`.
macro_rules! event {
    ($($event:tt)+) => {
        #[cfg(feature = "tracing")]
        tracing::debug!(target: "wgpu_flash_attention", $($event)+);
    };
}

/// Makes what another thread does part of the span that is open here.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn continued<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    #[cfg(feature = "tracing")]
    let span = tracing::Span::current();
    move || {
        #[cfg(feature = "tracing")]
        let _entered = span.enter();
        work()
    }
}
