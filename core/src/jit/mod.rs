//! Executable host memory and the code in it. All `unsafe` of generated code lives here.
//!
//! `buffer` owns the memory, `thunk` and `x87` make the short sequences that run one guest SIMD or x87 instruction on
//! the host, `entry` calls them, `probe` and `x87_probe` ask the host what it makes of what the manual leaves undefined.
//! `x87_image` carries the x87 state into translated code and back. docs/unsafe.md lists every use of `unsafe` with its
//! reason.

pub mod buffer;
pub mod entry;
pub mod frame;
pub mod probe;
pub mod run;
pub mod stubs;
pub mod thunk;
pub mod x87;
pub mod x87_image;
pub mod x87_probe;

use crate::vcpu::cpuid::CpuModel;

/// Can this host run guests of CPU model `model`? The error is one line for the user.
///
/// Guest SIMD instructions run natively, so the host needs the extensions the model shows, and the kernel must let
/// us map generated code as executable.
pub fn host_support(model: CpuModel) -> Result<(), String> {
    let mut missing = Vec::new();
    if model == CpuModel::X86_64V2 {
        for (name, present) in [
            ("SSE3", is_x86_feature_detected!("sse3")),
            ("SSSE3", is_x86_feature_detected!("ssse3")),
            ("SSE4.1", is_x86_feature_detected!("sse4.1")),
            ("SSE4.2", is_x86_feature_detected!("sse4.2")),
            ("POPCNT", is_x86_feature_detected!("popcnt")),
            ("AES", is_x86_feature_detected!("aes")),
            ("PCLMULQDQ", is_x86_feature_detected!("pclmulqdq")),
        ] {
            if !present {
                missing.push(name);
            }
        }
    }
    if !missing.is_empty() {
        return Err(format!("this host's CPU lacks {}, which the guest CPU model needs", missing.join(", ")));
    }
    entry::available().map_err(|e| format!("cannot map executable memory for generated code: {e}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_is_supported() {
        assert_eq!(super::host_support(crate::vcpu::cpuid::CpuModel::Pentium), Ok(()));
    }
}
