//! x87 and MMX instructions in translated code: they run on the host's x87 registers as they are. Owns what an instruction
//! does with the x87 state, loading that state, and the notes of the last instruction and its memory operand.
//!
//! The host's own pointers name host addresses, so the guest's are noted by translated code, as late as possible: what a
//! site does not find in the frame its description tells, and only a block's last instruction and last memory operand are
//! stored, at the block's end or before a register of the operand's address changes.

use super::emit::{Emitter, Unsupported, host};
use super::identical::redirect;
use super::site::{Site, What};
use super::unit::{Item, MemRef};
use crate::ctx::Ctx;
use crate::jit::frame::{Frame, X87, X87_FDP, X87_FIP, X87_SEG};
use crate::jit::x87_image::at;
use crate::jit::x87_probe::differs;
use crate::vcpu::{Seg, ZERO};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{
    Code, CpuidFeature, Instruction, Mnemonic, OpCodeOperandKind as K, OpCodeTableKind, OpKind, Register,
};
use std::sync::LazyLock;

/// What an instruction does with the x87 state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Nothing.
    No,
    /// It reads or writes it.
    Uses,
    /// It is also recorded as the last x87 instruction.
    Notes,
}

static USES: LazyLock<Vec<Use>> = LazyLock::new(|| Code::values().map(classify).collect());

/// What form `code` does with the x87 state.
pub fn of(code: Code) -> Use {
    USES.get(code as usize).copied().unwrap_or(Use::Uses)
}

fn classify(code: Code) -> Use {
    let op = code.op_code();
    let escape = if op.op_code_len() == 2 { op.op_code() >> 8 } else { op.op_code() };
    if op.table() == OpCodeTableKind::Normal && (0xd8..0xe0).contains(&escape) {
        return if is_control(code) { Use::Uses } else { Use::Notes };
    }
    let aliased = op.op_kinds().iter().any(|k| matches!(k, K::mm_reg | K::mm_or_mem | K::mm_rm));
    let state = code.cpuid_features().iter().any(|f| {
        use CpuidFeature as F;
        matches!(
            f,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::FXSR
                | F::XSAVE
                | F::XSAVEC
                | F::XSAVEOPT
                | F::XSAVES
        )
    });
    if aliased || state || code == Code::Wait { Use::Uses } else { Use::No }
}

/// Has it an MMX register?
fn uses_mm(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

/// Instructions that are not recorded: they manage the state itself.
fn is_control(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fldcw
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fldenv
            | Mnemonic::Fnsave
            | Mnemonic::Frstor
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
    )
}

/// Does an x87 instruction write its memory operand?
pub fn stores(m: Mnemonic) -> bool {
    matches!(
        m,
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstcw
    )
}

/// Where the x87 state is while a site's instructions are interpreted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum X87At {
    /// Where it was: they do not look at it.
    Stays,
    /// In the vCPU.
    Moves,
    /// In the vCPU; then back where it was.
    Returns,
}

/// What translated code has not stored yet of the last x87 instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Note {
    fip: Option<u64>,
    operand: Option<Operand>,
}

impl Note {
    /// Number of the instruction whose operand is not stored yet.
    pub fn insn(&self) -> usize {
        self.operand.map_or(0, |o| o.insn as usize)
    }
}

/// The memory operand of instruction number `insn`; `moved` has been added to its base register since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Operand {
    insn: u32,
    moved: i64,
}

/// Brings the pointers of the vCPU up to date at a site.
pub fn apply(frame: &mut Frame, ctx: &mut Ctx<'_>, site: &Site) {
    frame.notes.take(ctx.cpu);
    if let Some(rip) = site.note.fip {
        ctx.cpu.fpu.fip = rip;
        ctx.cpu.fpu.fcs = ctx.cpu.seg[Seg::Cs as usize].selector;
    }
    if let Some(o) = site.note.operand
        && let Some(i) = site.insns.get(o.insn as usize)
    {
        ctx.cpu.fpu.fdp = ctx.ea(i).wrapping_sub(o.moved as u64) & i.addr_mask;
        ctx.cpu.fpu.fds = ctx.cpu.seg[usize::from(i.seg % 6)].selector;
    }
}

