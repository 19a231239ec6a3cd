//! Fixed CPUID models. Never the host's CPUID: a trace replays on any host.

/// A CPU model the guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuModel {
    I486,
    Pentium,
    Pentium3,
    /// x86-64-v2 with the extensions listed in docs/conformance.md.
    #[default]
    X86_64V2,
}

impl CpuModel {
    /// Family/model/stepping as in CPUID.1:EAX and in EDX after reset.
    pub const fn signature(self) -> u32 {
        match self {
            CpuModel::I486 => 0x0000_0480,
            CpuModel::Pentium => 0x0000_0543,
            CpuModel::Pentium3 => 0x0000_0673,
            CpuModel::X86_64V2 => 0x000a_0652,
        }
    }
}
