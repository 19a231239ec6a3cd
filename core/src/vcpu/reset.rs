//! INIT and start-up IPIs. Power-on reset is [`Vcpu::new`]. Source: SDM vol. 3A, table 9-1 and 8.4.3.

use super::segment::{Segment, TableReg};
use super::{Activity, Seg, Shadow, Vcpu, cr0, gpr};
use crate::ctx::Ctx;
use crate::vcpu::flags::Flags;

impl Vcpu {
    /// What INIT sets. It leaves the FPU, SSE and XCR0 state, CR0.CD and NW, and the MSRs other than EFER alone. The
    /// bootstrap processor goes on at the reset vector, the others wait for a start-up IPI.
    fn init(&mut self) {
        let power_on = Self::new(self.index, self.model);
        self.gpr = [0; 21];
        self.gpr[gpr::RDX] = self.model.signature().into();
        self.rip = power_on.rip;
        self.insn_rip = power_on.rip;
        self.flags = Flags::new();
        self.seg = power_on.seg;
        self.ldtr = power_on.ldtr;
        self.tr = power_on.tr;
        self.gdtr = TableReg { base: 0, limit: 0xffff };
        self.idtr = TableReg { base: 0, limit: 0xffff };
        self.cr0 = (self.cr0 & (cr0::CD | cr0::NW)) | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.pdpte) = (0, 0, 0, [0; 4]);
        (self.dr, self.dr6, self.dr7) = (power_on.dr, power_on.dr6, power_on.dr7);
        self.msr.efer = 0;
        (self.shadow, self.nmi_blocked, self.nmi_pending, self.pending_db) = (Shadow::None, false, false, 0);
        let bootstrap = self.msr.apic_base & 1 << 8 != 0;
        self.activity = if bootstrap { Activity::Running } else { Activity::WaitForSipi };
        self.refresh();
    }
}

impl Ctx<'_> {
    /// INIT arrives at this vCPU.
    pub fn deliver_init(&mut self) {
        self.cpu.init();
        self.refresh_debug_regs();
        self.mmu_switch();
        self.sys.end_block();
    }

    /// A start-up IPI arrives: a vCPU that waits for one begins at `vector` × 4 KiB in real mode; others ignore it.
    pub fn deliver_sipi(&mut self, vector: u8) {
        if self.cpu.activity != Activity::WaitForSipi {
            return;
        }
        self.cpu.seg[Seg::Cs as usize] = Segment::real(u16::from(vector) << 8);
        self.cpu.rip = 0;
        self.cpu.activity = Activity::Running;
        self.cpu.refresh();
        self.mmu_switch();
        self.sys.end_block();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::CpuModel;

    #[test]
    fn test_init_keeps_fpu_msrs_and_caching_bits() {
        let mut cpu = Vcpu::new(1, CpuModel::default());
        cpu.activity = Activity::Running;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::CD;
        cpu.msr.lstar = 5;
        cpu.msr.efer = 0x500;
        cpu.fpu.xmm[3] = 7;
        cpu.xcr0 = 3;
        cpu.gpr[gpr::RBX] = 9;
        cpu.init();
        assert_eq!((cpu.cr0, cpu.msr.lstar, cpu.msr.efer), (cr0::CD | cr0::ET, 5, 0));
        assert_eq!((cpu.fpu.xmm[3], cpu.xcr0, cpu.gpr[gpr::RBX]), (7, 3, 0));
        assert_eq!((cpu.activity, cpu.rip, cpu.mode.bits), (Activity::WaitForSipi, 0xfff0, 16));
    }

    #[test]
    fn test_init_of_bootstrap_processor_restarts_it() {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        cpu.activity = Activity::Halted;
        cpu.init();
        assert_eq!(cpu.activity, Activity::Running);
    }
}
