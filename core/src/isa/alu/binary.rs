//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, ADCX, ADOX in all their operand forms.

use super::arith::{add, logic, sub};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::traits::{Width, rows};
use crate::isa::{Row, locked, same};
use crate::vcpu::flags::bit::{ARITH, CF, OF};
use iced_x86::Code;

/// An operation on two operands. `apply` takes zero-extended operands and RFLAGS and returns the result and the
/// arithmetic flags.
pub trait Binary {
    /// The result is written to the destination (not so for CMP and TEST).
    const WRITES: bool;
    fn apply<W: Width>(a: u64, b: u64, flags: u64) -> (u64, u64);
}

macro_rules! binary {
    ($($name:ident, $writes:literal, |$a:ident, $b:ident, $f:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<W: Width>($a: u64, $b: u64, $f: u64) -> (u64, u64) { $e }
        }
    )*};
}
binary! {
    Add, true, |a, b, _f| add::<W>(a, b, 0);
    Or, true, |a, b, _f| logic::<W>(a | b);
    Adc, true, |a, b, f| add::<W>(a, b, f & CF);
    Sbb, true, |a, b, f| sub::<W>(a, b, f & CF);
    And, true, |a, b, _f| logic::<W>(a & b);
    Sub, true, |a, b, _f| sub::<W>(a, b, 0);
    Xor, true, |a, b, _f| logic::<W>(a ^ b);
    Cmp, false, |a, b, _f| sub::<W>(a, b, 0);
    Test, false, |a, b, _f| logic::<W>(a & b);
}

/// The destination is r/m, the other operand is `b`.
#[inline(always)]
fn to_rm<O: Binary, W: Width>(ctx: &mut Ctx<'_>, i: &Insn, b: u64) -> Exec {
    let apply = move |ctx: &mut Ctx<'_>, a: W| {
        let (r, f) = O::apply::<W>(a.u(), b, ctx.cpu.flags.0);
        ctx.cpu.flags.replace(ARITH, f);
        W::of(r)
    };
    if O::WRITES {
        ctx.update_rm(i, apply)
    } else {
        ctx.with_rm(i, |ctx, a| {
            apply(ctx, a);
        })
    }
}

fn rm_reg<O: Binary, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let b = ctx.reg::<W>(i).u();
    to_rm::<O, W>(ctx, i, b)
}

fn rm_imm<O: Binary, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    to_rm::<O, W>(ctx, i, i.imm & W::MASK)
}

fn reg_rm<O: Binary, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, b: W| {
        let (r, f) = O::apply::<W>(ctx.reg::<W>(i).u(), b.u(), ctx.cpu.flags.0);
        if O::WRITES {
            ctx.set_reg(i, W::of(r));
        }
        ctx.cpu.flags.replace(ARITH, f);
    })
}

/// The flag ADCX or ADOX carries through: its position in RFLAGS.
const CARRY: u32 = 0;
const OVERFLOW: u32 = 11;