impl Emitter<'_> {
    /// Makes sure the guest's x87 state is in the host's registers.
    pub(super) fn enter_x87(&mut self, it: &Item) -> Result<(), Unsupported> {
        let mmx = it.x87 == Use::Uses && uses_mm(&it.i);
        if !self.options.x87 || differs(if mmx { Mnemonic::Paddd } else { it.i.mnemonic() }) {
            return Err(Unsupported);
        }
        if self.x87 {
            return Ok(());
        }
        self.windows.clear();
        self.before_clobber();
        self.check_budget_here();
        let rest = (self.items().len() - self.k) as u32;
        let site = self.site(What::X87 { rest });
        self.x87 = true;
        let from = self.a.new_dynamic_label();
        dynasm!(self.a ; .arch x64 ; cmp BYTE [rsp + X87], at::VCPU as i8 ; je =>from);
        self.slow_and_back(from, site);
        Ok(())
    }

    /// Where the x87 state is during a site before the current instruction.
    pub(super) fn x87_at(&self, what: What) -> X87At {
        let (count, goes_on) = match what {
            What::Budget => (0, false),
            What::X87 { .. } => return X87At::Moves,
            What::Execute { count } => (count, true),
            What::Finish { count } => (count, false),
        };
        let mut items = self.items().iter().skip(self.k).take(count as usize);
        match items.any(|it| it.x87 != Use::No) {
            false => X87At::Stays,
            true if goes_on => X87At::Returns,
            true => X87At::Moves,
        }
    }

    /// The current instruction is called at `site`: where the x87 state is behind it, and that it notes itself.
    pub(super) fn call_x87(&mut self, it: &Item, site: usize) {
        self.note = Note::default();
        if it.x87 == Use::No {
            return;
        }
        let next = self.items()[self.k + 1..].iter().find(|it| it.x87 != Use::No);
        self.x87 &= next.is_some_and(Item::x87_native);
        if !self.x87 {
            self.sites[site].x87 = X87At::Moves;
        }
    }

    /// The current instruction has run: it is the last one now.
    pub(super) fn note_x87(&mut self, it: &Item) {
        if it.x87 != Use::Notes {
            return;
        }
        self.note.fip = Some(it.rip);
        if it.mem.is_some() {
            self.note.operand = Some(Operand { insn: self.k as u32, moved: 0 });
        }
    }

    /// Before instruction `it`: stores what could not be told afterwards.
    pub(super) fn flush_notes(&mut self, it: &Item) -> Result<(), Unsupported> {
        if it.is_call() {
            return Ok(());
        }
        if it.end {
            return self.flush_all_notes();
        }
        match self.noted_operand() {
            Some(m) if it.gpr_written & m.registers() != 0 && moves(it, &m).is_none() => {
                self.flush_operand(&m)
            }
            _ => Ok(()),
        }
    }

    /// Behind instruction `it`: it may have moved the base register of the operand.
    pub(super) fn move_notes(&mut self, it: &Item) {
        if let (Some(m), Some(o)) = (self.noted_operand(), &mut self.note.operand)
            && it.gpr_written & m.registers() != 0
        {
            o.moved = o.moved.wrapping_add(moves(it, &m).unwrap_or(0));
        }
    }

    /// At the end of the block.
    pub(super) fn flush_all_notes(&mut self) -> Result<(), Unsupported> {
        if let Some(rip) = self.note.fip.take() {
            match i32::try_from(rip as i64) {
                Ok(small) => dynasm!(self.a ; .arch x64 ; mov QWORD [rsp + X87_FIP], small),
                Err(_) => {
                    dynasm!(self.a ; .arch x64 ; mov rax, QWORD rip as i64 ; mov [rsp + X87_FIP], rax);
                }
            }
        }
        match self.noted_operand() {
            Some(m) => self.flush_operand(&m),
            None => Ok(()),
        }
    }

    /// The operand not stored yet; its displacement fits what the registers are now.
    fn noted_operand(&self) -> Option<MemRef> {
        let o = self.note.operand?;
        let m = self.items().get(o.insn as usize)?.mem?;
        Some(MemRef { disp: m.disp.wrapping_sub(o.moved), ..m })
    }

    fn flush_operand(&mut self, m: &MemRef) -> Result<(), Unsupported> {
        self.note.operand = None;
        self.offset(m)?;
        let seg = i32::from(m.seg % 6) + 1;
        dynasm!(self.a ; .arch x64 ; mov [rsp + X87_FDP], rax ; mov DWORD [rsp + X87_SEG], seg);
        Ok(())
    }
}

