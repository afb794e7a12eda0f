//! The device that a program runs on.

use candle_core::Device;

/// The first CUDA device where this build knows CUDA and there is one, else the CPU.
///
/// ```
/// # #[cfg(not(feature = "cuda"))]
/// assert!(doorward_engine::device().is_cpu());
/// ```
pub fn device() -> Device {
    if !candle_core::utils::cuda_is_available() {
        return Device::Cpu;
    }
    Device::new_cuda(0).unwrap_or_else(|error| {
        tracing::warn!(%error, "no CUDA device, using the CPU");
        Device::Cpu
    })
}
