//! Port I/O: IN, OUT, INS, OUTS with IOPL and the TSS's permission bitmap.
//! Source: SDM vol. 1, chapter 19; vol. 2, "IN", "INS", "OUT", "OUTS".

use super::insn::{Insn, prefix};
use super::traits::Width;
use super::{Row, end};
use crate::ctx::Ctx;
use crate::engine::hooks::Occurrence;
use crate::exception::{Exception, Exec};
use crate::mmu::{Access, Privilege};
use crate::vcpu::flags::bit;
use crate::vcpu::gpr::{RAX, RCX, RDI, RDX, RSI};
use crate::vcpu::segment::attr;
use crate::vcpu::{Seg, ZERO};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    end(C::In_AL_imm8, in_imm::<u8>), end(C::In_AX_imm8, in_imm::<u16>), end(C::In_EAX_imm8, in_imm::<u32>),
    end(C::In_AL_DX, in_dx::<u8>), end(C::In_AX_DX, in_dx::<u16>), end(C::In_EAX_DX, in_dx::<u32>),
    end(C::Out_imm8_AL, out_imm::<u8>), end(C::Out_imm8_AX, out_imm::<u16>), end(C::Out_imm8_EAX, out_imm::<u32>),
    end(C::Out_DX_AL, out_dx::<u8>), end(C::Out_DX_AX, out_dx::<u16>), end(C::Out_DX_EAX, out_dx::<u32>),
    end(C::Insb_m8_DX, ins::<u8>), end(C::Insw_m16_DX, ins::<u16>), end(C::Insd_m32_DX, ins::<u32>),
    end(C::Outsb_DX_m8, outs::<u8>), end(C::Outsw_DX_m16, outs::<u16>), end(C::Outsd_DX_m32, outs::<u32>),
];

impl Ctx<'_> {
    /// May the current program access `size` ports from `port`? #GP(0) if not.
    fn port_allowed(&mut self, port: u16, size: u64) -> Exec {
        let mode = &self.cpu.mode;
        if mode.real() || (mode.protected && mode.cpl <= self.cpu.flags.iopl()) {
            return Ok(());
        }
        let tr = self.cpu.tr;
        let denied = Err(Exception::gp(0));
        if tr.attr & (attr::P | 8) != attr::P | 8 || tr.limit < 0x67 {
            return denied;
        }
        let map: u16 = self.read_lin(self.table_address(tr.base, 0x66), Privilege::System)?;
        let at = u64::from(map) + u64::from(port / 8);
        // Two bytes are always read, so the map ends with a byte of ones.
        if at + 1 > u64::from(tr.limit) {
            return denied;
        }
        let bits: u16 = self.read_lin(self.table_address(tr.base, at), Privilege::System)?;
        let wanted = ((1u16 << size) - 1) << (port & 7);
        if bits & wanted == 0 { Ok(()) } else { denied }
    }

    fn port_read<W: Width>(&mut self, port: u16) -> W {
        self.cpu.io_breakpoint(port, W::SIZE as u64);
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        let value = board.pio_read(index, port, W::SIZE as u8, &mut bus);
        // A read may acknowledge or raise something (serial, keyboard): let the engine look.
        if !board.events.is_empty() || board.intr(index) {
            self.sys.end_block();
        }
        self.sys.occurred(|| Occurrence::Port { port, bytes: W::SIZE as u8, write: false, value });
        W::of(value.into())
    }

    fn port_write<W: Width>(&mut self, port: u16, value: W) {
        self.cpu.io_breakpoint(port, W::SIZE as u64);
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        let value = value.u() as u32;
        board.pio_write(index, port, W::SIZE as u8, value, &mut bus);
        self.sys.end_block();
        self.sys.occurred(|| Occurrence::Port { port, bytes: W::SIZE as u8, write: true, value });
    }
}

fn input<W: Width>(ctx: &mut Ctx<'_>, port: u16) -> Exec {
    ctx.port_allowed(port, W::SIZE as u64)?;
    let value = ctx.port_read::<W>(port);
    W::set_reg(ctx.cpu, RAX as u8, value);
    Ok(())
}

fn output<W: Width>(ctx: &mut Ctx<'_>, port: u16) -> Exec {
    ctx.port_allowed(port, W::SIZE as u64)?;
    ctx.port_write(port, W::reg(ctx.cpu, RAX as u8));
    Ok(())
}

fn in_imm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    input::<W>(ctx, i.imm as u16 & 0xff)
}

fn in_dx<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    input::<W>(ctx, ctx.cpu.gpr[RDX] as u16)
}

fn out_imm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    output::<W>(ctx, i.imm as u16 & 0xff)
}

fn out_dx<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    output::<W>(ctx, ctx.cpu.gpr[RDX] as u16)
}

fn ins<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    repeat(ctx, i, ins_once::<W>)
}

fn outs<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    repeat(ctx, i, outs_once::<W>)
}

/// One INS: every fault comes before the port is read.
fn ins_once<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let port = ctx.cpu.gpr[RDX] as u16;
    ctx.port_allowed(port, W::SIZE as u64)?;
    let at = ctx.cpu.gpr[RDI] & i.addr_mask;
    ctx.probe(Seg::Es as u8, at, W::SIZE as u64, Access::Write)?;
    let value = ctx.port_read::<W>(port);
    ctx.store(Seg::Es as u8, at, value)?;
    advance(ctx, RDI, W::SIZE as u64, i.addr_mask);
    Ok(())
}

fn outs_once<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let port = ctx.cpu.gpr[RDX] as u16;
    ctx.port_allowed(port, W::SIZE as u64)?;
    let value = ctx.load::<W>(i.seg, ctx.cpu.gpr[RSI] & i.addr_mask)?;
    ctx.port_write(port, value);
    advance(ctx, RSI, W::SIZE as u64, i.addr_mask);
    Ok(())
}

/// Steps an index or count register by `size` in the direction of DF, within the address size.
fn advance(ctx: &mut Ctx<'_>, reg: usize, size: u64, mask: u64) {
    let step = if ctx.cpu.flags.has(bit::DF) { size.wrapping_neg() } else { size };
    let v = ctx.cpu.gpr[reg].wrapping_add(step);
    put_address(&mut ctx.cpu.gpr[reg], v, mask);
}

/// Writes an address-sized register: 16 bits keep the rest, 32 bits clear the upper half.
fn put_address(reg: &mut u64, v: u64, mask: u64) {
    *reg = if mask == 0xffff { (*reg & !mask) | (v & mask) } else { v & mask };
}

/// Runs `once`, under REP as often as RCX says. Completed iterations are counted as they happen, so that devices see
/// the exact icount of each; on leaving, the engine still adds one for the last (see [`Ctx::rep_may_continue`]).
fn repeat(ctx: &mut Ctx<'_>, i: &Insn, once: fn(&mut Ctx<'_>, &Insn) -> Exec) -> Exec {
    if !i.has(prefix::REP | prefix::REPNE) {
        return once(ctx, i);
    }
    debug_assert_eq!(ctx.cpu.gpr[usize::from(ZERO)], 0);
    while ctx.cpu.gpr[RCX] & i.addr_mask != 0 {
        once(ctx, i)?;
        let count = ctx.cpu.gpr[RCX].wrapping_sub(1);
        put_address(&mut ctx.cpu.gpr[RCX], count, i.addr_mask);
        if count & i.addr_mask == 0 {
            break;
        }
        if ctx.sys.icount + 1 >= ctx.sys.limit || ctx.cpu.pending_db != 0 {
            ctx.cpu.suspend_repeat();
            break;
        }
        ctx.sys.icount += 1;
    }
    Ok(())
}
