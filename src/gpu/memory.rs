//! Whether a buffer still has its memory. wgpu does not answer this question, but it shows the backend's own buffer, and
//! none if that was destroyed. With an older bind group, wgpu reports it only when the encoder is finished or submitted.
//! Then all of its commands are lost.

/// Whether this backend shows it.
pub(super) fn can_be_seen(backend: wgpu::Backend) -> bool {
    match backend {
        #[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
        wgpu::Backend::Vulkan => true,
        #[cfg(target_vendor = "apple")]
        wgpu::Backend::Metal => true,
        #[cfg(windows)]
        wgpu::Backend::Dx12 => true,
        // A browser checks nothing before the commands are submitted, whether a bind group is old or new.
        wgpu::Backend::BrowserWebGpu => true,
        _ => false,
    }
}

/// False for a buffer that was destroyed or never made. True on backends that do not show it.
#[cfg_attr(
    any(windows, target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple"),
    expect(unsafe_code, reason = "wgpu shows the backend's own buffer by unsafe functions alone")
)]
pub(super) fn is_there(backend: wgpu::Backend, buffer: &wgpu::Buffer) -> bool {
    match backend {
        #[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
        wgpu::Backend::Vulkan => {
            // SAFETY: the backend's buffer is looked at for whether it is there, and not used.
            unsafe { buffer.as_hal::<wgpu::hal::api::Vulkan>() }.is_some()
        }
        #[cfg(target_vendor = "apple")]
        wgpu::Backend::Metal => {
            // SAFETY: the backend's buffer is looked at for whether it is there, and not used.
            unsafe { buffer.as_hal::<wgpu::hal::api::Metal>() }.is_some()
        }
        #[cfg(windows)]
        wgpu::Backend::Dx12 => {
            // SAFETY: the backend's buffer is looked at for whether it is there, and not used.
            unsafe { buffer.as_hal::<wgpu::hal::api::Dx12>() }.is_some()
        }
        _ => {
            let _ = buffer;
            true
        }
    }
}
