//! INIT and start-up IPIs. Source: SDM vol. 3A, 9.1 and table 9-1; multiple-processor start-up, 9.4.

use super::fpu::Fpu;
use super::segment::Segment;
use super::{Seg, Vcpu, cr0};

impl Vcpu {
    /// INIT: like power-on, but FPU and SSE registers, most MSRs, and CR0.CD and CR0.NW keep their values.
    pub fn init(&mut self) {
        let kept = Self::new(self.index, self.model);
        let cache_bits = self.cr0 & (cr0::CD | cr0::NW);
        let fpu: Fpu = self.fpu;
        let mut msr = self.msr.clone();
        msr.efer = 0;
        *self = Self { fpu, msr, ..kept };
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