/// ADCX, ADOX: add with carry in and out of one flag, no other flag changed.
fn add_with<const FLAG: u32, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    const { assert!(1 << CARRY == CF && 1 << OVERFLOW == OF) };
    let b = ctx.rm::<W>(i)?.u();
    let (r, f) = add::<W>(ctx.reg::<W>(i).u(), b, (ctx.cpu.flags.0 >> FLAG) & 1);
    ctx.set_reg(i, W::of(r));
    ctx.cpu.flags.replace(1 << FLAG, (f & CF) << FLAG);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    locked rm_reg<Add> 4: Add_rm8_r8 Add_rm16_r16 Add_rm32_r32 Add_rm64_r64;
    same reg_rm<Add> 4: Add_r8_rm8 Add_r16_rm16 Add_r32_rm32 Add_r64_rm64;
    same rm_imm<Add> 4: Add_AL_imm8 Add_AX_imm16 Add_EAX_imm32 Add_RAX_imm32;
    locked rm_imm<Add> 4: Add_rm8_imm8 Add_rm16_imm16 Add_rm32_imm32 Add_rm64_imm32;
    locked rm_imm<Add> 3: Add_rm16_imm8 Add_rm32_imm8 Add_rm64_imm8;
    locked rm_imm<Add> u8: Add_rm8_imm8_82;
    locked rm_reg<Or> 4: Or_rm8_r8 Or_rm16_r16 Or_rm32_r32 Or_rm64_r64;
    same reg_rm<Or> 4: Or_r8_rm8 Or_r16_rm16 Or_r32_rm32 Or_r64_rm64;
    same rm_imm<Or> 4: Or_AL_imm8 Or_AX_imm16 Or_EAX_imm32 Or_RAX_imm32;
    locked rm_imm<Or> 4: Or_rm8_imm8 Or_rm16_imm16 Or_rm32_imm32 Or_rm64_imm32;
    locked rm_imm<Or> 3: Or_rm16_imm8 Or_rm32_imm8 Or_rm64_imm8;
    locked rm_imm<Or> u8: Or_rm8_imm8_82;
    locked rm_reg<Adc> 4: Adc_rm8_r8 Adc_rm16_r16 Adc_rm32_r32 Adc_rm64_r64;
    same reg_rm<Adc> 4: Adc_r8_rm8 Adc_r16_rm16 Adc_r32_rm32 Adc_r64_rm64;
    same rm_imm<Adc> 4: Adc_AL_imm8 Adc_AX_imm16 Adc_EAX_imm32 Adc_RAX_imm32;
    locked rm_imm<Adc> 4: Adc_rm8_imm8 Adc_rm16_imm16 Adc_rm32_imm32 Adc_rm64_imm32;
    locked rm_imm<Adc> 3: Adc_rm16_imm8 Adc_rm32_imm8 Adc_rm64_imm8;
    locked rm_imm<Adc> u8: Adc_rm8_imm8_82;
    locked rm_reg<Sbb> 4: Sbb_rm8_r8 Sbb_rm16_r16 Sbb_rm32_r32 Sbb_rm64_r64;
    same reg_rm<Sbb> 4: Sbb_r8_rm8 Sbb_r16_rm16 Sbb_r32_rm32 Sbb_r64_rm64;
    same rm_imm<Sbb> 4: Sbb_AL_imm8 Sbb_AX_imm16 Sbb_EAX_imm32 Sbb_RAX_imm32;
    locked rm_imm<Sbb> 4: Sbb_rm8_imm8 Sbb_rm16_imm16 Sbb_rm32_imm32 Sbb_rm64_imm32;
    locked rm_imm<Sbb> 3: Sbb_rm16_imm8 Sbb_rm32_imm8 Sbb_rm64_imm8;
    locked rm_imm<Sbb> u8: Sbb_rm8_imm8_82;
    locked rm_reg<And> 4: And_rm8_r8 And_rm16_r16 And_rm32_r32 And_rm64_r64;
    same reg_rm<And> 4: And_r8_rm8 And_r16_rm16 And_r32_rm32 And_r64_rm64;
    same rm_imm<And> 4: And_AL_imm8 And_AX_imm16 And_EAX_imm32 And_RAX_imm32;
    locked rm_imm<And> 4: And_rm8_imm8 And_rm16_imm16 And_rm32_imm32 And_rm64_imm32;
    locked rm_imm<And> 3: And_rm16_imm8 And_rm32_imm8 And_rm64_imm8;
    locked rm_imm<And> u8: And_rm8_imm8_82;
    locked rm_reg<Sub> 4: Sub_rm8_r8 Sub_rm16_r16 Sub_rm32_r32 Sub_rm64_r64;
    same reg_rm<Sub> 4: Sub_r8_rm8 Sub_r16_rm16 Sub_r32_rm32 Sub_r64_rm64;
    same rm_imm<Sub> 4: Sub_AL_imm8 Sub_AX_imm16 Sub_EAX_imm32 Sub_RAX_imm32;
    locked rm_imm<Sub> 4: Sub_rm8_imm8 Sub_rm16_imm16 Sub_rm32_imm32 Sub_rm64_imm32;
    locked rm_imm<Sub> 3: Sub_rm16_imm8 Sub_rm32_imm8 Sub_rm64_imm8;
    locked rm_imm<Sub> u8: Sub_rm8_imm8_82;
    locked rm_reg<Xor> 4: Xor_rm8_r8 Xor_rm16_r16 Xor_rm32_r32 Xor_rm64_r64;
    same reg_rm<Xor> 4: Xor_r8_rm8 Xor_r16_rm16 Xor_r32_rm32 Xor_r64_rm64;
    same rm_imm<Xor> 4: Xor_AL_imm8 Xor_AX_imm16 Xor_EAX_imm32 Xor_RAX_imm32;
    locked rm_imm<Xor> 4: Xor_rm8_imm8 Xor_rm16_imm16 Xor_rm32_imm32 Xor_rm64_imm32;
    locked rm_imm<Xor> 3: Xor_rm16_imm8 Xor_rm32_imm8 Xor_rm64_imm8;
    locked rm_imm<Xor> u8: Xor_rm8_imm8_82;
    same rm_reg<Cmp> 4: Cmp_rm8_r8 Cmp_rm16_r16 Cmp_rm32_r32 Cmp_rm64_r64;
    same reg_rm<Cmp> 4: Cmp_r8_rm8 Cmp_r16_rm16 Cmp_r32_rm32 Cmp_r64_rm64;
    same rm_imm<Cmp> 4: Cmp_AL_imm8 Cmp_AX_imm16 Cmp_EAX_imm32 Cmp_RAX_imm32;
    same rm_imm<Cmp> 4: Cmp_rm8_imm8 Cmp_rm16_imm16 Cmp_rm32_imm32 Cmp_rm64_imm32;
    same rm_imm<Cmp> 3: Cmp_rm16_imm8 Cmp_rm32_imm8 Cmp_rm64_imm8;
    same rm_imm<Cmp> u8: Cmp_rm8_imm8_82;
    same rm_reg<Test> 4: Test_rm8_r8 Test_rm16_r16 Test_rm32_r32 Test_rm64_r64;
    same rm_imm<Test> 4: Test_AL_imm8 Test_AX_imm16 Test_EAX_imm32 Test_RAX_imm32;
    same rm_imm<Test> 4: Test_rm8_imm8 Test_rm16_imm16 Test_rm32_imm32 Test_rm64_imm32;
    same rm_imm<Test> 4: Test_rm8_imm8_F6r1 Test_rm16_imm16_F7r1 Test_rm32_imm32_F7r1 Test_rm64_imm32_F7r1;
    same add_with<CARRY> u32: Adcx_r32_rm32;
    same add_with<CARRY> u64: Adcx_r64_rm64;
    same add_with<OVERFLOW> u32: Adox_r32_rm32;
    same add_with<OVERFLOW> u64: Adox_r64_rm64;
};
