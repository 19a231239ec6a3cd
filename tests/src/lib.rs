//! Support for the property and conformance tests.

#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod asm;
pub mod fuzz;
pub mod gdb;
pub mod guests;
pub mod initramfs;
pub mod ins;
pub mod json;
pub mod lz4;
pub mod native;
pub mod program;
pub mod random;
pub mod script;
pub mod small;
pub mod symfile;
pub mod ticker;

/// What an instruction reads and writes besides memory: the part of a vCPU that user code sees.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    /// The arithmetic flags and DF; the rest of RFLAGS is as user code has it.
    pub flags: u64,
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word: bit n set = physical register n is not empty.
    pub ftw: u8,
    /// ST(0)..ST(7): significand, sign and exponent.
    pub st: [(u64, u16); 8],
    pub mxcsr: u32,
    pub xmm: [u128; 16],
}

impl Default for State {
    /// Everything zero, but the FPU as FNINIT and the reset leave it: every exception masked, all registers empty.
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: native::INSN,
            flags: 0,
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            st: [(0, 0); 8],
            mxcsr: 0x1f80,
            xmm: [0; 16],
        }
    }
}

/// Flags that [`State::flags`] carries: CF PF AF ZF SF DF OF.
pub const USER_FLAGS: u64 = 0xcd5;

/// How an instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Retired,
    /// A fault, by the class a signal can tell apart.
    Fault(Fault),
}

/// Classes of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// #UD.
    Undefined,
    /// #DE, #MF, #XM.
    Arithmetic,
    /// #GP, #SS, #PF and the rest.
    Memory,
}
