//! INC, DEC, NEG, NOT.

use super::arith::{add, sub};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::traits::{Width, rows};
use crate::isa::{Row, locked, same};
use crate::vcpu::flags::bit::{ARITH, CF};
use iced_x86::Code;

/// A read-modify-write operation on one operand.
pub trait Unary {
    /// Flags it changes.
    const FLAGS: u64;
    fn apply<W: Width>(a: u64) -> (u64, u64);
}

macro_rules! unary {
    ($($name:ident, $flags:expr, |$a:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl Unary for $name {
            const FLAGS: u64 = $flags;
            #[inline(always)]
            fn apply<W: Width>($a: u64) -> (u64, u64) { $e }
        }
    )*};
}
unary! {
    Inc, ARITH & !CF, |a| add::<W>(a, 1, 0);
    Dec, ARITH & !CF, |a| sub::<W>(a, 1, 0);
    Neg, ARITH, |a| sub::<W>(0, a, 0);
    Not, 0, |a| (!a, 0);
}

fn unary<O: Unary, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.update_rm(i, |ctx, a: W| {
        let (r, f) = O::apply::<W>(a.u());
        if O::FLAGS != 0 {
            ctx.cpu.flags.replace(O::FLAGS, f);
        }
        W::of(r)
    })
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    locked unary<Inc> 4: Inc_rm8 Inc_rm16 Inc_rm32 Inc_rm64;
    same unary<Inc> u16: Inc_r16;
    same unary<Inc> u32: Inc_r32;
    locked unary<Dec> 4: Dec_rm8 Dec_rm16 Dec_rm32 Dec_rm64;
    same unary<Dec> u16: Dec_r16;
    same unary<Dec> u32: Dec_r32;
    locked unary<Neg> 4: Neg_rm8 Neg_rm16 Neg_rm32 Neg_rm64;
    locked unary<Not> 4: Not_rm8 Not_rm16 Not_rm32 Not_rm64;
};
