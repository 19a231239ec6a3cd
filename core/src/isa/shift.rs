//! Shifts and rotates: ROL, ROR, RCL, RCR, SHL (and its alias SAL), SHR, SAR, SHLD, SHRD.
//!
//! Undefined flags, as on current Intel processors: OF for a count above one is that of the first single step, but
//! ROL and ROR of a register by an immediate above one leave it unchanged; AF is cleared by shifts. A count of zero changes no flag.

use super::alu::arith::szp;
use super::insn::Insn;
use super::traits::{Width, rows};
use super::{Row, same};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::vcpu::flags::bit::{ARITH, CF, OF};
use crate::vcpu::gpr::RCX;
use iced_x86::Code;

/// A shift or rotate of a zero-extended operand by `n`, 1 to 31 (63 for 64-bit operands), under RFLAGS `flags`.
/// Returns the result (bits above the width are ignored) and the flags in [`Shift::FLAGS`].
pub trait Shift {
    /// Flags it changes.
    const FLAGS: u64;
    fn apply<W: Width>(a: u64, n: u32, flags: u64) -> (u64, u64);
}

/// The sign bit of `r` as 0 or 1.
#[inline(always)]
fn msb<W: Width>(r: u64) -> u64 {
    (r >> (W::BITS - 1)) & 1
}

/// OF from a bit, CF from a bit.
#[inline(always)]
fn of_cf(of: u64, cf: u64) -> u64 {
    ((of & 1) << 11) | (cf & 1)
}

/// `v >> n`, zero when all bits are shifted out.
#[inline(always)]
fn shr(v: u64, n: u32) -> u64 {
    v.checked_shr(n).unwrap_or(0)
}

/// `v << n`, zero when all bits are shifted out.
#[inline(always)]
fn shl(v: u64, n: u32) -> u64 {
    v.checked_shl(n).unwrap_or(0)
}

macro_rules! shifts {
    ($($(#[$doc:meta])* $name:ident, $flags:expr, |$a:ident, $n:ident, $f:ident| $e:block)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Shift for $name {
            const FLAGS: u64 = $flags;
            #[inline(always)]
            fn apply<W: Width>($a: u64, $n: u32, $f: u64) -> (u64, u64) { $e }
        }
    )*};
}
shifts! {
    Rol, CF | OF, |a, n, _f| {
        let k = n & (W::BITS - 1);
        let r = (shl(a, k) | shr(a, W::BITS - k)) & W::MASK;
        (r, of_cf(msb::<W>(a) ^ msb::<W>(a << 1), r))
    }
    Ror, CF | OF, |a, n, _f| {
        let k = n & (W::BITS - 1);
        let r = (shr(a, k) | shl(a, W::BITS - k)) & W::MASK;
        (r, of_cf(a ^ msb::<W>(a), msb::<W>(r)))
    }
    /// A count that is a multiple of the width plus one changes nothing.
    Rcl, CF | OF, |a, n, f| {
        let k = n % (W::BITS + 1);
        if k == 0 {
            return (a, f);
        }
        let r = shl(a, k) | ((f & CF) << (k - 1)) | shr(a, W::BITS + 1 - k);
        (r, of_cf(msb::<W>(a) ^ msb::<W>(a << 1), shr(a, W::BITS - k)))
    }
    /// A count that is a multiple of the width plus one changes nothing.
    Rcr, CF | OF, |a, n, f| {
        let k = n % (W::BITS + 1);
        if k == 0 {
            return (a, f);
        }
        let r = shr(a, k) | ((f & CF) << (W::BITS - k)) | shl(a, W::BITS + 1 - k);
        (r, of_cf(msb::<W>(a) ^ f, shr(a, k - 1)))
    }
    Shl, ARITH, |a, n, _f| {
        let r = shl(a, n) & W::MASK;
        let c = if n <= W::BITS { shr(a, W::BITS - n) } else { 0 };
        (r, szp::<W>(r) | of_cf(msb::<W>(a) ^ msb::<W>(a << 1), c))
    }
    Shr, ARITH, |a, n, _f| {
        let r = shr(a, n);
        (r, szp::<W>(r) | of_cf(msb::<W>(a), shr(a, n - 1)))
    }
    Sar, ARITH, |a, n, _f| {
        let s = W::of(a).s();
        let r = (s >> n.min(63)) as u64 & W::MASK;
        (r, szp::<W>(r) | of_cf(0, (s >> (n - 1).min(63)) as u64))
    }
}

