//! Conditions (Jcc, CMOVcc, SETcc numbering) and the instructions on flags: CLC, STC, CMC, CLD, STD, LAHF, SAHF, SETcc.

use super::insn::Insn;
use super::traits::{emitted, rows};
use super::{Row, row, same};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::translate::{special, system};
use crate::vcpu::flags::Flags;
use crate::vcpu::flags::bit::{AF, CF, DF, FIXED, OF, PF, SF, ZF};
use crate::vcpu::gpr::RAX;
use iced_x86::Code;

/// Condition codes by number (SDM vol. 1, appendix B).
pub mod cc {
    pub const O: u8 = 0;
    pub const NO: u8 = 1;
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const NS: u8 = 9;
    pub const P: u8 = 10;
    pub const NP: u8 = 11;
    pub const L: u8 = 12;
    pub const GE: u8 = 13;
    pub const LE: u8 = 14;
    pub const G: u8 = 15;
}
use cc::*;

/// Does condition `CC` hold?
#[inline(always)]
pub fn holds<const CC: u8>(f: Flags) -> bool {
    let less = (f.0 >> 7) ^ (f.0 >> 11); // SF xor OF in bit 0
    let yes = match CC >> 1 {
        0 => f.has(OF),
        1 => f.has(CF),
        2 => f.has(ZF),
        3 => f.has(CF | ZF),
        4 => f.has(SF),
        5 => f.has(PF),
        6 => less & 1 != 0,
        _ => f.has(ZF) | (less & 1 != 0),
    };
    yes ^ (CC & 1 != 0)
}

fn set<const CC: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = u8::from(holds::<CC>(ctx.cpu.flags));
    ctx.put_rm(i, v)
}

/// Sets (`ON`) or clears the flags in `MASK`.
fn put<const MASK: u64, const ON: bool>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.cpu.flags.put(MASK, ON);
    Ok(())
}

fn clc(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    put::<CF, false>(ctx, i)
}
fn stc(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    put::<CF, true>(ctx, i)
}
fn cld(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    put::<DF, false>(ctx, i)
}
fn std(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    put::<DF, true>(ctx, i)
}

fn cmc(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.cpu.flags.0 ^= CF;
    Ok(())
}

/// The flags LAHF and SAHF move.
const AH_FLAGS: u64 = SF | ZF | AF | PF | CF;

fn lahf(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let f = (ctx.cpu.flags.0 & AH_FLAGS) | FIXED;
    let r = &mut ctx.cpu.gpr[RAX];
    *r = (*r & !0xff00) | (f << 8);
    Ok(())
}

fn sahf(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let ah = ctx.cpu.gpr[RAX] >> 8;
    ctx.cpu.flags.replace(AH_FLAGS, ah);
    Ok(())
}

emitted! {
    lahfs = row, special::lahf;
    sahfs = row, special::sahf;
    directions = row, system::direction;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    same clc: Clc;
    same stc: Stc;
    same cmc: Cmc;
    directions cld: Cld;
    directions std: Std;
    lahfs lahf: Lahf;
    sahfs sahf: Sahf;
    same set<O>: Seto_rm8;
    same set<NO>: Setno_rm8;
    same set<B>: Setb_rm8;
    same set<AE>: Setae_rm8;
    same set<E>: Sete_rm8;
    same set<NE>: Setne_rm8;
    same set<BE>: Setbe_rm8;
    same set<A>: Seta_rm8;
    same set<S>: Sets_rm8;
    same set<NS>: Setns_rm8;
    same set<P>: Setp_rm8;
    same set<NP>: Setnp_rm8;
    same set<L>: Setl_rm8;
    same set<GE>: Setge_rm8;
    same set<LE>: Setle_rm8;
    same set<G>: Setg_rm8;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_conditions_follow_the_manual() {
        for f in (0..0x1000u64).filter(|f| f & !(OF | CF | ZF | SF | PF) == 0) {
            let f = Flags(f | FIXED);
            let (o, c, z, s, p) = (f.has(OF), f.has(CF), f.has(ZF), f.has(SF), f.has(PF));
            assert_eq!(holds::<O>(f), o);
            assert_eq!(holds::<NO>(f), !o);
            assert_eq!(holds::<B>(f), c);
            assert_eq!(holds::<AE>(f), !c);
            assert_eq!(holds::<E>(f), z);
            assert_eq!(holds::<NE>(f), !z);
            assert_eq!(holds::<BE>(f), c || z);
            assert_eq!(holds::<A>(f), !c && !z);
            assert_eq!(holds::<S>(f), s);
            assert_eq!(holds::<NS>(f), !s);
            assert_eq!(holds::<P>(f), p);
            assert_eq!(holds::<NP>(f), !p);
            assert_eq!(holds::<L>(f), s != o);
            assert_eq!(holds::<GE>(f), s == o);
            assert_eq!(holds::<LE>(f), z || s != o);
            assert_eq!(holds::<G>(f), !z && s == o);
        }
    }
}
