//! x87, MMX and SSE state. Source: SDM vol. 1, chapters 8 to 10.

/// x87 registers, control and status, and the SSE registers with MXCSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// Physical registers R0..R7 as (64-bit significand, sign and exponent). MMX registers alias the significands.
    pub r: [(u64, u16); 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included in bits 11-13.
    pub fsw: u16,
    /// Abridged tag word as in FXSAVE: bit n set = physical register n is not empty.
    pub ftw: u8,
    /// Opcode of the last non-control x87 instruction (11 bits).
    pub fop: u16,
    /// Instruction pointer of the last non-control x87 instruction, and its CS selector.
    pub fip: u64,
    pub fcs: u16,
    /// Data pointer of its memory operand, and that segment's selector.
    pub fdp: u64,
    pub fds: u16,
    pub xmm: [u128; 16],
    pub mxcsr: u32,
}

impl Fpu {
    /// Power-on state (SDM vol. 3A, table 9-1).
    pub const fn new() -> Self {
        Self {
            r: [(0, 0); 8],
            fcw: 0x40,
            fsw: 0,
            ftw: 0xff,
            fop: 0,
            fip: 0,
            fcs: 0,
            fdp: 0,
            fds: 0,
            xmm: [0; 16],
            mxcsr: 0x1f80,
        }
    }
}

impl Default for Fpu {
    fn default() -> Self { Self::new() }
}

crate::impl_field!(Fpu { r, fcw, fsw, ftw, fop, fip, fcs, fdp, fds, xmm, mxcsr });
