//! XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::alu::arith::{add, sub};
use crate::isa::insn::{ExecFn, Insn};
use crate::isa::traits::{Width, emitted, rows};
use crate::isa::{ALIGNED, LOCKABLE, Row, lockable, locked, same};
use crate::translate::{special, stack};
use crate::vcpu::flags::bit::{ARITH, ZF};
use crate::vcpu::gpr::{RAX, RBX, RCX, RDX};
use iced_x86::Code;

/// XCHG; also of a register (r/m slot) with the accumulator.
fn xchg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (a, b) = (ctx.rmw::<W>(i)?, ctx.reg::<W>(i));
    ctx.set_rm(i, b)?;
    ctx.set_reg(i, a);
    Ok(())
}

/// XCHG of a register with the accumulator, whose number no operand slot holds.
fn xchg_acc<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (a, b) = (W::reg(ctx.cpu, i.rm), W::reg(ctx.cpu, RAX as u8));
    W::set_reg(ctx.cpu, i.rm, b);
    W::set_reg(ctx.cpu, RAX as u8, a);
    Ok(())
}

/// XADD: the source register is written first, so the sum wins when both are the same register.
fn xadd<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (a, b) = (ctx.rmw::<W>(i)?, ctx.reg::<W>(i));
    let (r, f) = add::<W>(a.u(), b.u(), 0);
    if i.is_mem() {
        ctx.set_rm(i, W::of(r))?;
        ctx.set_reg(i, a);
    } else {
        ctx.set_reg(i, a);
        ctx.set_rm(i, W::of(r))?;
    }
    ctx.cpu.flags.replace(ARITH, f);
    Ok(())
}

/// CMPXCHG: a memory destination is written in either case (SDM vol. 2), so a failed compare can fault too; a
/// register is left alone, upper half included.
fn cmpxchg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let dest = ctx.rmw::<W>(i)?;
    let acc = W::reg(ctx.cpu, RAX as u8);
    let (_, f) = sub::<W>(acc.u(), dest.u(), 0);
    if acc == dest {
        let v = ctx.reg::<W>(i);
        ctx.set_rm(i, v)?;
    } else {
        if i.is_mem() {
            ctx.set_rm(i, dest)?;
        }
        W::set_reg(ctx.cpu, RAX as u8, dest);
    }
    ctx.cpu.flags.replace(ARITH, f);
    Ok(())
}

fn cmpxchg8b(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let low = |v: u64| v & 0xffff_ffff;
    let ea = ctx.ea(i);
    let dest: u64 = ctx.load_rmw(i.seg, ea)?;
    let g = &ctx.cpu.gpr;
    let equal = dest == (g[RDX] << 32 | low(g[RAX]));
    let new = if equal { g[RCX] << 32 | low(g[RBX]) } else { dest };
    ctx.store(i.seg, ea, new)?;
    if !equal {
        ctx.cpu.gpr[RAX] = low(dest);
        ctx.cpu.gpr[RDX] = dest >> 32;
    }
    ctx.cpu.flags.put(ZF, equal);
    Ok(())
}

/// CMPXCHG16B: #GP(0) if the linear address is not 16-byte aligned.
fn cmpxchg16b(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let ea = ctx.ea(i);
    if ctx.cpu.seg[usize::from(i.seg)].lin_base.wrapping_add(ea) & 15 != 0 {
        return Err(Exception::gp(0));
    }
    let dest: u128 = ctx.load_rmw(i.seg, ea)?;
    let g = &ctx.cpu.gpr;
    let equal = dest == join(g[RDX], g[RAX]);
    let new = if equal { join(g[RCX], g[RBX]) } else { dest };
    ctx.store(i.seg, ea, new)?;
    if !equal {
        ctx.cpu.gpr[RAX] = dest as u64;
        ctx.cpu.gpr[RDX] = (dest >> 64) as u64;
    }
    ctx.cpu.flags.put(ZF, equal);
    Ok(())
}

emitted! {
    exchanges = lockable, stack::xchg;
    compares = lockable, special::cmpxchg;
    pairs = lockable, special::cmpxchg_pair;
}

const fn aligned_pairs(code: Code, exec: ExecFn) -> Row {
    Row { attrs: LOCKABLE | ALIGNED, ..pairs(code, exec) }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    exchanges xchg<> 4: Xchg_rm8_r8 Xchg_rm16_r16 Xchg_rm32_r32 Xchg_rm64_r64;
    same xchg_acc<> 3: Xchg_r16_AX Xchg_r32_EAX Xchg_r64_RAX;
    locked xadd<> 4: Xadd_rm8_r8 Xadd_rm16_r16 Xadd_rm32_r32 Xadd_rm64_r64;
    compares cmpxchg<> 4: Cmpxchg_rm8_r8 Cmpxchg_rm16_r16 Cmpxchg_rm32_r32 Cmpxchg_rm64_r64;
    pairs cmpxchg8b: Cmpxchg8b_m64;
    aligned_pairs cmpxchg16b: Cmpxchg16b_m128;
};
