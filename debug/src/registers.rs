//! The register file as debuggers see it: one table gives each register its name, size, place and value.
//!
//! The layout is that of a 64-bit machine whatever mode the vCPU is in; a 16- or 32-bit guest uses the low parts.
//! `rip` is the offset in CS, as on the CPU: where CS has a base (real mode), the linear address is `cs_base + rip`.

use retrovisor_core::vcpu::fpu::Fpu;
use retrovisor_core::vcpu::regs::num;
use retrovisor_core::vcpu::{Seg, Vcpu, gpr};

/// Which part of the register file a register belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// General registers, RIP, RFLAGS, selectors, x87.
    Core,
    /// XMM registers and MXCSR.
    Sse,
    /// The FS and GS bases.
    Segments,
    /// Control registers and model-specific registers.
    Control,
    /// Hidden parts of segment registers, and the descriptor-table registers.
    Descriptor,
    /// Debug registers.
    Debug,
}

/// What a register holds, for display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Int,
    DataPtr,
    CodePtr,
    Eflags,
    Cr0,
    Cr4,
    Efer,
    Mxcsr,
    /// 80-bit x87.
    Ext80,
    /// 128-bit vector.
    Vec128,
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Gpr(usize),
    Rip,
    Rflags,
    Selector(Seg),
    St(usize),
    /// FCW, FSW, FTW (full 16-bit form), FCS, FIP, FDS, FDP, FOP.
    X87(usize),
    Xmm(usize),
    Mxcsr,
    Base(Seg),
    Limit(Seg),
    Attr(Seg),
    Cr(u8),
    Efer,
    KernelGsBase,
    /// LDTR, TR: selector, base, limit, attributes.
    Ldtr(u8),
    Tr(u8),
    /// GDTR, IDTR: base, limit.
    Gdtr(u8),
    Idtr(u8),
    /// Index in DR0..DR3, DR6, DR7 (so 4 is DR6).
    Dr(usize),
}

/// A row: one register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    pub name: &'static str,
    pub bits: u32,
    pub ty: Type,
    pub group: Group,
    pub source: Source,
    /// Its number in `vcpu::regs::num`, if a debugger may write it.
    pub num: Option<u16>,
}

impl Register {
    /// Size in bytes.
    pub const fn bytes(&self) -> usize {
        (self.bits / 8) as usize
    }
}

const fn reg(name: &'static str, bits: u32, ty: Type, group: Group, source: Source, num: u16) -> Register {
    Register { name, bits, ty, group, source, num: Some(num) }
}
const fn look(name: &'static str, bits: u32, group: Group, source: Source) -> Register {
    Register { name, bits, ty: Type::Int, group, source, num: None }
}
const fn gp(name: &'static str, n: usize) -> Register {
    let ty = if n == gpr::RSP || n == gpr::RBP { Type::DataPtr } else { Type::Int };
    reg(name, 64, ty, Group::Core, Source::Gpr(n), n as u16)
}
const fn sel(name: &'static str, s: Seg) -> Register {
    reg(name, 32, Type::Int, Group::Core, Source::Selector(s), num::SEG + s as u16)
}
const fn st(name: &'static str, n: usize) -> Register {
    reg(name, 80, Type::Ext80, Group::Core, Source::St(n), num::ST + n as u16)
}
const fn x87(name: &'static str, n: usize) -> Register {
    reg(name, 32, Type::Int, Group::Core, Source::X87(n), num::FCTRL + n as u16)
}
const fn xmm(name: &'static str, n: usize) -> Register {
    reg(name, 128, Type::Vec128, Group::Sse, Source::Xmm(n), num::XMM + n as u16)
}
const fn ctl(name: &'static str, ty: Type, source: Source, n: u16) -> Register {
    reg(name, 64, ty, Group::Control, source, n)
}
const fn dr(name: &'static str, n: usize) -> Register {
    reg(name, 64, Type::Int, Group::Debug, Source::Dr(n), num::DR + n as u16)
}

