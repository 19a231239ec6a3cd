//! Register numbers of [`crate::input::InputEvent::WriteReg`]: how debuggers name registers, stable in traces; and
//! reading and writing a vCPU by them.
//!
//! A debugger's write is raw: no privilege, reserved-bit or descriptor check is made, and no side effect of the
//! instruction that would write the register happens. Writing CR0, CR4, EFER or RFLAGS refreshes the derived mode;
//! the owner calls `Ctx::mmu_switch` and `Ctx::refresh_debug_regs` afterwards. Writing a selector sets the visible part, and
//! in real and v86 mode the base too; in protected mode the hidden part stays.

use super::{Seg, Vcpu, flags};

/// Register numbers: 0-15 general, then these.
pub mod num {
    pub const RIP: u16 = 16;
    pub const RFLAGS: u16 = 17;
    /// ES, CS, SS, DS, FS, GS selectors: SEG + n.
    pub const SEG: u16 = 18;
    pub const FS_BASE: u16 = 24;
    pub const GS_BASE: u16 = 25;
    pub const CR0: u16 = 26;
    pub const CR2: u16 = 27;
    pub const CR3: u16 = 28;
    pub const CR4: u16 = 29;
    pub const EFER: u16 = 30;
    /// ST(0)..ST(7): 80 bits.
    pub const ST: u16 = 32;
    /// FCW, FSW, FTW (abridged, as FXSAVE stores it), FCS, FIP, FDS, FDP, FOP.
    pub const FCTRL: u16 = 40;
    pub const XMM: u16 = 48;
    pub const MXCSR: u16 = 64;
    /// DR0..DR3, DR6, DR7 as DR + n.
    pub const DR: u16 = 72;
    pub const KERNEL_GS_BASE: u16 = 80;
}

/// Reads register `reg`, zero-extended. Unknown numbers read zero.
pub fn read_reg(cpu: &Vcpu, reg: u16) -> u128 {
    let n = |first: u16| usize::from(reg - first);
    u128::from(match reg {
        0..=15 => cpu.gpr[n(0)],
        num::RIP => cpu.rip,
        num::RFLAGS => cpu.flags.0,
        18..=23 => cpu.seg[n(num::SEG)].selector.into(),
        num::FS_BASE => cpu.seg[Seg::Fs as usize].base,
        num::GS_BASE => cpu.seg[Seg::Gs as usize].base,
        num::CR0 => cpu.cr0,
        num::CR2 => cpu.cr2,
        num::CR3 => cpu.cr3,
        num::CR4 => cpu.cr4,
        num::EFER => cpu.msr.efer,
        32..=39 => {
            let (significand, sign_exponent) = cpu.fpu.r[physical(cpu, n(num::ST))];
            return u128::from(significand) | u128::from(sign_exponent) << 64;
        }
        40..=47 => read_fctrl(cpu, reg - num::FCTRL),
        48..=63 => return cpu.fpu.xmm[n(num::XMM)],
        num::MXCSR => cpu.fpu.mxcsr.into(),
        72..=75 => cpu.dr[n(num::DR)],
        78 => cpu.dr6,
        79 => cpu.dr7,
        num::KERNEL_GS_BASE => cpu.msr.kernel_gs_base,
        _ => 0,
    })
}

/// Writes register `reg`; see the module's documentation for what it means. Unknown numbers are ignored.
pub fn write_reg(cpu: &mut Vcpu, reg: u16, value: u128) {
    let n = |first: u16| usize::from(reg - first);
    let v = value as u64;
    match reg {
        0..=15 => cpu.gpr[n(0)] = v,
        num::RIP => cpu.rip = v,
        num::RFLAGS => cpu.flags.0 = (v & flags::WRITABLE) | flags::bit::FIXED,
        18..=23 => write_selector(cpu, n(num::SEG), v as u16),
        num::FS_BASE => cpu.seg[Seg::Fs as usize].base = v,
        num::GS_BASE => cpu.seg[Seg::Gs as usize].base = v,
        num::CR0 => cpu.cr0 = v,
        num::CR2 => cpu.cr2 = v,
        num::CR3 => cpu.cr3 = v,
        num::CR4 => cpu.cr4 = v,
        num::EFER => cpu.msr.efer = v,
        32..=39 => cpu.fpu.r[physical(cpu, n(num::ST))] = (v, (value >> 64) as u16),
        40..=47 => write_fctrl(cpu, reg - num::FCTRL, v),
        48..=63 => cpu.fpu.xmm[n(num::XMM)] = value,
        num::MXCSR => cpu.fpu.mxcsr = v as u32 & 0xffff,
        72..=75 => cpu.dr[n(num::DR)] = v,
        78 => cpu.dr6 = (v & super::debug::dr6::WRITABLE) | super::debug::dr6::FIXED,
        79 => cpu.dr7 = (v & super::debug::dr7::WRITABLE) | super::debug::dr7::FIXED,
        num::KERNEL_GS_BASE => cpu.msr.kernel_gs_base = v,
        _ => {}
    }
    cpu.refresh();
}

/// Physical x87 register of ST(`i`).
fn physical(cpu: &Vcpu, i: usize) -> usize {
    (usize::from(cpu.fpu.fsw >> 11) + i) & 7
}

fn write_selector(cpu: &mut Vcpu, n: usize, selector: u16) {
    let seg = &mut cpu.seg[n];
    seg.selector = selector;
    if !cpu.mode.protected {
        seg.base = u64::from(selector) << 4;
    }
}

fn read_fctrl(cpu: &Vcpu, n: u16) -> u64 {
    let f = &cpu.fpu;
    match n {
        0 => f.fcw.into(),
        1 => f.fsw.into(),
        2 => f.ftw.into(),
        3 => f.fcs.into(),
        4 => f.fip,
        5 => f.fds.into(),
        6 => f.fdp,
        _ => f.fop.into(),
    }
}

fn write_fctrl(cpu: &mut Vcpu, n: u16, v: u64) {
    let f = &mut cpu.fpu;
    match n {
        0 => f.fcw = v as u16,
        1 => f.fsw = v as u16,
        2 => f.ftw = v as u8,
        3 => f.fcs = v as u16,
        4 => f.fip = v,
        5 => f.fds = v as u16,
        6 => f.fdp = v,
        _ => f.fop = v as u16 & 0x7ff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::CpuModel;

    #[test]
    fn test_write_then_read_every_plain_register() {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        for reg in
            (0..=16).chain([24, 25, 27, 28, 29]).chain(40..=40).chain(48..=63).chain(72..=75).chain([80])
        {
            let value = 0x1000 + u128::from(reg);
            write_reg(&mut cpu, reg, value);
            assert_eq!(read_reg(&cpu, reg), value, "register {reg}");
        }
    }

    #[test]
    fn test_st_is_relative_to_top() {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        cpu.fpu.fsw = 6 << 11;
        write_reg(&mut cpu, num::ST + 3, 0x3fff_8000_0000_0000_0000);
        assert_eq!(cpu.fpu.r[1], (0x8000_0000_0000_0000, 0x3fff));
        assert_eq!(read_reg(&cpu, num::ST + 3), 0x3fff_8000_0000_0000_0000);
    }

    #[test]
    fn test_selector_write_in_real_mode_moves_base() {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        write_reg(&mut cpu, num::SEG + 3, 0x1234);
        assert_eq!(cpu.seg[3].lin_base, 0x12340);
    }
}
