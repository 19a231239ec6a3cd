//! INIT and start-up IPIs. Source: SDM vol. 3A, 9.1 and table 9-1; multiple-processor start-up, 9.4.

use super::fpu::Fpu;
use super::segment::Segment;
use super::{Seg, Vcpu, cr0};

impl Vcpu {
    /// INIT: like power-on, but FPU and SSE registers, XCR0, most MSRs, and CR0.CD and CR0.NW keep their values.
    pub fn init(&mut self) {
        let kept = Self::new(self.index, self.model);
        let cache_bits = self.cr0 & (cr0::CD | cr0::NW);
        let fpu: Fpu = self.fpu;
        let mut msr = self.msr.clone();
        msr.efer = 0;
        let (xcr0, count) = (self.xcr0, self.count);
        *self = Self { fpu, msr, xcr0, count, ..kept };
        self.cr0 = cr0::ET | cache_bits;
        self.refresh();
    }

    /// Start-up IPI: begin at `vector << 12` in real mode.
    pub fn start_at(&mut self, vector: u8) {
        self.seg[Seg::Cs as usize] = Segment::real(u16::from(vector) << 8);
        self.rip = 0;
        self.activity = super::Activity::Running;
        self.refresh();
    }
}

#[cfg(test)]
mod tests {
    use crate::vcpu::cpuid::CpuModel;
    use crate::vcpu::{Vcpu, cr0, gpr};

    #[test]
    fn test_init_keeps_fpu_msrs_and_caching_bits() {
        let mut cpu = Vcpu::new(1, CpuModel::default());
        cpu.count = 4;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::CD;
        cpu.msr.lstar = 5;
        cpu.msr.efer = 0x500;
        cpu.fpu.xmm[3] = 7;
        cpu.xcr0 = 3;
        cpu.gpr[gpr::RBX] = 9;
        cpu.init();
        assert_eq!((cpu.cr0, cpu.msr.lstar, cpu.msr.efer), (cr0::CD | cr0::ET, 5, 0));
        assert_eq!((cpu.fpu.xmm[3], cpu.xcr0, cpu.gpr[gpr::RBX], cpu.count), (7, 3, 0, 4));
        assert_eq!((cpu.rip, cpu.mode.bits), (0xfff0, 16));
    }
}