/// Every register, in the order debuggers number them. The first 40 are what gdb's i386 core feature prescribes.
#[rustfmt::skip]
pub const REGISTERS: &[Register] = &[
    gp("rax", gpr::RAX), gp("rbx", gpr::RBX), gp("rcx", gpr::RCX), gp("rdx", gpr::RDX),
    gp("rsi", gpr::RSI), gp("rdi", gpr::RDI), gp("rbp", gpr::RBP), gp("rsp", gpr::RSP),
    gp("r8", 8), gp("r9", 9), gp("r10", 10), gp("r11", 11), gp("r12", 12), gp("r13", 13), gp("r14", 14), gp("r15", 15),
    reg("rip", 64, Type::CodePtr, Group::Core, Source::Rip, num::RIP),
    reg("eflags", 32, Type::Eflags, Group::Core, Source::Rflags, num::RFLAGS),
    sel("cs", Seg::Cs), sel("ss", Seg::Ss), sel("ds", Seg::Ds), sel("es", Seg::Es), sel("fs", Seg::Fs), sel("gs", Seg::Gs),
    st("st0", 0), st("st1", 1), st("st2", 2), st("st3", 3), st("st4", 4), st("st5", 5), st("st6", 6), st("st7", 7),
    x87("fctrl", 0), x87("fstat", 1), x87("ftag", 2), x87("fiseg", 3),
    x87("fioff", 4), x87("foseg", 5), x87("fooff", 6), x87("fop", 7),
    xmm("xmm0", 0), xmm("xmm1", 1), xmm("xmm2", 2), xmm("xmm3", 3), xmm("xmm4", 4), xmm("xmm5", 5), xmm("xmm6", 6),
    xmm("xmm7", 7), xmm("xmm8", 8), xmm("xmm9", 9), xmm("xmm10", 10), xmm("xmm11", 11), xmm("xmm12", 12),
    xmm("xmm13", 13), xmm("xmm14", 14), xmm("xmm15", 15),
    reg("mxcsr", 32, Type::Mxcsr, Group::Sse, Source::Mxcsr, num::MXCSR),
    reg("fs_base", 64, Type::Int, Group::Segments, Source::Base(Seg::Fs), num::FS_BASE),
    reg("gs_base", 64, Type::Int, Group::Segments, Source::Base(Seg::Gs), num::GS_BASE),
    ctl("k_gs_base", Type::Int, Source::KernelGsBase, num::KERNEL_GS_BASE),
    ctl("cr0", Type::Cr0, Source::Cr(0), num::CR0),
    ctl("cr2", Type::Int, Source::Cr(2), num::CR2),
    ctl("cr3", Type::Int, Source::Cr(3), num::CR3),
    ctl("cr4", Type::Cr4, Source::Cr(4), num::CR4),
    look("cr8", 64, Group::Control, Source::Cr(8)),
    ctl("efer", Type::Efer, Source::Efer, num::EFER),
    look("cs_base", 64, Group::Descriptor, Source::Base(Seg::Cs)),
    look("cs_limit", 32, Group::Descriptor, Source::Limit(Seg::Cs)),
    look("cs_attr", 32, Group::Descriptor, Source::Attr(Seg::Cs)),
    look("ss_base", 64, Group::Descriptor, Source::Base(Seg::Ss)),
    look("ss_limit", 32, Group::Descriptor, Source::Limit(Seg::Ss)),
    look("ss_attr", 32, Group::Descriptor, Source::Attr(Seg::Ss)),
    look("ds_base", 64, Group::Descriptor, Source::Base(Seg::Ds)),
    look("ds_limit", 32, Group::Descriptor, Source::Limit(Seg::Ds)),
    look("ds_attr", 32, Group::Descriptor, Source::Attr(Seg::Ds)),
    look("es_base", 64, Group::Descriptor, Source::Base(Seg::Es)),
    look("es_limit", 32, Group::Descriptor, Source::Limit(Seg::Es)),
    look("es_attr", 32, Group::Descriptor, Source::Attr(Seg::Es)),
    look("fs_limit", 32, Group::Descriptor, Source::Limit(Seg::Fs)),
    look("fs_attr", 32, Group::Descriptor, Source::Attr(Seg::Fs)),
    look("gs_limit", 32, Group::Descriptor, Source::Limit(Seg::Gs)),
    look("gs_attr", 32, Group::Descriptor, Source::Attr(Seg::Gs)),
    look("ldtr", 32, Group::Descriptor, Source::Ldtr(0)),
    look("ldtr_base", 64, Group::Descriptor, Source::Ldtr(1)),
    look("ldtr_limit", 32, Group::Descriptor, Source::Ldtr(2)),
    look("ldtr_attr", 32, Group::Descriptor, Source::Ldtr(3)),
    look("tr", 32, Group::Descriptor, Source::Tr(0)),
    look("tr_base", 64, Group::Descriptor, Source::Tr(1)),
    look("tr_limit", 32, Group::Descriptor, Source::Tr(2)),
    look("tr_attr", 32, Group::Descriptor, Source::Tr(3)),
    look("gdtr_base", 64, Group::Descriptor, Source::Gdtr(0)),
    look("gdtr_limit", 32, Group::Descriptor, Source::Gdtr(1)),
    look("idtr_base", 64, Group::Descriptor, Source::Idtr(0)),
    look("idtr_limit", 32, Group::Descriptor, Source::Idtr(1)),
    dr("dr0", 0), dr("dr1", 1), dr("dr2", 2), dr("dr3", 3), dr("dr6", 4), dr("dr7", 5),
];

