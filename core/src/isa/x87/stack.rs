//! Register moves and stack control: FLD ST(i), FST(P) ST(i), FXCH, FCMOVcc, FFREE, FINCSTP, FDECSTP, FNOP.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row, same};
use crate::vcpu::flags::bit;
use crate::vcpu::fpu::{INDEFINITE, sw};
use iced_x86::Code as C;

fn fld(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    if f.is_empty(i.rm) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let v = f.st(i.rm);
    ctx.x87_push(v);
    Ok(())
}

fn fst<const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let v = if ctx.cpu.fpu.is_empty(0) {
        if !ctx.x87_underflow() {
            return Ok(());
        }
        INDEFINITE
    } else {
        ctx.cpu.fpu.set_cc(sw::C1, 0);
        ctx.cpu.fpu.st(0)
    };
    ctx.cpu.fpu.set_st(i.rm, v);
    if POP {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

/// FSTPNCE (D9 D8+i, undocumented): FSTP that only pops if ST(0) is empty.
fn fstpnce(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &mut ctx.cpu.fpu;
    f.set_cc(sw::C1, 0);
    if !f.is_empty(0) {
        f.set_st(i.rm, f.st(0));
    }
    f.pop();
    Ok(())
}

fn fxch(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    let value = |n| if f.is_empty(n) { INDEFINITE } else { f.st(n) };
    let (a, b) = (value(0), value(i.rm));
    if (f.is_empty(0) || f.is_empty(i.rm)) && !ctx.x87_underflow() {
        return Ok(());
    }
    let f = &mut ctx.cpu.fpu;
    f.set_cc(sw::C1, 0);
    f.set_st(0, b);
    f.set_st(i.rm, a);
    Ok(())
}

/// FCMOVcc: moves if any of `flags` is set (or, with `NOT`, none).
fn fcmov<const NOT: bool>(ctx: &mut Ctx<'_>, i: &Insn, flags: u64) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    if f.is_empty(0) || f.is_empty(i.rm) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    if ctx.cpu.flags.has(flags) != NOT {
        let v = f.st(i.rm);
        ctx.cpu.fpu.set_st(0, v);
    }
    Ok(())
}

/// FFREE, and with `POP` the undocumented FFREEP.
fn ffree<const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    ctx.cpu.fpu.free(i.rm);
    if POP {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

/// FINCSTP, FDECSTP: TOP moves, tags stay.
fn rotate<const BY: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &mut ctx.cpu.fpu;
    f.set_top(f.top().wrapping_add(BY));
    f.set_cc(sw::C1, 0);
    Ok(())
}

fn fnop(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Fld_sti, fld),
    same(C::Fst_sti, fst::<false>),
    same(C::Fstp_sti, fst::<true>),
    row(C::Fstpnce_sti, fstpnce),
    row(C::Fstp_sti_DFD0, fst::<true>),
    row(C::Fstp_sti_DFD8, fst::<true>),
    same(C::Fxch_st0_sti, fxch),
    row(C::Fxch_st0_sti_DDC8, fxch),
    row(C::Fxch_st0_sti_DFC8, fxch),
    same(C::Fcmovb_st0_sti, |c, i| fcmov::<false>(c, i, bit::CF)),
    same(C::Fcmove_st0_sti, |c, i| fcmov::<false>(c, i, bit::ZF)),
    same(C::Fcmovbe_st0_sti, |c, i| fcmov::<false>(c, i, bit::CF | bit::ZF)),
    same(C::Fcmovu_st0_sti, |c, i| fcmov::<false>(c, i, bit::PF)),
    same(C::Fcmovnb_st0_sti, |c, i| fcmov::<true>(c, i, bit::CF)),
    same(C::Fcmovne_st0_sti, |c, i| fcmov::<true>(c, i, bit::ZF)),
    same(C::Fcmovnbe_st0_sti, |c, i| fcmov::<true>(c, i, bit::CF | bit::ZF)),
    same(C::Fcmovnu_st0_sti, |c, i| fcmov::<true>(c, i, bit::PF)),
    same(C::Ffree_sti, ffree::<false>),
    row(C::Ffreep_sti, ffree::<true>),
    same(C::Fincstp, rotate::<1>),
    same(C::Fdecstp, rotate::<7>),
    same(C::Fnop, fnop),
];
