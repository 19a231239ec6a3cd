//! The machine description: everything besides images and inputs that guest-visible state depends on.

use crate::clock::ClockKind;
use crate::vcpu::cpuid::CpuModel;

/// A machine description. Recorded in every trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    pub vcpus: u8,
    pub cpu: CpuModel,
    pub clock: ClockKind,
    /// Virtual clock: nanoseconds an instruction takes.
    pub ns_per_insn: u64,
    /// Wall-clock time at power-on, seconds since 1970-01-01 UTC (fixed under the virtual clock).
    pub wall_time: u64,
    /// Seed of everything pseudo-random.
    pub seed: u64,
    /// A guest reset or triple fault ends the run.
    pub no_reboot: bool,
    /// isa-debug-exit: I/O base and size.
    pub debug_exit: Option<(u16, u16)>,
    /// pc-testdev of kvm-unit-tests (ports 0xE0-0xEB, 0x2000-0x2017, MMIO 0xFF000000).
    pub testdev: bool,
    /// Instructions between two state hashes.
    pub hash_interval: u64,
    /// SMP: instructions in one vCPU's time slice, on average.
    pub slice: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            vcpus: 1,
            cpu: CpuModel::default(),
            clock: ClockKind::Virtual,
            ns_per_insn: 1,
            // 2024-01-01 00:00:00 UTC
            wall_time: 1_704_067_200,
            seed: 0,
            no_reboot: false,
            debug_exit: None,
            testdev: false,
            hash_interval: 1 << 24,
            slice: 10_000,
        }
    }
}