/// The register called `name` (without `$`).
pub fn by_name(name: &str) -> Option<&'static Register> {
    let alias = match name {
        "pc" => "rip",
        "sp" => "rsp",
        "fp" => "rbp",
        "rflags" => "eflags",
        other => other,
    };
    REGISTERS.iter().find(|r| r.name == alias)
}

/// Value of a register; `cr8` is passed in because the task priority lives in the interrupt controller.
pub fn read(cpu: &Vcpu, cr8: u8, source: Source) -> u128 {
    let table = |i: u8, base: u64, limit: u16| if i == 0 { base } else { u64::from(limit) };
    let system = |i: u8, s: &retrovisor_core::vcpu::segment::Segment| match i {
        0 => u64::from(s.selector),
        1 => s.base,
        2 => u64::from(s.limit),
        _ => u64::from(s.attr),
    };
    let value = match source {
        Source::St(n) => return st_value(&cpu.fpu, n),
        Source::Xmm(n) => return cpu.fpu.xmm.get(n).copied().unwrap_or(0),
        Source::Gpr(n) => cpu.gpr.get(n).copied().unwrap_or(0),
        Source::Rip => cpu.rip,
        Source::Rflags => cpu.flags.0,
        Source::Selector(s) => u64::from(cpu.seg[s as usize].selector),
        Source::X87(n) => x87_value(&cpu.fpu, n),
        Source::Mxcsr => u64::from(cpu.fpu.mxcsr),
        Source::Base(s) => cpu.seg[s as usize].base,
        Source::Limit(s) => u64::from(cpu.seg[s as usize].limit),
        Source::Attr(s) => u64::from(cpu.seg[s as usize].attr),
        Source::Cr(0) => cpu.cr0,
        Source::Cr(2) => cpu.cr2,
        Source::Cr(3) => cpu.cr3,
        Source::Cr(4) => cpu.cr4,
        Source::Cr(_) => u64::from(cr8),
        Source::Efer => cpu.msr.efer,
        Source::KernelGsBase => cpu.msr.kernel_gs_base,
        Source::Ldtr(i) => system(i, &cpu.ldtr),
        Source::Tr(i) => system(i, &cpu.tr),
        Source::Gdtr(i) => table(i, cpu.gdtr.base, cpu.gdtr.limit),
        Source::Idtr(i) => table(i, cpu.idtr.base, cpu.idtr.limit),
        Source::Dr(4) => cpu.dr6,
        Source::Dr(5) => cpu.dr7,
        Source::Dr(n) => cpu.dr.get(n).copied().unwrap_or(0),
    };
    u128::from(value)
}

