//! The instruction set: one row an instruction form, in family files named after the manual's groups.
//! Owns the row table; decoding is iced-x86's, semantics are the rows' `exec`.

mod gate;
pub mod insn;
pub mod operand;
pub mod traits;

// Integer, user level.
pub mod alu;
pub mod bits;
pub mod bmi;
pub mod branch;
pub mod data;
pub mod flagops;
pub mod muldiv;
pub mod shift;
pub mod stack;
pub mod string;
// System.
pub mod control;
pub mod desctable;
pub mod farxfer;
pub mod int;
pub mod iret;
pub mod msrs;
pub mod portio;
pub mod segload;
pub mod syscall;
pub mod sysflags;
pub mod system;
// Floating point and SIMD.
pub mod mmx;
pub mod sse;
pub mod x87;
pub mod xsave;

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::translate::emit::{Emitter, Unsupported};
use crate::translate::unit::Item;
use crate::vcpu::cpuid::CpuModel;
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use insn::{ExecFn, Insn};
use std::sync::LazyLock;

/// How the translator treats a form.
#[derive(Clone, Copy, Debug)]
pub enum Translate {
    /// The block calls `exec`.
    Call,
    /// Same ISA: re-encode with registers renamed and the memory operand redirected.
    Identical,
    /// A sequence of its own.
    Emit(EmitFn),
}

/// Emits the host code of an instruction. [`Unsupported`]: this operand combination is called after all.
pub type EmitFn = fn(&mut Emitter<'_>, &Item) -> Result<(), Unsupported>;

/// Ends the basic block after this instruction: control transfers, and whatever may change mode, mapping, interrupt
/// state, or need the engine's attention.
pub const END: u8 = 1;
/// LOCK is allowed on this form's memory destination.
pub const LOCKABLE: u8 = 2;
/// A memory operand is not accessed.
pub const NO_ACCESS: u8 = 4;
/// A 16-byte memory operand raises #GP unless it is aligned.
pub const ALIGNED: u8 = 8;

/// One instruction form.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub code: Code,
    pub exec: ExecFn,
    pub translate: Translate,
    /// [`END`], [`LOCKABLE`], [`NO_ACCESS`], [`ALIGNED`].
    pub attrs: u8,
}

/// A row executed by `exec`.
pub const fn row(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Call, attrs: 0 }
}
/// A row that ends its block.
pub const fn end(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Call, attrs: END }
}
/// A row whose memory form may carry LOCK.
pub const fn lockable(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Call, attrs: LOCKABLE }
}
/// A row translated identically.
pub const fn same(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Identical, attrs: 0 }
}
/// A row translated identically whose memory operand must be aligned.
pub const fn aligned(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Identical, attrs: ALIGNED }
}
/// A row translated identically whose memory form may carry LOCK.
pub const fn locked(code: Code, exec: ExecFn) -> Row {
    Row { code, exec, translate: Translate::Identical, attrs: LOCKABLE }
}

impl Row {
    /// The same row with a translation of its own.
    pub const fn emit(self, f: EmitFn) -> Self {
        Self { translate: Translate::Emit(f), ..self }
    }
}

/// All rows of all families.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [
        control::ROWS,
        desctable::ROWS,
        int::ROWS,
        iret::ROWS,
        msrs::ROWS,
        syscall::ROWS,
        sysflags::ROWS,
        alu::ROWS,
        bits::ROWS,
        bmi::ROWS,
        branch::ROWS,
        data::ROWS,
        flagops::ROWS,
        muldiv::ROWS,
        shift::ROWS,
        stack::ROWS,
        string::ROWS,
        farxfer::ROWS,
        portio::ROWS,
        segload::ROWS,
        system::ROWS,
        sse::approx::ROWS,
        sse::float::ROWS,
        sse::gpr::ROWS,
        sse::lanes::ROWS,
        sse::mov::ROWS,
        sse::mxcsr::ROWS,
        sse::packed::ROWS,
        sse::strings::ROWS,
        mmx::mov::ROWS,
        mmx::native::ROWS,
        x87::arith::ROWS,
        x87::compare::ROWS,
        x87::control::ROWS,
        x87::convert::ROWS,
        x87::env::ROWS,
        x87::remainder::ROWS,
        x87::stack::ROWS,
        x87::transcendental::ROWS,
        xsave::ROWS,
    ]
    .into_iter()
    .flatten()
}

static TABLE: LazyLock<Vec<Option<&'static Row>>> = LazyLock::new(|| {
    let mut t = vec![None; Code::values().len()];
    for r in rows() {
        if t[r.code as usize].replace(r).is_some() {
            crate::bug!("two rows for {:?}", r.code);
        }
    }
    t
});

/// The row of a form, if it is implemented.
pub fn lookup(code: Code) -> Option<&'static Row> {
    TABLE[code as usize]
}

/// Executes an undefined or unimplemented form: #UD.
pub fn undefined(_ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    Err(Exception::ud())
}

/// Executes an instruction longer than 15 bytes: #GP(0).
pub fn too_long(_ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    Err(Exception::gp(0))
}

/// Options the guest's CPU decodes with.
pub const DECODER_OPTIONS: u32 = DecoderOptions::NONE;

/// Result of decoding one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    pub insn: Insn,
    /// Row attributes ([`END`]); an undefined instruction ends its block.
    pub attrs: u8,
    pub translate: Translate,
}

/// Whether what the decoder refuses begins an instruction of more than 15 bytes. It does not say so when it has 15;
/// but such an instruction begins with a prefix, and without that it wants more than the 14 bytes left.
fn longer_than_15(window: &[u8], bits: u8) -> bool {
    let (15, Some(rest)) = (window.len(), window.get(1..)) else { return false };
    let mut d = Decoder::new(u32::from(bits), rest, DECODER_OPTIONS);
    d.decode().is_invalid() && d.last_error() == DecoderError::NoMoreBytes
}

/// Decodes the instruction at `rip` from `bytes`. `None`: more bytes are needed than `bytes` has (fetch the next page).
#[inline]
pub fn decode(bytes: &[u8], bits: u8, rip: u64, model: CpuModel) -> Option<Decoded> {
    decode_full(bytes, bits, rip, model).map(|(d, _)| d)
}

/// Does the instruction at the start of `bytes`, which end where a page does, reach into the next page?
pub fn leaves_page(bytes: &[u8], bits: u8, rip: u64, model: CpuModel) -> bool {
    bytes.len() < 15 && decode(bytes, bits, rip, model).is_none()
}

/// [`decode`], with iced-x86's own form of the instruction.
pub fn decode_full(bytes: &[u8], bits: u8, rip: u64, model: CpuModel) -> Option<(Decoded, Instruction)> {
    let window = &bytes[..bytes.len().min(15)];
    let mut d = Decoder::with_ip(u32::from(bits), window, rip, DECODER_OPTIONS);
    let mut i = Instruction::default();
    d.decode_out(&mut i);
    let translate = Translate::Call;
    if i.is_invalid() {
        if d.last_error() == DecoderError::NoMoreBytes {
            return None;
        }
        let exec = if longer_than_15(window, bits) { too_long } else { undefined as ExecFn };
        return Some((Decoded { insn: Insn::new(&i, bits, exec), attrs: END, translate }, i));
    }
    let (exec, attrs, translate) = match lookup(i.code()).filter(|_| gate::has(model, i.code())) {
        Some(r) => (r.exec, r.attrs, r.translate),
        None => (undefined as ExecFn, END, translate),
    };
    Some((Decoded { insn: Insn::new(&i, bits, exec), attrs, translate }, i))
}
