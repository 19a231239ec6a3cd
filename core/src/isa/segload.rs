//! Segment-register loads and stores: MOV, PUSH, POP with a segment register, LDS and its relatives, FS/GS base.
//! Source: SDM vol. 2, "MOV", "POP", "LDS"; vol. 3A, 3.4.3, 5.3-5.7.

use super::insn::Insn;
use super::traits::Width;
use super::{Row, end, row};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::translate::system as emit;
use crate::vcpu::descriptor::{canonical, is_null};
use crate::vcpu::gpr::RSP;
use crate::vcpu::segment::{Segment, attr};
use crate::vcpu::{Seg, Shadow, cr4};
use iced_x86::Code as C;

// Loads end their block: decoded instructions carry no segment state, but limits and the stack size may change.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Mov_rm16_Sreg, mov_from_sreg::<u16>).emit(emit::from_segment),
    row(C::Mov_r32m16_Sreg, mov_from_sreg::<u32>).emit(emit::from_segment),
    row(C::Mov_r64m16_Sreg, mov_from_sreg::<u64>).emit(emit::from_segment), end(C::Mov_Sreg_rm16, mov_to_sreg),
    end(C::Mov_Sreg_r32m16, mov_to_sreg), end(C::Mov_Sreg_r64m16, mov_to_sreg),
    row(C::Pushw_ES, push_sreg::<2>), row(C::Pushd_ES, push_sreg::<4>), row(C::Pushw_CS, push_sreg::<2>),
    row(C::Pushd_CS, push_sreg::<4>), row(C::Pushw_SS, push_sreg::<2>), row(C::Pushd_SS, push_sreg::<4>),
    row(C::Pushw_DS, push_sreg::<2>), row(C::Pushd_DS, push_sreg::<4>), row(C::Pushw_FS, push_sreg::<2>),
    row(C::Pushd_FS, push_sreg::<4>), row(C::Pushq_FS, push_sreg::<8>), row(C::Pushw_GS, push_sreg::<2>),
    row(C::Pushd_GS, push_sreg::<4>), row(C::Pushq_GS, push_sreg::<8>),
    end(C::Popw_ES, pop_sreg::<2>), end(C::Popd_ES, pop_sreg::<4>), end(C::Popw_SS, pop_sreg::<2>),
    end(C::Popd_SS, pop_sreg::<4>), end(C::Popw_DS, pop_sreg::<2>), end(C::Popd_DS, pop_sreg::<4>),
    end(C::Popw_FS, pop_sreg::<2>), end(C::Popd_FS, pop_sreg::<4>), end(C::Popq_FS, pop_sreg::<8>),
    end(C::Popw_GS, pop_sreg::<2>), end(C::Popd_GS, pop_sreg::<4>), end(C::Popq_GS, pop_sreg::<8>),
    end(C::Les_r16_m1616, far_pointer::<u16, 0>), end(C::Les_r32_m1632, far_pointer::<u32, 0>),
    end(C::Lds_r16_m1616, far_pointer::<u16, 3>), end(C::Lds_r32_m1632, far_pointer::<u32, 3>),
    end(C::Lss_r16_m1616, far_pointer::<u16, 2>), end(C::Lss_r32_m1632, far_pointer::<u32, 2>),
    end(C::Lss_r64_m1664, far_pointer::<u64, 2>), end(C::Lfs_r16_m1616, far_pointer::<u16, 4>),
    end(C::Lfs_r32_m1632, far_pointer::<u32, 4>), end(C::Lfs_r64_m1664, far_pointer::<u64, 4>),
    end(C::Lgs_r16_m1616, far_pointer::<u16, 5>), end(C::Lgs_r32_m1632, far_pointer::<u32, 5>),
    end(C::Lgs_r64_m1664, far_pointer::<u64, 5>),
    row(C::Rdfsbase_r32, rd_base::<u32, 4>).emit(emit::base), row(C::Rdfsbase_r64, rd_base::<u64, 4>).emit(emit::base),
    row(C::Rdgsbase_r32, rd_base::<u32, 5>).emit(emit::base), row(C::Rdgsbase_r64, rd_base::<u64, 5>).emit(emit::base),
    row(C::Wrfsbase_r32, wr_base::<u32, 4>).emit(emit::base), row(C::Wrfsbase_r64, wr_base::<u64, 4>).emit(emit::base),
    row(C::Wrgsbase_r32, wr_base::<u32, 5>).emit(emit::base), row(C::Wrgsbase_r64, wr_base::<u64, 5>).emit(emit::base),
    row(C::Swapgs, swapgs).emit(emit::swapgs),
];

