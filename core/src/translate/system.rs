//! Translation of instructions that work on the vCPU itself: interrupt flag, SMAP's flag, segment bases, control registers,
//! time-stamp counter. Generated code reads and writes the fields of the vCPU; what depends on more than its mode key says
//! is left to the interpreter.

use super::emit::{Emitter, Unsupported, host};
use super::identical::guest_register;
use super::mode::ModeKey;
use super::site::What;
use super::unit::{ARITH as ICED_ARITH, Item, Unit};
use crate::jit::frame::{CPU, FLAGS_BELOW, Frame, INTR, ITLB, STAMP, STAMP_SSE, TARGET, TLB, TSC, TSC_READY};
use crate::mmu::View;
use crate::mmu::tlb::{ENTRIES, Entry};
use crate::vcpu::cpuid::{CpuModel, Feature};
use crate::vcpu::flags::bit;
use crate::vcpu::segment::Segment;
use crate::vcpu::{Seg, Vcpu, cr4};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Mnemonic, OpKind, Register};
use std::mem::offset_of;

pub(super) const RFLAGS: i32 = offset_of!(Vcpu, flags) as i32;
const CR4: i32 = offset_of!(Vcpu, cr4) as i32;
const TLB_REF: i32 = offset_of!(Vcpu, tlb) as i32;
const KERNEL_GS_BASE: i32 = offset_of!(Vcpu, msr.kernel_gs_base) as i32;
const TSC_AUX: i32 = offset_of!(Vcpu, msr.tsc_aux) as i32;

/// Offset of segment register `seg`.
const fn segment(seg: Seg) -> i32 {
    (offset_of!(Vcpu, seg) + size_of::<Segment>() * seg as usize) as i32
}
const SELECTOR: i32 = offset_of!(Segment, selector) as i32;
const GS_BASE: i32 = segment(Seg::Gs) + offset_of!(Segment, base) as i32;
const GS_LINEAR: i32 = segment(Seg::Gs) + offset_of!(Segment, lin_base) as i32;

/// From the TLB arrays of one view to those of the next.
const ARRAY: i32 = (ENTRIES * size_of::<Entry>()) as i32;
/// From the arrays of supervisor accesses to those with EFLAGS.AC set.
const AC_VIEW: i32 = View::SupervisorAc as i32 - View::Supervisor as i32;
const _: () = assert!(View::Supervisor as i32 & AC_VIEW == 0);

/// Does an instruction in the middle of its block select other TLB arrays? Then the block remembers no pages.
pub(super) fn selects_arrays(it: &Item) -> bool {
    it.system && matches!(it.i.mnemonic(), Mnemonic::Stac | Mnemonic::Clac)
}

/// Analyses an instruction with an emitter here: in what mode it is one, what it does besides what its operands say.
pub(super) fn analyse(it: &mut Item, mode: ModeKey, model: CpuModel) {
    use Mnemonic as M;
    let kernel = mode.is_kernel();
    let (here, site, barrier) = match it.i.mnemonic() {
        M::Cli | M::Invlpg => (kernel, false, false),
        M::Cld | M::Std => (true, false, false),
        M::Sti => (kernel, true, true),
        M::Stac | M::Clac => (kernel && model.has(Feature::Smap), false, true),
        M::Swapgs => (kernel && mode.is64(), false, true),
        M::Rdtsc => (model.has(Feature::Tsc), true, false),
        M::Rdtscp => (model.has(Feature::Rdtscp), true, false),
        M::Pushfq | M::Pushfd => (true, false, false),
        M::Mov if it.i.op1_register().is_cr() => {
            let known =
                matches!(it.i.op1_register(), Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4);
            (kernel && known, false, false)
        }
        M::Mov if it.i.op1_register().is_segment_register() => (true, false, false),
        M::Rdfsbase | M::Rdgsbase => (mode.is64(), true, false),
        M::Wrfsbase | M::Wrgsbase => (mode.is64(), true, true),
        _ => return,
    };
    if !here {
        it.make_call();
        return;
    }
    (it.end, it.faults, it.barrier, it.system) = (false, site, barrier, true);
    // The manual leaves the flags undefined after some of them; they stay.
    let pushes = matches!(it.i.mnemonic(), M::Pushfq | M::Pushfd);
    (it.reads, it.writes, it.full) = (if pushes { ICED_ARITH } else { 0 }, 0, false);
}

/// What STI at the end of a block enables is looked at behind the next instruction, which must be in the block, too:
/// else it is called.
pub(super) fn settle(unit: &mut Unit) {
    if let Some(last) = unit.items.last_mut()
        && last.i.mnemonic() == Mnemonic::Sti
        && !last.is_call()
    {
        last.make_call();
        last.end = true;
    }
}