/// ST(n): 80 bits, by the top-of-stack pointer in FSW.
fn st_value(fpu: &Fpu, n: usize) -> u128 {
    let top = usize::from(fpu.fsw >> 11 & 7);
    let (significand, exponent) = fpu.r[(top + n) & 7];
    u128::from(exponent) << 64 | u128::from(significand)
}

fn x87_value(fpu: &Fpu, n: usize) -> u64 {
    match n {
        0 => u64::from(fpu.fcw),
        1 => u64::from(fpu.fsw),
        2 => u64::from(full_tag_word(fpu)),
        3 => u64::from(fpu.fcs),
        4 => fpu.fip,
        5 => u64::from(fpu.fds),
        6 => fpu.fdp,
        _ => u64::from(fpu.fop),
    }
}

/// The 16-bit tag word from the abridged one (SDM vol. 1, 8.1.7 and table 10-3): two bits a physical register.
pub fn full_tag_word(fpu: &Fpu) -> u16 {
    (0..8).fold(0, |word, i| {
        let (significand, exponent) = fpu.r[i];
        let tag = match (fpu.ftw >> i & 1 == 0, exponent & 0x7fff, significand) {
            (true, ..) => 3,
            (_, 0, 0) => 1,
            (_, 0 | 0x7fff, _) => 2,
            (_, _, s) if s >> 63 == 0 => 2,
            _ => 0,
        };
        word | tag << (2 * i)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use retrovisor_core::vcpu::cpuid::CpuModel;

    #[test]
    fn names_are_unique_and_the_core_block_is_complete() {
        let names: std::collections::BTreeSet<_> = REGISTERS.iter().map(|r| r.name).collect();
        assert_eq!(names.len(), REGISTERS.len());
        assert_eq!(REGISTERS.iter().filter(|r| r.group == Group::Core).count(), 40);
        assert!(REGISTERS[..40].iter().all(|r| r.group == Group::Core));
    }

    #[test]
    fn values_come_from_their_places() {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        cpu.gpr[gpr::RBX] = 0x1122;
        cpu.rip = 0xfff0;
        cpu.dr7 = 0x455;
        let value = |name| read(&cpu, 9, by_name(name).unwrap().source);
        assert_eq!(value("rbx"), 0x1122);
        assert_eq!(value("pc"), 0xfff0);
        assert_eq!(value("cs_base"), 0xffff_0000);
        assert_eq!(value("cs"), 0xf000);
        assert_eq!(value("cr8"), 9);
        assert_eq!(value("dr7"), 0x455);
        assert_eq!(value("mxcsr"), 0x1f80);
    }

    #[test]
    fn st_registers_follow_top_of_stack() {
        let mut fpu = Fpu::new();
        fpu.fsw = 6 << 11;
        fpu.r[6] = (0x8000_0000_0000_0000, 0x3fff);
        fpu.r[0] = (7, 1);
        assert_eq!(st_value(&fpu, 0), 0x3fff_8000_0000_0000_0000);
        assert_eq!(st_value(&fpu, 2), 1 << 64 | 7);
    }

    #[test]
    fn tag_word_tells_zero_valid_special_and_empty_apart() {
        let mut fpu = Fpu::new();
        fpu.ftw = 0b0111;
        fpu.r[0] = (1 << 63, 0x3fff); // valid
        fpu.r[1] = (0, 0x8000); // minus zero
        fpu.r[2] = (1 << 63, 0x7fff); // infinity
        assert_eq!(full_tag_word(&fpu), 0xffc0 | 2 << 4 | 1 << 2);
    }
}