/// The count as the processor masks it.
#[inline(always)]
fn masked<W: Width>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn shift<O: Shift, W: Width>(ctx: &mut Ctx<'_>, i: &Insn, n: u32, changed: u64) -> Exec {
    ctx.update_rm(i, |ctx, a: W| {
        if n == 0 {
            return a;
        }
        let (r, f) = O::apply::<W>(a.u(), n, ctx.cpu.flags.0);
        ctx.cpu.flags.replace(changed, f);
        W::of(r)
    })
}

fn by_imm<O: Shift, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    shift::<O, W>(ctx, i, masked::<W>(i.imm), O::FLAGS)
}

/// ROL and ROR by an immediate: a register operand leaves OF unchanged unless the count is one.
fn rotate_by_imm<O: Shift, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let n = masked::<W>(i.imm);
    shift::<O, W>(ctx, i, n, if n == 1 || i.is_mem() { CF | OF } else { CF })
}

fn by_cl<O: Shift, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    shift::<O, W>(ctx, i, masked::<W>(ctx.cpu.gpr[RCX]), O::FLAGS)
}

/// SHLD: `a` shifted left, filled from the top of `b`. With 16-bit operands a count above 16 (undefined) goes on to
/// shift in `a` again after `b`.
fn shld<W: Width>(a: u64, b: u64, n: u32) -> (u64, u64) {
    let wide = if W::BITS == 16 { (a << 32) | (b << 16) | a } else { 0 };
    let (r, c) = match W::BITS {
        16 => ((wide << n) >> 32, (wide >> (48 - n)) & 1),
        _ => (shl(a, n) | shr(b, W::BITS - n), shr(a, W::BITS - n) & 1),
    };
    let r = r & W::MASK;
    (r, szp::<W>(r) | of_cf(msb::<W>(a) ^ msb::<W>(a << 1), c))
}

/// SHRD: `a` shifted right, filled from the bottom of `b`. With 16-bit operands a count above 16 (undefined) goes on
/// to shift in `a` again after `b`.
fn shrd<W: Width>(a: u64, b: u64, n: u32) -> (u64, u64) {
    let wide = if W::BITS == 16 { (a << 32) | (b << 16) | a } else { 0 };
    let (r, c) = match W::BITS {
        16 => (wide >> n, (wide >> (n - 1)) & 1),
        _ => (shr(a, n) | shl(b, W::BITS - n), shr(a, n - 1) & 1),
    };
    let r = r & W::MASK;
    (r, szp::<W>(r) | of_cf(msb::<W>(a) ^ b, c))
}

#[inline(always)]
fn double<const LEFT: bool, W: Width>(ctx: &mut Ctx<'_>, i: &Insn, count: u64) -> Exec {
    let n = masked::<W>(count);
    let b = ctx.reg::<W>(i).u();
    ctx.update_rm(i, |ctx, a: W| {
        if n == 0 {
            return a;
        }
        let (r, f) = if LEFT { shld::<W>(a.u(), b, n) } else { shrd::<W>(a.u(), b, n) };
        ctx.cpu.flags.replace(ARITH, f);
        W::of(r)
    })
}

