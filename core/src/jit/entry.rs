//! The calls into generated code, and the table of what has been generated.
//!
//! A thunk is made once, when its instruction is first executed, and found again by its form's number (and immediate
//! byte): one load from a dense table.

#![allow(unsafe_code)]

use super::buffer::CodeBuffer;
use super::thunk::{self, Operands};
use super::x87::{self, X87Operands};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Room for every thunk there can be: some 500 forms without and 70 with an immediate byte, at most 160 bytes each.
const BUFFER: usize = 4 << 20;
/// More than the number of instruction forms.
const FORMS: usize = 8192;

type Slots = [AtomicUsize; 256];
// SAFETY: only names the ABI; `call_simd` and `x87` say why their calls are sound.
type SimdThunk = unsafe extern "sysv64" fn(*mut Operands);
type X87Thunk = unsafe extern "sysv64" fn(*mut X87Operands);
type X87Trial = unsafe extern "sysv64" fn(*mut Trial);

static PLAIN: [AtomicUsize; FORMS] = [const { AtomicUsize::new(0) }; FORMS];
static BY_IMM: [OnceLock<Box<Slots>>; FORMS] = [const { OnceLock::new() }; FORMS];
static CODE: OnceLock<Result<Mutex<CodeBuffer>, String>> = OnceLock::new();

fn code() -> &'static Result<Mutex<CodeBuffer>, String> {
    CODE.get_or_init(|| CodeBuffer::new(BUFFER).map(Mutex::new).map_err(|e| e.to_string()))
}

/// Is executable memory to be had?
pub fn available() -> Result<(), String> {
    code().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Assembles with `make` and publishes into `slot`. Two threads may race: both results are right, one is kept.
#[cold]
#[inline(never)]
fn generate(slot: &AtomicUsize, make: &dyn Fn() -> Result<Vec<u8>, String>) -> usize {
    let buffer = match code() {
        Ok(b) => b,
        Err(e) => crate::bug!("generated code without executable memory ({e}): host_support was not asked"),
    };
    let bytes = make().unwrap_or_else(|e| crate::bug!("cannot assemble a thunk: {e}"));
    let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
    let done = slot.load(Ordering::Acquire);
    if done != 0 {
        return done;
    }
    let Some(p) = buffer.publish(&bytes) else { crate::bug!("the thunk buffer is too small") };
    slot.store(p as usize, Ordering::Release);
    p as usize
}

/// Which register state a SIMD form uses besides its operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Uses {
    /// Nothing: integer and data movement.
    Nothing,
    /// MXCSR.
    Mxcsr,
}

/// Runs form `code` (no immediate) on `o`.
#[inline(always)]
pub fn simd(code: u16, uses: Uses, o: &mut Operands) {
    let slot = &PLAIN[code as usize % FORMS];
    let mut p = slot.load(Ordering::Acquire);
    if p == 0 {
        p = generate(slot, &|| thunk::assemble(code, 0, uses));
    }
    call_simd(p, o);
}

/// Runs form `code` with immediate byte `imm` on `o`.
#[inline(always)]
pub fn simd_imm(code: u16, imm: u8, uses: Uses, o: &mut Operands) {
    let slots = BY_IMM[code as usize % FORMS].get_or_init(|| Box::new([const { AtomicUsize::new(0) }; 256]));
    let slot = &slots[imm as usize];
    let mut p = slot.load(Ordering::Acquire);
    if p == 0 {
        p = generate(slot, &|| thunk::assemble(code, imm, uses));
    }
    call_simd(p, o);
}

/// Runs x87 form `code` on `o`.
#[inline(always)]
pub fn x87(code: u16, o: &mut X87Operands) {
    let slot = &PLAIN[code as usize % FORMS];
    let mut p = slot.load(Ordering::Acquire);
    if p == 0 {
        p = generate(slot, &|| x87::assemble(code));
    }
    // SAFETY: a nonzero slot of an x87 form holds the address of code `x87::assemble` made for this signature, which
    // is never freed. It touches only `*o` and caller-saved registers, leaves the x87 stack empty and the control
    // word as it was, and returns normally.
    unsafe { std::mem::transmute::<usize, X87Thunk>(p)(o) };
}

/// What one try of `x87_probe` works on.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Trial {
    pub image: super::x87_image::Image,
    /// Memory operands.
    pub memory: [u64; 2],
    /// RFLAGS afterwards.
    pub flags: u64,
}

/// Runs `bytes`, made by `x87_probe`, on `t`.
pub(super) fn x87_trial(bytes: &[u8], t: &mut Trial) {
    let p = generate(&AtomicUsize::new(0), &|| Ok(bytes.to_vec()));
    // SAFETY: `bytes` is code `x87_probe` assembled for this signature, now published and never freed. It touches only
    // `*t` and RAX, and leaves the x87 stack empty, the control word the ABI's and DF clear, since FNSAVE ends it.
    unsafe { std::mem::transmute::<usize, X87Trial>(p)(t) };
}

#[inline(always)]
fn call_simd(p: usize, o: &mut Operands) {
    // SAFETY: a nonzero slot of a SIMD form holds the address of code `thunk::assemble` made for this signature,
    // which is never freed. It touches only `*o` and caller-saved registers, leaves MXCSR's control bits as they
    // were and the x87 tags empty, and returns normally.
    unsafe { std::mem::transmute::<usize, SimdThunk>(p)(o) };
}
