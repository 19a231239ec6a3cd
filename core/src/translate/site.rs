//! Sites: the places in translated code that call out, and what is done there. A site stands at an instruction boundary:
//! everything about the guest's state there is known, in registers or by the site's description.

use super::mode::ModeKey;
use super::recipe::Recipe;
use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::isa::insn::Insn;
use crate::jit::frame::{Frame, sse_native};
use crate::vcpu::flags::bit::ARITH;
use std::sync::Arc;

/// Where the guest's arithmetic flags are at a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagsAt {
    Saved,
    Recipe(Recipe),
}

/// What happens at a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The interpreter executes `count` instructions; then the block goes on behind them, if they lead there.
    Execute { count: u32 },
    /// The same, then the block is left: the last instruction ends it.
    Finish { count: u32 },
    /// The budget is used up.
    Budget,
}

/// A place in a block that calls out.
#[derive(Debug)]
pub struct Site {
    pub insns: Arc<[Insn]>,
    /// Number of the instruction the site stands before.
    pub index: u32,
    pub what: What,
    /// RIP of that instruction.
    pub rip: u64,
    /// icount there, less `Frame::base` - `Frame::budget`.
    pub delta: i64,
    pub flags: FlagsAt,
}

/// How generated code goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Resume,
    Leave,
    Fault(Exception),
}

/// RFLAGS as generated code saves and restores them: only the arithmetic flags mean something.
pub const fn saved(flags: u64) -> u64 {
    flags & ARITH | 0x202
}

/// Does what a site asks for.
pub fn perform(frame: &mut Frame, ctx: &mut Ctx<'_>, site: &Site) -> Outcome {
    let flags = match site.flags {
        FlagsAt::Saved => frame.flags,
        FlagsAt::Recipe(r) => r.flags(&ctx.cpu.gpr),
    };
    ctx.cpu.flags.replace(ARITH, flags);
    ctx.cpu.rip = site.rip;
    let icount = (frame.base as i64 - frame.budget + site.delta) as u64;
    ctx.sys.icount = icount;
    match site.what {
        What::Budget => Outcome::Leave,
        What::Execute { count } => execute(frame, ctx, site, count, true),
        What::Finish { count } => execute(frame, ctx, site, count, false),
    }
}

/// Interprets `count` instructions.
fn execute(frame: &mut Frame, ctx: &mut Ctx<'_>, site: &Site, count: u32, resume: bool) -> Outcome {
    let before = ctx.sys.icount;
    if frame.sse != 0 {
        ctx.cpu.fpu.mxcsr = frame.mxcsr;
    }
    let first = site.index as usize;
    let insns = site.insns.get(first..first + count as usize).unwrap_or_default();
    let mut left = false;
    for insn in insns {
        let at = ctx.cpu.rip;
        if let Err(e) = ctx.execute(insn) {
            frame.mxcsr = ctx.cpu.fpu.mxcsr;
            return Outcome::Fault(e);
        }
        let next = at.wrapping_add(u64::from(insn.len)) & ctx.cpu.mode.lin_mask;
        left = ctx.sys.icount >= ctx.sys.limit
            || ctx.cpu.rip != next
            || ctx.sys.mem.tlb.epoch() != frame.epoch
            || ModeKey::of(ctx.cpu).map(|m| m.0) != Some(frame.mode);
        if left {
            break;
        }
    }
    frame.mxcsr = ctx.cpu.fpu.mxcsr;
    if frame.sse != 0 && !sse_native(ctx.cpu) {
        frame.sse = 0;
        left = true;
    }
    let extra = (ctx.sys.icount - before) as i64 - i64::from(count);
    if left || !resume || ctx.sys.icount + super::MAX_INSNS as u64 > ctx.sys.limit {
        return Outcome::Leave;
    }
    frame.budget -= extra;
    frame.flags = saved(ctx.cpu.flags.0);
    let cpu = &*ctx.cpu;
    frame.refresh(cpu, &ctx.sys.mem.tlb);
    Outcome::Resume
}
