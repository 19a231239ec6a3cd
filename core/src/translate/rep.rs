//! Translation of REP MOVS and REP STOS: as the host's own, page by page. What misses in the TLB, straddles pages, goes
//! down (DF set) or is beyond the budget is left to the interpreter.

use super::emit::{Emitter, Unsupported};
use super::mode::ModeKey;
use super::system;
use super::unit::{Item, MemRef};
use crate::isa::insn::prefix;
use crate::jit::frame::{CPU, OPEN, WINDOWS};
use crate::vcpu::flags::bit;
use crate::vcpu::gpr::{RDI, RSI};
use crate::vcpu::{Seg, ZERO};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::Code as C;

/// log2 of the bytes of an element, and whether it is a MOVS.
const fn form(code: C) -> Option<(u8, bool)> {
    Some(match code {
        C::Movsb_m8_m8 => (0, true),
        C::Movsw_m16_m16 => (1, true),
        C::Movsd_m32_m32 => (2, true),
        C::Movsq_m64_m64 => (3, true),
        C::Stosb_m8_AL => (0, false),
        C::Stosw_m16_AX => (1, false),
        C::Stosd_m32_EAX => (2, false),
        C::Stosq_m64_RAX => (3, false),
        _ => return None,
    })
}

/// Analyses a repeated string instruction.
pub(super) fn analyse(it: &mut Item, mode: ModeKey) {
    let Some((_, movs)) = form(it.i.code()) else { return };
    let wide = if mode.is64() { u64::MAX } else { 0xffff_ffff };
    let fast = mode.fast_segment(Seg::Es as u8) && (!movs || mode.fast_segment(it.insn.seg));
    if !fast || it.insn.addr_mask != wide || !it.insn.has(prefix::REP | prefix::REPNE) {
        it.make_call();
        return;
    }
    // What is left to the interpreter may be suspended and repeated, which leads elsewhere than behind it.
    (it.end, it.faults, it.barrier) = (false, true, true);
}

/// REP MOVS and REP STOS. In each turn of a loop, the elements that lie in one page of each operand; the interpreter can
/// take over between two turns.
pub fn rep(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let (shift, movs) = form(it.i.code()).ok_or(Unsupported)?;
    if !e.options.rep || !e.options.inline_tlb {
        return Err(Unsupported);
    }
    e.before_clobber();
    e.check_budget_here();
    e.windows.clear();
    e.truncate(movs);
    let slow = e.slow_label(e.k);
    let (turn, done) = (e.a.new_dynamic_label(), e.a.new_dynamic_label());
    dynasm!(e.a ; .arch x64
        ; test rcx, rcx
        ; jz =>done
        ; mov rax, [rsp + CPU]
        ; test DWORD [rax + system::RFLAGS], bit::DF as i32
        ; jnz =>slow
        ; =>turn
    );
    e.page(&operand(Seg::Es as u8, RDI, true), slow)?;
    dynasm!(e.a ; .arch x64 ; mov [BYTE rsp + TO], rax);
    if movs {
        dynasm!(e.a ; .arch x64 ; mov [BYTE rsp + LEFT], r15);
        e.page(&operand(it.insn.seg, RSI, false), slow)?;
        dynasm!(e.a ; .arch x64
            ; mov [BYTE rsp + FROM], rax
            ; cmp r15, [BYTE rsp + LEFT]
            ; cmova r15, [BYTE rsp + LEFT]
        );
    }
    e.count(shift, slow);
    e.run(shift, movs);
    dynasm!(e.a ; .arch x64
        ; mov rcx, [BYTE rsp + LEFT]
        ; test rcx, rcx
        ; jnz =>turn
        // The block has counted one already.
        ; add r12, 1
        ; =>done
    );
    Ok(())
}

/// Where, in the place of windows, the host addresses are kept, then what the index registers become; and how many bytes
/// the other page has, then what becomes of the count.
const TO: i8 = OPEN;
const FROM: i8 = OPEN + 8;
const LEFT: i8 = OPEN + 16;
const _: () = assert!(WINDOWS >= 3);

/// The bytes from where an index register points to.
fn operand(seg: u8, base: usize, write: bool) -> MemRef {
    MemRef { seg, base: base as u8, index: ZERO, scale: 0, disp: 0, size: 1, write, aligned: false }
}

impl Emitter<'_> {
    /// Outside 64-bit mode the count and index registers are truncated, whatever happens then.
    fn truncate(&mut self, movs: bool) {
        if self.is64() {
            return;
        }
        dynasm!(self.a ; .arch x64 ; mov ecx, ecx ; mov edi, edi);
        if movs {
            dynasm!(self.a ; .arch x64 ; mov esi, esi);
        }
    }

    /// How many elements fit into the R15 bytes left, into RCX and off the budget; the rest of the count aside. To `slow`
    /// if there is none, or the budget does not allow them.
    fn count(&mut self, shift: u8, slow: DynamicLabel) {
        if shift != 0 {
            dynasm!(self.a ; .arch x64 ; shr r15, shift as i8);
        }
        dynasm!(self.a ; .arch x64
            ; cmp r15, rcx
            ; cmova r15, rcx
            ; test r15, r15
            ; jz =>slow
            ; cmp r12, r15
            ; jl =>slow
            ; sub r12, r15
            ; sub rcx, r15
            ; mov [BYTE rsp + LEFT], rcx
            ; mov rcx, r15
        );
    }

    /// Moves or stores RCX elements and moves the index registers on.
    fn run(&mut self, shift: u8, movs: bool) {
        self.behind(7, shift);
        dynasm!(self.a ; .arch x64 ; mov rdi, [BYTE rsp + TO] ; mov [BYTE rsp + TO], rax);
        if movs {
            self.behind(6, shift);
            dynasm!(self.a ; .arch x64 ; mov rsi, [BYTE rsp + FROM] ; mov [BYTE rsp + FROM], rax);
        } else {
            dynasm!(self.a ; .arch x64 ; mov rax, r14);
        }
        match (movs, shift) {
            (true, 0) => dynasm!(self.a ; .arch x64 ; rep movsb),
            (true, 1) => dynasm!(self.a ; .arch x64 ; rep movsw),
            (true, 2) => dynasm!(self.a ; .arch x64 ; rep movsd),
            (true, _) => dynasm!(self.a ; .arch x64 ; rep movsq),
            (false, 0) => dynasm!(self.a ; .arch x64 ; rep stosb),
            (false, 1) => dynasm!(self.a ; .arch x64 ; rep stosw),
            (false, 2) => dynasm!(self.a ; .arch x64 ; rep stosd),
            (false, _) => dynasm!(self.a ; .arch x64 ; rep stosq),
        }
        dynasm!(self.a ; .arch x64 ; mov rdi, [BYTE rsp + TO]);
        if movs {
            dynasm!(self.a ; .arch x64 ; mov rsi, [BYTE rsp + FROM]);
        }
    }

    /// What index register `h` is after RCX elements, into RAX. RFLAGS stay.
    fn behind(&mut self, h: u8, shift: u8) {
        match shift {
            0 => dynasm!(self.a ; .arch x64 ; lea rax, [Rq(h) + rcx]),
            1 => dynasm!(self.a ; .arch x64 ; lea rax, [Rq(h) + rcx * 2]),
            2 => dynasm!(self.a ; .arch x64 ; lea rax, [Rq(h) + rcx * 4]),
            _ => dynasm!(self.a ; .arch x64 ; lea rax, [Rq(h) + rcx * 8]),
        }
        if !self.is64() {
            dynasm!(self.a ; .arch x64 ; mov eax, eax);
        }
    }
}