const LEFT: bool = true;
const RIGHT: bool = false;
fn double_by_imm<const L: bool, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    double::<L, W>(ctx, i, i.imm)
}
fn double_by_cl<const L: bool, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    double::<L, W>(ctx, i, ctx.cpu.gpr[RCX])
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    same rotate_by_imm<Rol> 4: Rol_rm8_imm8 Rol_rm16_imm8 Rol_rm32_imm8 Rol_rm64_imm8;
    same rotate_by_imm<Rol> 4: Rol_rm8_1 Rol_rm16_1 Rol_rm32_1 Rol_rm64_1;
    same by_cl<Rol> 4: Rol_rm8_CL Rol_rm16_CL Rol_rm32_CL Rol_rm64_CL;
    same rotate_by_imm<Ror> 4: Ror_rm8_imm8 Ror_rm16_imm8 Ror_rm32_imm8 Ror_rm64_imm8;
    same rotate_by_imm<Ror> 4: Ror_rm8_1 Ror_rm16_1 Ror_rm32_1 Ror_rm64_1;
    same by_cl<Ror> 4: Ror_rm8_CL Ror_rm16_CL Ror_rm32_CL Ror_rm64_CL;
    same by_imm<Rcl> 4: Rcl_rm8_imm8 Rcl_rm16_imm8 Rcl_rm32_imm8 Rcl_rm64_imm8;
    same by_imm<Rcl> 4: Rcl_rm8_1 Rcl_rm16_1 Rcl_rm32_1 Rcl_rm64_1;
    same by_cl<Rcl> 4: Rcl_rm8_CL Rcl_rm16_CL Rcl_rm32_CL Rcl_rm64_CL;
    same by_imm<Rcr> 4: Rcr_rm8_imm8 Rcr_rm16_imm8 Rcr_rm32_imm8 Rcr_rm64_imm8;
    same by_imm<Rcr> 4: Rcr_rm8_1 Rcr_rm16_1 Rcr_rm32_1 Rcr_rm64_1;
    same by_cl<Rcr> 4: Rcr_rm8_CL Rcr_rm16_CL Rcr_rm32_CL Rcr_rm64_CL;
    same by_imm<Shl> 4: Shl_rm8_imm8 Shl_rm16_imm8 Shl_rm32_imm8 Shl_rm64_imm8;
    same by_imm<Shl> 4: Shl_rm8_1 Shl_rm16_1 Shl_rm32_1 Shl_rm64_1;
    same by_cl<Shl> 4: Shl_rm8_CL Shl_rm16_CL Shl_rm32_CL Shl_rm64_CL;
    same by_imm<Shr> 4: Shr_rm8_imm8 Shr_rm16_imm8 Shr_rm32_imm8 Shr_rm64_imm8;
    same by_imm<Shr> 4: Shr_rm8_1 Shr_rm16_1 Shr_rm32_1 Shr_rm64_1;
    same by_cl<Shr> 4: Shr_rm8_CL Shr_rm16_CL Shr_rm32_CL Shr_rm64_CL;
    same by_imm<Shl> 4: Sal_rm8_imm8 Sal_rm16_imm8 Sal_rm32_imm8 Sal_rm64_imm8;
    same by_imm<Shl> 4: Sal_rm8_1 Sal_rm16_1 Sal_rm32_1 Sal_rm64_1;
    same by_cl<Shl> 4: Sal_rm8_CL Sal_rm16_CL Sal_rm32_CL Sal_rm64_CL;
    same by_imm<Sar> 4: Sar_rm8_imm8 Sar_rm16_imm8 Sar_rm32_imm8 Sar_rm64_imm8;
    same by_imm<Sar> 4: Sar_rm8_1 Sar_rm16_1 Sar_rm32_1 Sar_rm64_1;
    same by_cl<Sar> 4: Sar_rm8_CL Sar_rm16_CL Sar_rm32_CL Sar_rm64_CL;
    same double_by_imm<LEFT> 3: Shld_rm16_r16_imm8 Shld_rm32_r32_imm8 Shld_rm64_r64_imm8;
    same double_by_cl<LEFT> 3: Shld_rm16_r16_CL Shld_rm32_r32_CL Shld_rm64_r64_CL;
    same double_by_imm<RIGHT> 3: Shrd_rm16_r16_imm8 Shrd_rm32_r32_imm8 Shrd_rm64_r64_imm8;
    same double_by_cl<RIGHT> 3: Shrd_rm16_r16_CL Shrd_rm32_r32_CL Shrd_rm64_r64_CL;
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Shifting or rotating by `n` is `n` times by one.
    fn repeated<O: Shift, W: Width>(a: u64, n: u32, flags: u64) -> (u64, u64) {
        let (mut v, mut f) = (a, flags);
        for _ in 0..n {
            let (r, g) = O::apply::<W>(v, 1, f & CF);
            (v, f) = (r & W::MASK, g);
        }
        (v, f & CF)
    }

    fn check<O: Shift, W: Width>(max: u32) {
        for a in [0, 1, 0x80, 0xa5, 0x7fff, 0x8001, 0x1234_5678_9abc_def0u64, u64::MAX] {
            for n in 1..max {
                for cf in [0, CF] {
                    let (r, f) = O::apply::<W>(a & W::MASK, n, cf);
                    assert_eq!((r & W::MASK, f & CF), repeated::<O, W>(a & W::MASK, n, cf), "{a:#x} by {n}");
                }
            }
        }
    }

    #[test]
    fn test_a_count_is_that_many_single_steps() {
        check::<Rol, u8>(32);
        check::<Ror, u16>(32);
        check::<Rcl, u8>(32);
        check::<Rcl, u64>(64);
        check::<Rcr, u16>(32);
        check::<Rcr, u32>(32);
        check::<Shl, u8>(32);
        check::<Shl, u64>(64);
        check::<Shr, u16>(32);
        check::<Sar, u8>(32);
        check::<Sar, u32>(32);
    }

    #[test]
    fn test_double_shifts_take_their_bits_from_the_other_operand() {
        assert_eq!(shld::<u32>(0x1234_5678, 0x9abc_def0, 8).0, 0x3456_789a);
        assert_eq!(shrd::<u32>(0x1234_5678, 0x9abc_def0, 8).0, 0xf012_3456);
        assert_eq!(shld::<u16>(0x1234, 0xabcd, 4), (0x234a, of_cf(0, 1)), "CF is the last bit shifted out");
    }
}