impl Emitter<'_> {
    /// The operand's offset in its segment into RAX.
    fn offset(&mut self, m: &MemRef) -> Result<(), Unsupported> {
        let in_frame = |r: u8| r != ZERO && host(r).is_none();
        let index = |h: u8| Some((h, m.scale));
        match (m.base, m.index) {
            (b, i) if in_frame(b) && in_frame(i) => {
                self.before_clobber();
                self.load_frame(0, i);
                self.lea(0, None, index(0), m.disp)?;
                let at = Frame::high_offset(b);
                dynasm!(self.a ; .arch x64 ; add rax, [BYTE rsp + at]);
                Ok(())
            }
            (b, i) if in_frame(b) => {
                self.load_frame(0, b);
                self.lea(0, Some(0), host(i).and_then(index), m.disp)
            }
            (b, i) if in_frame(i) => {
                self.load_frame(0, i);
                self.lea(0, host(b), index(0), m.disp)
            }
            (b, i) => self.lea(0, host(b), host(i).and_then(index), m.disp),
        }
    }
}

/// What `it`, which writes a register of the address `m`, adds to it, if that is all.
fn moves(it: &Item, m: &MemRef) -> Option<i64> {
    if m.index == ZERO { it.adds(m.base) } else { None }
}

/// FNSTSW AX: the guest's AX is in R14.
pub fn fnstsw_ax(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    e.enter_x87(it)?;
    dynasm!(e.a ; .arch x64 ; fnstsw ax ; mov r14w, ax);
    Ok(())
}

/// FLDCW: interpreted if it unmasks an exception.
pub fn fldcw(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    e.enter_x87(it)?;
    e.windows.clear();
    e.before_clobber();
    e.check_budget_here();
    if !e.options.inline_tlb {
        return Err(Unsupported);
    }
    let place = e.access_once(&it.mem.ok_or(Unsupported)?)?;
    let miss = e.slow_label(e.k);
    let load = Instruction::with2(Code::Movzx_r32_rm16, Register::EAX, place.operand());
    let load = load.map_err(|_| Unsupported)?;
    e.encode(&load)?;
    dynasm!(e.a ; .arch x64 ; not eax ; test al, 0x3f ; jne =>miss);
    let mut i = it.i;
    redirect(&mut i, &place);
    e.encode(&i)
}

/// WAIT: nothing is pending while the state is in the host's registers.
pub fn wait(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    e.enter_x87(it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    #[test]
    fn test_every_row_of_the_x87_families_is_known_to_use_it() {
        for r in [
            isa::mmx::mov::ROWS,
            isa::mmx::native::ROWS,
            isa::x87::arith::ROWS,
            isa::x87::compare::ROWS,
            isa::x87::control::ROWS,
            isa::x87::convert::ROWS,
            isa::x87::env::ROWS,
            isa::x87::remainder::ROWS,
            isa::x87::stack::ROWS,
            isa::x87::transcendental::ROWS,
        ]
        .into_iter()
        .flatten()
        {
            assert_ne!(of(r.code), Use::No, "{:?}", r.code);
        }
        for code in [Code::Fxsave_m512byte, Code::Fxrstor64_m512byte, Code::Xsave_mem, Code::Xrstor64_mem] {
            assert_eq!(of(code), Use::Uses, "{code:?}");
        }
        for code in [Code::Add_rm32_r32, Code::Addps_xmm_xmmm128, Code::Cmovb_r32_rm32] {
            assert_eq!(of(code), Use::No, "{code:?}");
        }
        assert_eq!(of(Code::Fisttp_m32int), Use::Notes);
        assert_eq!(of(Code::Fcmovb_st0_sti), Use::Notes);
        assert_eq!(of(Code::Fnstsw_AX), Use::Uses);
    }
}
