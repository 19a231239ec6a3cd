//! x87, MMX and SSE state, and the x87 register stack. Source: SDM vol. 1, chapters 8 to 10.

/// Status-word bits (SDM vol. 1, 8.1.3).
pub mod sw {
    pub const IE: u16 = 1;
    pub const DE: u16 = 2;
    pub const ZE: u16 = 4;
    pub const OE: u16 = 8;
    pub const UE: u16 = 16;
    pub const PE: u16 = 32;
    /// Stack fault.
    pub const SF: u16 = 64;
    /// Exception summary: an unmasked exception is pending.
    pub const ES: u16 = 128;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP: u16 = 7 << 11;
    pub const C3: u16 = 1 << 14;
    /// Busy: a copy of ES.
    pub const B: u16 = 1 << 15;
    /// The six exception flags.
    pub const FLAGS: u16 = 0x3f;
    /// The condition codes.
    pub const CC: u16 = C0 | C1 | C2 | C3;
}

/// An 80-bit register as (64-bit significand, sign and exponent).
pub type Raw80 = (u64, u16);

/// The QNaN floating-point indefinite: the masked response to invalid operations.
pub const INDEFINITE: Raw80 = (0xc000_0000_0000_0000, 0xffff);

/// x87 registers, control and status, and the SSE registers with MXCSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// Physical registers R0..R7 as (64-bit significand, sign and exponent). MMX registers alias the significands.
    pub r: [Raw80; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included in bits 11-13.
    pub fsw: u16,
    /// Abridged tag word as in FXSAVE: bit n set = physical register n is not empty.
    pub ftw: u8,
    /// Opcode of the last non-control x87 instruction that raised an unmasked exception (11 bits).
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

    /// FNINIT: the register contents stay, all tagged empty.
    pub fn init(&mut self) {
        (self.fcw, self.fsw, self.ftw, self.fop) = (0x37f, 0, 0, 0);
        (self.fip, self.fcs, self.fdp, self.fds) = (0, 0, 0, 0);
    }

    /// Physical number of ST(0).
    #[inline(always)]
    pub const fn top(&self) -> u8 {
        (self.fsw >> 11 & 7) as u8
    }
    #[inline(always)]
    pub fn set_top(&mut self, top: u8) {
        self.fsw = self.fsw & !sw::TOP | u16::from(top & 7) << 11
    }
    /// Physical number of ST(`i`).
    #[inline(always)]
    pub const fn physical(&self, i: u8) -> usize {
        (self.top().wrapping_add(i) & 7) as usize
    }
    #[inline(always)]
    pub const fn is_empty(&self, i: u8) -> bool {
        self.ftw >> self.physical(i) & 1 == 0
    }
    /// Contents of ST(`i`), whatever its tag.
    #[inline(always)]
    pub const fn st(&self, i: u8) -> Raw80 {
        self.r[self.physical(i)]
    }
    /// Writes ST(`i`) and tags it valid.
    #[inline(always)]
    pub fn set_st(&mut self, i: u8, v: Raw80) {
        let n = self.physical(i);
        self.r[n] = v;
        self.ftw |= 1 << n;
    }
    /// Tags ST(`i`) empty.
    #[inline(always)]
    pub fn free(&mut self, i: u8) {
        self.ftw &= !(1 << self.physical(i))
    }
    /// Decrements TOP and writes the new ST(0). The caller has checked that it is empty.
    #[inline(always)]
    pub fn push(&mut self, v: Raw80) {
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, v);
    }
    /// Tags ST(0) empty and increments TOP.
    #[inline(always)]
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }

    /// Exception flags that are not masked in the control word.
    #[inline(always)]
    pub const fn unmasked(&self) -> u16 {
        !self.fcw & sw::FLAGS
    }
    /// Sets exception flags (and SF), and with them the summary.
    #[inline(always)]
    pub fn raise(&mut self, flags: u16) {
        self.fsw |= flags;
        self.summarize();
    }
    /// Recomputes ES and B from flags and masks: after a change of either.
    #[inline(always)]
    pub fn summarize(&mut self) {
        let pending = self.fsw & self.unmasked() != 0;
        self.fsw = self.fsw & !(sw::ES | sw::B) | if pending { sw::ES | sw::B } else { 0 };
    }
    /// Replaces the condition codes in `mask`.
    #[inline(always)]
    pub fn set_cc(&mut self, mask: u16, value: u16) {
        self.fsw = self.fsw & !mask | value & mask
    }

    /// The full tag word of FNSTENV and FNSAVE: two bits a physical register, computed from the contents.
    pub fn tag_word(&self) -> u16 {
        (0..8).fold(0, |w, n| {
            let (sig, se) = self.r[n];
            let tag = match se & 0x7fff {
                _ if self.ftw >> n & 1 == 0 => 3,
                0 if sig == 0 => 1,
                0 | 0x7fff => 2,
                _ if sig >> 63 == 0 => 2,
                _ => 0,
            };
            w | tag << (2 * n)
        })
    }

    /// Takes over a full tag word: only empty or not empty is kept.
    pub fn set_tag_word(&mut self, w: u16) {
        self.ftw = (0..8).fold(0, |t, n| t | u8::from(w >> (2 * n) & 3 != 3) << n);
    }
}

impl Default for Fpu {
    fn default() -> Self {
        Self::new()
    }
}

crate::impl_field!(Fpu { r, fcw, fsw, ftw, fop, fip, fcs, fdp, fds, xmm, mxcsr });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_word_follows_contents() {
        let mut f = Fpu::new();
        f.init();
        assert_eq!(f.tag_word(), 0xffff);
        f.push((1 << 63, 0x3fff)); // R7: one
        f.push((0, 0x8000)); // R6: minus zero
        f.push(INDEFINITE); // R5
        f.push((1, 0)); // R4: denormal
        f.push((1, 0x3fff)); // R3: unnormal
        assert_eq!(f.tag_word(), 0b00_01_10_10_10_11_11_11);
        assert_eq!(f.ftw, 0xf8);
        f.set_tag_word(0b00_11_10_11_11_11_11_01);
        assert_eq!(f.ftw, 0b1010_0001);
    }

    #[test]
    fn stack_wraps() {
        let mut f = Fpu::new();
        f.init();
        f.push((7, 1));
        assert_eq!((f.top(), f.physical(1), f.is_empty(0), f.is_empty(1)), (7, 0, false, true));
        f.pop();
        assert_eq!((f.top(), f.ftw), (0, 0));
    }

    #[test]
    fn summary_follows_masks() {
        let mut f = Fpu::new();
        f.init();
        f.raise(sw::PE);
        assert_eq!(f.fsw, sw::PE);
        f.fcw &= !sw::PE;
        f.summarize();
        assert_eq!(f.fsw, sw::PE | sw::ES | sw::B);
    }
}