impl Emitter<'_> {
    /// The vCPU's address into RAX.
    fn vcpu(&mut self) {
        dynasm!(self.a ; .arch x64 ; mov rax, [rsp + CPU]);
    }

    /// RAX, zero-extended from the operand size, into the instruction's destination register. RFLAGS stay.
    fn rax_to(&mut self, r: Register) -> Result<(), Unsupported> {
        let guest = guest_register(r);
        match (host(guest), r.size()) {
            (Some(h), 8) => dynasm!(self.a ; .arch x64 ; mov Rq(h), rax),
            (Some(h), 4) => dynasm!(self.a ; .arch x64 ; mov Rd(h), eax),
            (Some(h), 2) => dynasm!(self.a ; .arch x64 ; mov Rw(h), ax),
            (None, 8) => self.store_frame(0, guest),
            (None, 4) => {
                dynasm!(self.a ; .arch x64 ; mov eax, eax);
                self.store_frame(0, guest);
            }
            _ => return Err(Unsupported),
        }
        Ok(())
    }
}

impl Emitter<'_> {
    /// A register of 32 or 64 bits, zero-extended, into R15.
    fn register_to_r15(&mut self, r: Register) -> Result<(), Unsupported> {
        let guest = guest_register(r);
        match (host(guest), r.size()) {
            (Some(h), 8) => dynasm!(self.a ; .arch x64 ; mov r15, Rq(h)),
            (Some(h), 4) => dynasm!(self.a ; .arch x64 ; mov r15d, Rd(h)),
            (None, 8) => self.load_frame(15, guest),
            (None, 4) => {
                self.load_frame(15, guest);
                dynasm!(self.a ; .arch x64 ; mov r15d, r15d);
            }
            _ => return Err(Unsupported),
        }
        Ok(())
    }
}

/// CLI at CPL 0.
pub fn cli(e: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    e.before_clobber();
    e.vcpu();
    dynasm!(e.a ; .arch x64 ; and DWORD [rax + RFLAGS], !(bit::IF as i32));
    Ok(())
}

/// CLD and STD.
pub fn direction(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    e.before_clobber();
    e.vcpu();
    match it.i.mnemonic() {
        Mnemonic::Std => dynasm!(e.a ; .arch x64 ; or DWORD [rax + RFLAGS], bit::DF as i32),
        _ => dynasm!(e.a ; .arch x64 ; and DWORD [rax + RFLAGS], !(bit::DF as i32)),
    }
    Ok(())
}

/// STI at CPL 0, if no interrupt waits: then nothing can happen between it and the next instruction, which is in the
/// same block, and nobody sees its shadow.
pub fn sti(e: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    e.before_clobber();
    e.check_budget_here();
    // What waits is delivered behind the next instruction: the block is left.
    let slow = e.site_label(What::Finish { count: 1 });
    dynasm!(e.a ; .arch x64 ; mov rax, [rsp + INTR] ; cmp BYTE [rax], 0 ; jne =>slow);
    e.vcpu();
    dynasm!(e.a ; .arch x64 ; or DWORD [rax + RFLAGS], bit::IF as i32);
    Ok(())
}

/// STAC and CLAC at CPL 0: with CR4.SMAP they select other TLB arrays.
pub fn set_ac(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    const AC: i8 = bit::AC.trailing_zeros() as i8;
    let on = it.i.mnemonic() == Mnemonic::Stac;
    e.before_clobber();
    e.windows.clear();
    let over = e.a.new_dynamic_label();
    e.vcpu();
    match on {
        true => dynasm!(e.a ; .arch x64 ; bts DWORD [rax + RFLAGS], AC ; jc =>over),
        false => dynasm!(e.a ; .arch x64 ; btr DWORD [rax + RFLAGS], AC ; jnc =>over),
    }
    dynasm!(e.a ; .arch x64 ; test DWORD [rax + CR4], cr4::SMAP as i32 ; jz =>over);
    let step = if on { ARRAY * AC_VIEW } else { -ARRAY * AC_VIEW };
    // What other blocks remember is stamped with the array: the stamps change with it, in the same bits.
    match on {
        true => dynasm!(e.a ; .arch x64
            ; or DWORD [rax + TLB_REF], AC_VIEW
            ; or DWORD [rsp + STAMP], AC_VIEW
            ; or DWORD [rsp + STAMP_SSE], AC_VIEW
        ),
        false => dynasm!(e.a ; .arch x64
            ; and DWORD [rax + TLB_REF], !AC_VIEW
            ; and DWORD [rsp + STAMP], !AC_VIEW
            ; and DWORD [rsp + STAMP_SSE], !AC_VIEW
        ),
    }
    dynasm!(e.a ; .arch x64
        ; add QWORD [BYTE rsp + TLB], step
        ; add QWORD [BYTE rsp + ITLB], step
        ; =>over
    );
    Ok(())
}