impl Ctx<'_> {
    /// The value `seg` (not CS) takes when `selector` is loaded in the current mode; all checks made.
    fn checked_segment(&mut self, seg: u8, selector: u16) -> Result<Segment, Exception> {
        if !self.cpu.mode.protected {
            return Ok(self.cpu.seg[usize::from(seg % 6)].with_real_selector(selector));
        }
        if seg != Seg::Ss as u8 {
            return self.data_segment(selector, vector::GP, 0);
        }
        let cpl = self.cpu.mode.cpl;
        if is_null(selector) && self.cpu.mode.is64() && cpl < 3 && selector as u8 & 3 == cpl {
            return Ok(Segment::null_ss(cpl));
        }
        self.stack_segment(selector, cpl, vector::GP, 0)
    }

    /// Makes `value` the content of `seg`. Loads of data segments cannot change the CPL; SS keeps it.
    fn commit_segment(&mut self, seg: u8, value: Segment) {
        self.cpu.seg[usize::from(seg % 6)] = value;
        self.cpu.refresh();
    }
}

impl Segment {
    /// This register after a load in real or v86 mode: selector and base change, limit and rights stay ("big real
    /// mode"), except that an unusable register becomes an ordinary real-mode one.
    pub fn with_real_selector(self, selector: u16) -> Self {
        if self.attr & attr::UNUSABLE != 0 {
            return Self::real(selector);
        }
        Self { selector, base: u64::from(selector) << 4, ..self }
    }
}

fn mov_from_sreg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let selector = ctx.cpu.seg[usize::from(i.reg % 6)].selector;
    if i.is_mem() { ctx.set_rm(i, selector) } else { ctx.set_rm(i, W::of(selector.into())) }
}

fn mov_to_sreg(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if i.reg == Seg::Cs as u8 || i.reg > 5 {
        return Err(Exception::ud());
    }
    let selector = ctx.rm::<u16>(i)?;
    let value = ctx.checked_segment(i.reg, selector)?;
    ctx.commit_segment(i.reg, value);
    if i.reg == Seg::Ss as u8 {
        ctx.cpu.shadow = Shadow::MovSs;
        ctx.sys.end_block();
    }
    Ok(())
}

/// Only the selector's two bytes are written, whatever the operand size.
fn push_sreg<const SIZE: u64>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let selector = ctx.cpu.seg[usize::from(i.reg % 6)].selector;
    let sp = ctx.cpu.gpr[RSP].wrapping_sub(SIZE) & ctx.cpu.mode.stack_mask;
    ctx.store(Seg::Ss as u8, sp, selector)?;
    ctx.set_sp(sp);
    Ok(())
}

fn pop_sreg<const SIZE: u64>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let sp = ctx.cpu.gpr[RSP] & ctx.cpu.mode.stack_mask;
    let selector = ctx.load::<u16>(Seg::Ss as u8, sp)?;
    let value = ctx.checked_segment(i.reg, selector)?;
    ctx.set_sp(sp.wrapping_add(SIZE));
    ctx.commit_segment(i.reg, value);
    if i.reg == Seg::Ss as u8 {
        ctx.cpu.shadow = Shadow::MovSs;
        ctx.sys.end_block();
    }
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS.
fn far_pointer<W: Width, const SEG: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let at = ctx.ea(i);
    let offset = ctx.load::<W>(i.seg, at)?;
    let selector = ctx.load::<u16>(i.seg, at.wrapping_add(W::SIZE as u64) & i.addr_mask)?;
    let value = ctx.checked_segment(SEG, selector)?;
    ctx.commit_segment(SEG, value);
    ctx.set_reg(i, offset);
    Ok(())
}

fn fsgsbase_allowed(ctx: &Ctx<'_>) -> Exec {
    if ctx.cpu.mode.is64() && ctx.cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(Exception::ud()) }
}

fn rd_base<W: Width, const SEG: usize>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    fsgsbase_allowed(ctx)?;
    ctx.set_rm(i, W::of(ctx.cpu.seg[SEG].base))
}

fn wr_base<W: Width, const SEG: usize>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    fsgsbase_allowed(ctx)?;
    let base = ctx.rm::<W>(i)?.u();
    if !canonical(base) {
        return Err(Exception::gp(0));
    }
    ctx.cpu.seg[SEG].base = base;
    ctx.cpu.refresh();
    Ok(())
}

fn swapgs(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if !ctx.cpu.mode.is64() {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let cpu = &mut *ctx.cpu;
    std::mem::swap(&mut cpu.seg[Seg::Gs as usize].base, &mut cpu.msr.kernel_gs_base);
    cpu.refresh();
    Ok(())
}
