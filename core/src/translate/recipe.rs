//! Recipes: how the guest's arithmetic flags follow from registers, for a fault or an exit in the middle of a block whose
//! flags nobody else will ever see. So such flags cost nothing unless somebody looks.

use crate::isa::alu::arith::{add, logic, sub};
use crate::isa::traits::Width;
use crate::vcpu::flags::bit;

/// What produced the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Producer {
    /// CMP: a - b, neither written.
    Cmp,
    /// TEST: a & b.
    Test,
    /// ADD: a is the sum.
    Add,
    /// SUB: a is the difference.
    Sub,
    /// AND, OR, XOR: a is the result.
    Logic,
    /// NEG: a is the result.
    Neg,
    /// INC and DEC: a is the result; CF is from before.
    Inc,
    Dec,
}

/// The second operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    Reg(u8),
    Imm(u64),
}

/// An instruction that wrote flags, and what it left in the general registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub producer: Producer,
    /// Operand size in bytes: 1, 2, 4 or 8. Only low bytes of registers.
    pub size: u8,
    pub a: u8,
    pub b: Operand,
}

/// How to compute the flags from the general registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipe {
    pub last: Step,
    /// Where CF is from, if the last did not write it.
    pub carry: Option<Step>,
}

impl Recipe {
    /// The flags after `last`, which writes general registers `written`, where `before` tells those before it.
    pub fn after(last: Step, before: Option<Self>, written: u16) -> Option<Self> {
        if !matches!(last.producer, Producer::Inc | Producer::Dec) {
            return Some(Self { last, carry: None });
        }
        let before = before?;
        let carry = before.carry.unwrap_or(before.last);
        (!carry.uses(written)).then_some(Self { last, carry: Some(carry) })
    }

    /// Does the recipe use a general register in `mask`?
    pub fn uses(&self, mask: u16) -> bool {
        self.last.uses(mask) || self.carry.is_some_and(|c| c.uses(mask))
    }

    /// The arithmetic flags.
    pub fn flags(&self, gpr: &[u64; 21]) -> u64 {
        let flags = self.last.flags(gpr);
        match self.carry {
            Some(c) => flags & !bit::CF | c.flags(gpr) & bit::CF,
            None => flags,
        }
    }
}

impl Step {
    fn uses(&self, mask: u16) -> bool {
        let b = match self.b {
            Operand::Reg(r) => 1 << r,
            Operand::Imm(_) => 0,
        };
        (1 << self.a | b) & mask != 0
    }

    /// The arithmetic flags; after INC and DEC, all but CF.
    fn flags(&self, gpr: &[u64; 21]) -> u64 {
        match self.size {
            1 => self.sized::<u8>(gpr),
            2 => self.sized::<u16>(gpr),
            4 => self.sized::<u32>(gpr),
            _ => self.sized::<u64>(gpr),
        }
    }

    fn sized<W: Width>(&self, gpr: &[u64; 21]) -> u64 {
        let a = gpr[usize::from(self.a)] & W::MASK;
        let b = W::MASK
            & match self.b {
                Operand::Reg(r) => gpr[usize::from(r)],
                Operand::Imm(v) => v,
            };
        match self.producer {
            Producer::Cmp => sub::<W>(a, b, 0).1,
            Producer::Test => logic::<W>(a & b).1,
            Producer::Add => add::<W>(a.wrapping_sub(b) & W::MASK, b, 0).1,
            Producer::Sub => sub::<W>(a.wrapping_add(b) & W::MASK, b, 0).1,
            Producer::Logic => logic::<W>(a).1,
            Producer::Neg => sub::<W>(0, a.wrapping_neg() & W::MASK, 0).1,
            Producer::Inc => add::<W>(a.wrapping_sub(1) & W::MASK, 1, 0).1,
            Producer::Dec => sub::<W>(a.wrapping_add(1) & W::MASK, 1, 0).1,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn gpr(a: u64, b: u64) -> [u64; 21] {
        let mut g = [0; 21];
        (g[0], g[1]) = (a, b);
        g
    }

    #[test]
    fn test_flags_follow_from_what_is_left_in_the_registers() {
        let values = [0u64, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63];
        for a in values {
            for b in values {
                let step = |producer| Step { producer, size: 4, a: 0, b: Operand::Reg(1) };
                let r = |producer| Recipe { last: step(producer), carry: None };
                let (x, y) = (a & 0xffff_ffff, b & 0xffff_ffff);
                assert_eq!(r(Producer::Cmp).flags(&gpr(a, b)), sub::<u32>(x, y, 0).1);
                assert_eq!(r(Producer::Test).flags(&gpr(a, b)), logic::<u32>(x & y).1);
                let (sum, f) = add::<u32>(x, y, 0);
                assert_eq!(r(Producer::Add).flags(&gpr(sum, b)), f);
                let (difference, f) = sub::<u32>(x, y, 0);
                assert_eq!(r(Producer::Sub).flags(&gpr(difference, b)), f);
                let (negated, f) = sub::<u32>(0, x, 0);
                assert_eq!(r(Producer::Neg).flags(&gpr(negated, 0)), f);
                // ADD, then INC of another register.
                let carry = Step { producer: Producer::Add, size: 8, a: 2, b: Operand::Reg(1) };
                let last = Step { producer: Producer::Inc, size: 4, a: 0, b: Operand::Imm(0) };
                let before = Some(Recipe { last: carry, carry: None });
                let both = Recipe::after(last, before, 1).unwrap();
                let (wide, cf) = add::<u64>(a, b, 0);
                let (up, f) = add::<u32>(x, 1, 0);
                let mut g = gpr(up, b);
                g[2] = wide;
                assert_eq!(both.flags(&g), f & !bit::CF | cf & bit::CF);
                assert_eq!(Recipe::after(last, before, 4), None, "the sum is gone");
                assert_eq!(Recipe::after(last, None, 1), None);
            }
        }
    }
}