/// SWAPGS at CPL 0.
pub fn swapgs(e: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    const FRAME_GS: i8 = Frame::seg_offset(Seg::Gs as u8);
    e.windows.clear();
    e.vcpu();
    dynasm!(e.a ; .arch x64
        ; mov r15, [rax + GS_BASE]
        ; mov [BYTE rsp + TARGET], r15
        ; mov r15, [rax + KERNEL_GS_BASE]
        ; mov [rax + GS_BASE], r15
        ; mov [rax + GS_LINEAR], r15
        ; mov [BYTE rsp + FRAME_GS], r15
        ; mov r15, [BYTE rsp + TARGET]
        ; mov [rax + KERNEL_GS_BASE], r15
    );
    Ok(())
}

/// PUSHF of the code's own size.
pub fn pushf(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    const SAVED: i32 = bit::ARITH as i32;
    let p = e.access(&it.mem.ok_or(Unsupported)?)?;
    e.before_clobber();
    if !e.flags.saved {
        return Err(Unsupported);
    }
    e.vcpu();
    // The arithmetic flags from where they were saved, all others from the vCPU.
    dynasm!(e.a ; .arch x64
        ; mov eax, [rax + RFLAGS]
        ; xor eax, [BYTE rsp + FLAGS_BELOW]
        ; and eax, !SAVED
        ; xor eax, [BYTE rsp + FLAGS_BELOW]
        ; and eax, !((bit::VM | bit::RF) as i32)
    );
    e.push_rax(&p)?;
    e.move_window(it);
    Ok(())
}

/// RDTSC and RDTSCP, where the TSC follows the icount and may be read at every CPL.
pub fn rdtsc(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    e.before_clobber();
    e.check_budget_here();
    // The slow path does not keep R15.
    e.lose_r15();
    let slow = e.slow_label(e.k);
    let ahead = e.k as i32 - e.items().len() as i32;
    dynasm!(e.a ; .arch x64
        ; cmp DWORD [rsp + TSC_READY], 0
        ; je =>slow
        ; mov rax, [rsp + TSC]
        ; sub rax, r12
        ; add rax, ahead
        ; mov edx, eax
        ; mov r14d, edx
        ; mov rdx, rax
        ; shr rdx, 32
    );
    if it.i.mnemonic() == Mnemonic::Rdtscp {
        e.vcpu();
        dynasm!(e.a ; .arch x64 ; mov rcx, [rax + TSC_AUX]);
    }
    Ok(())
}

/// MOV from a segment register to a general one.
pub fn from_segment(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    if it.i.op0_kind() != OpKind::Register || it.insn.reg > 5 {
        return Err(Unsupported);
    }
    let at = segment(Seg::Es) + size_of::<Segment>() as i32 * i32::from(it.insn.reg) + SELECTOR;
    e.vcpu();
    dynasm!(e.a ; .arch x64 ; movzx eax, WORD [rax + at]);
    e.rax_to(it.i.op0_register())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub fn base(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let (seg, write) = match it.i.mnemonic() {
        Mnemonic::Rdfsbase => (Seg::Fs, false),
        Mnemonic::Wrfsbase => (Seg::Fs, true),
        Mnemonic::Rdgsbase => (Seg::Gs, false),
        _ => (Seg::Gs, true),
    };
    let at = segment(seg) + offset_of!(Segment, base) as i32;
    e.before_clobber();
    e.check_budget_here();
    // The slow path does not keep R15; what was looked up through the old base is of no use.
    e.lose_r15();
    if write {
        e.windows.clear();
    }
    let slow = e.slow_label(e.k);
    e.vcpu();
    dynasm!(e.a ; .arch x64 ; test DWORD [rax + CR4], cr4::FSGSBASE as i32 ; jz =>slow);
    if !write {
        dynasm!(e.a ; .arch x64 ; mov rax, [rax + at]);
        return e.rax_to(it.i.op0_register());
    }
    // Only a canonical base is allowed.
    e.register_to_r15(it.i.op0_register())?;
    dynasm!(e.a ; .arch x64 ; mov rax, r15 ; shl rax, 16 ; sar rax, 16 ; cmp rax, r15 ; jne =>slow);
    e.vcpu();
    let (linear, frame) = (segment(seg) + offset_of!(Segment, lin_base) as i32, Frame::seg_offset(seg as u8));
    dynasm!(e.a ; .arch x64 ; mov [rax + at], r15 ; mov [rax + linear], r15 ; mov [BYTE rsp + frame], r15);
    Ok(())
}

/// MOV from a control register that is only read, at CPL 0.
pub fn from_control(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let at = match it.i.op1_register() {
        Register::CR0 => offset_of!(Vcpu, cr0),
        Register::CR2 => offset_of!(Vcpu, cr2),
        Register::CR3 => offset_of!(Vcpu, cr3),
        Register::CR4 => offset_of!(Vcpu, cr4),
        _ => return Err(Unsupported),
    } as i32;
    e.vcpu();
    dynasm!(e.a ; .arch x64 ; mov rax, [rax + at]);
    e.rax_to(it.i.op0_register())
}
