//! Sites: the places in translated code that call out, and what is done there. A site stands at an instruction boundary:
//! everything about the guest's state there is known, in registers or by the site's description.

use super::mode::ModeKey;
use super::recipe::Recipe;
use super::unit::Key;
use super::x87::{self, Note, X87At};
use crate::ctx::{Ctx, asked};
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::jit::frame::{Frame, sse_native, stamp};
use crate::jit::x87_image::{at, native};
use crate::vcpu::flags::bit::{self, ARITH};
use crate::vcpu::{Activity, Shadow};
use std::cell::Cell;
use std::sync::Arc;

/// Where the guest's arithmetic flags are at a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagsAt {
    Saved,
    Recipe(Recipe),
    /// In the first iteration of a loop saved, in later ones by the recipe.
    Loop(Recipe),
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
    /// The x87 state is loaded into the host's registers; if it cannot be used natively now, `rest` instructions are
    /// interpreted.
    X87 { rest: u32 },
}

/// A place in a block that calls out.
#[derive(Debug)]
pub struct Site {
    pub insns: Arc<[Insn]>,
    /// Number of the instruction the site stands before.
    pub index: u32,
    pub what: What,
    /// A lookup in translated code leads here.
    pub lookup: bool,
    /// RIP of that instruction.
    pub rip: u64,
    /// icount there, less `Frame::base` - `Frame::budget`.
    pub delta: i64,
    pub flags: FlagsAt,
    pub block: Key,
    /// How often the lookup missed for good.
    pub futile: Cell<u32>,
    /// The line of the frame a lookup here uses, or the first line of the block.
    pub line: Option<u32>,
    /// icount when it was last asked whether that line is worth it.
    pub since: Cell<u64>,
    /// What translated code did not note of the x87 instructions before.
    pub note: Note,
    pub x87: X87At,
    /// Where generated code goes on: an offset in the block's code while it is made, then an address.
    pub resume: u64,
}

/// How generated code goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Resume,
    Leave,
    /// The exception is in the frame.
    Fault,
    /// An exception was delivered, and the vCPU is shut down.
    TripleFault,
}

/// A lookup that keeps missing although the TLB has all it can have: device memory, a traced page, operands that
/// straddle pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misfit {
    pub block: Key,
    /// The first of the instructions the slow path interpreted.
    pub index: u32,
    pub ill: Ill,
}

/// What is not worth its cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ill {
    /// A lookup many instructions share; the lookup of one.
    Window,
    Lookup,
    /// Remembering the page of a lookup; those of the whole block.
    Page,
    Pages,
}

/// Futile misses at a site before its block is translated again to do without the lookup.
const PATIENCE: u32 = 256;

/// RFLAGS as generated code saves and restores them: only the arithmetic flags mean something.
pub const fn saved(flags: u64) -> u64 {
    flags & ARITH | 0x202
}

/// Does what a site asks for.
pub fn perform(frame: &mut Frame, ctx: &mut Ctx<'_>, site: &Site) -> Outcome {
    let flags = match site.flags {
        FlagsAt::Loop(r) if frame.budget != frame.first => r.flags(&ctx.cpu.gpr),
        FlagsAt::Recipe(r) => r.flags(&ctx.cpu.gpr),
        FlagsAt::Saved | FlagsAt::Loop(_) => frame.flags,
    };
    ctx.cpu.flags.replace(ARITH, flags);
    ctx.cpu.rip = site.rip;
    let icount = (frame.base as i64 - frame.budget + site.delta) as u64;
    ctx.sys.icount = icount;
    x87::apply(frame, ctx, site);
    match site.what {
        What::Budget => {
            judge(frame, site, icount, FORGET_RATE, Ill::Pages);
            frame.sampled = Some(site.block);
            Outcome::Leave
        }
        What::Execute { count } => execute(frame, ctx, site, count, true),
        What::Finish { count } => execute(frame, ctx, site, count, false),
        What::X87 { rest } => {
            if !native(ctx.cpu) {
                return execute(frame, ctx, site, rest, false);
            }
            frame.give_x87(ctx.cpu);
            frame.flags = saved(ctx.cpu.flags.0);
            frame.resume = site.resume;
            Outcome::Resume
        }
    }
}

/// Interprets `count` instructions. `resume`: the block goes on behind them.
fn execute(frame: &mut Frame, ctx: &mut Ctx<'_>, site: &Site, count: u32, resume: bool) -> Outcome {
    let (before, limit, fills) = (ctx.sys.icount, ctx.sys.limit, ctx.sys.mmu.counters.fills);
    ctx.sys.asked = 0;
    if frame.sse != 0 {
        ctx.cpu.fpu.mxcsr = frame.mxcsr;
    }
    let taken = site.x87 != X87At::Stays && frame.take_x87(ctx.cpu);
    let first = site.index as usize;
    let insns = site.insns.get(first..first + count as usize).unwrap_or_default();
    let mut astray = false;
    for insn in insns {
        let at = ctx.cpu.rip;
        if let Err(e) = ctx.execute(insn) {
            return fault(frame, ctx, e, limit);
        }
        ctx.note_interrupts();
        astray = ctx.cpu.rip != at.wrapping_add(u64::from(insn.len)) & ctx.cpu.mode.lin_mask;
        if astray || ctx.sys.icount >= ctx.sys.limit || ctx.sys.mem.tlb.epoch() != frame.epoch {
            break;
        }
    }
    if ctx.cpu.shadow == Shadow::Sti
        && ctx.sys.limit == 0
        && frame.x87 == at::VCPU
        && let Err(e) = after_sti(ctx, limit)
    {
        return fault(frame, ctx, e, limit);
    }
    frame.mxcsr = ctx.cpu.fpu.mxcsr;
    if ctx.sys.limit == 0 && minded(frame, ctx) {
        ctx.sys.limit = limit;
        astray = true;
    }
    let judged = judge(frame, site, before, REFILL_RATE, Ill::Page);
    if site.lookup && !judged && ctx.sys.mmu.counters.fills == fills {
        note_futile(frame, site, count);
    }
    if ctx.sys.icount + super::MAX_INSNS as u64 > ctx.sys.limit || frame.adapt.is_some() {
        return Outcome::Leave;
    }
    if frame.sse != 0 && !sse_native(ctx.cpu) {
        frame.sse = 0;
        return Outcome::Leave;
    }
    if (taken || frame.x87 != at::VCPU) && !native(ctx.cpu) {
        return Outcome::Leave;
    }
    frame.flags = saved(ctx.cpu.flags.0);
    // What a block remembers, and the windows it shares, hold for one TLB array.
    let same = stamp(ctx.cpu.tlb.0, ctx.sys.mem.tlb.epoch()) == frame.stamp;
    if resume && !astray && same && ctx.sys.mem.tlb.epoch() == frame.epoch {
        frame.budget -= (ctx.sys.icount - before) as i64 - i64::from(count);
        frame.first = frame.budget;
        // Of what generated code depends on, only instructions that end their block change more than FS and GS bases
        // and MXCSR.
        frame.refresh_bases(ctx.cpu);
        frame.refresh_sse(ctx.cpu);
        frame.resume = site.resume;
        if taken && site.x87 == X87At::Returns {
            frame.give_x87(ctx.cpu);
        }
        return Outcome::Resume;
    }
    roam(frame, ctx)
}

/// Goes on at RIP, wherever that is, in whatever mode.
fn roam(frame: &mut Frame, ctx: &Ctx<'_>) -> Outcome {
    let Some(mode) = ModeKey::of(ctx.cpu).filter(|_| frame.roam) else { return Outcome::Leave };
    let jump_cache = frame.jump_caches[usize::from(mode.0)];
    if jump_cache == 0 {
        return Outcome::Leave;
    }
    frame.jump_cache = jump_cache;
    frame.epoch = ctx.sys.mem.tlb.epoch();
    frame.budget = frame.base as i64 - ctx.sys.icount as i64;
    frame.refresh(ctx.cpu, ctx.sys);
    (frame.target, frame.resume) = (ctx.cpu.rip, frame.dispatch);
    Outcome::Resume
}

/// The engine's attention was asked for: is it for nothing but what going on at RIP does anyway? RF is what the next
/// instruction ends; it is gone early, but no one can look before that instruction.
fn minded(frame: &Frame, ctx: &mut Ctx<'_>) -> bool {
    let asked = ctx.sys.asked;
    let resumes = asked & asked::RESUME_FLAG != 0;
    if !frame.roam || asked & asked::ANYTHING != 0 || resumes && frame.stops != 0 {
        return false;
    }
    if resumes {
        ctx.cpu.flags.put(bit::RF, false);
    }
    true
}

/// The instruction at RIP raised `e`. Delivers it, if the engine would do no more, and goes on in the handler.
fn fault(frame: &mut Frame, ctx: &mut Ctx<'_>, e: Exception, limit: u64) -> Outcome {
    frame.mxcsr = ctx.cpu.fpu.mxcsr;
    let stops = frame.stops & 1u32.checked_shl(e.vector.into()).unwrap_or(0) != 0;
    let room = ctx.sys.icount + 1 + super::MAX_INSNS as u64 <= limit;
    let sse = frame.sse == 0 || sse_native(ctx.cpu);
    if !frame.roam || stops || !room || !sse || ctx.sys.asked & asked::ANYTHING != 0 {
        frame.fault = e;
        return Outcome::Fault;
    }
    (ctx.sys.limit, ctx.sys.asked) = (limit, 0);
    ctx.cpu.shadow = Shadow::None;
    ctx.deliver_exception_here(e);
    ctx.sys.icount += 1;
    if ctx.cpu.activity == Activity::Shutdown {
        return Outcome::TripleFault;
    }
    ctx.attend();
    if ctx.sys.limit == 0 && !minded(frame, ctx) {
        return Outcome::Leave;
    }
    ctx.sys.limit = limit;
    frame.flags = saved(ctx.cpu.flags.0);
    roam(frame, ctx)
}

/// STI was executed, and only because of its shadow the engine was asked to look around: the instruction in the shadow
/// is executed here, as the engine would, if `limit` leaves room.
fn after_sti(ctx: &mut Ctx<'_>, limit: u64) -> Exec {
    if ctx.sys.icount + 1 >= limit || ctx.cpu.pending_db != 0 || ctx.cpu.flags.has(bit::TF | bit::RF) {
        return Ok(());
    }
    if ctx.cpu.has_insn_breakpoints() || ctx.cpu.nmi_pending {
        return Ok(());
    }
    (ctx.sys.limit, ctx.sys.asked) = (limit, 0);
    ctx.begin_insn()?;
    ctx.step_insn()?;
    ctx.attend();
    ctx.trap_boundary(false).map_or(Ok(()), Err)
}

/// A lookup missed and the TLB could not be filled for it.
fn note_futile(frame: &mut Frame, site: &Site, count: u32) {
    site.futile.set(site.futile.get() + 1);
    if site.futile.get() == PATIENCE {
        let ill = if count > 1 { Ill::Window } else { Ill::Lookup };
        frame.adapt = Some(Misfit { block: site.block, index: site.index, ill });
    }
}

/// How often remembered pages are replaced before it is asked whether it is worth it.
pub const REPLACED: i32 = 1024;
/// Instructions that must have been executed for each page replaced, and for each time all of a block are.
const REFILL_RATE: u64 = 256;
const FORGET_RATE: u64 = 20_000;

/// Is remembering pages worth it? False: nobody asked.
fn judge(frame: &mut Frame, site: &Site, icount: u64, rate: u64, ill: Ill) -> bool {
    let Some(line) = site.line.and_then(|n| frame.remembered.get_mut(n as usize)) else { return false };
    if line.left >= 0 {
        return false;
    }
    line.left = REPLACED;
    let since = site.since.replace(icount);
    // A restored machine may be back in time.
    if icount.wrapping_sub(since) < rate * REPLACED as u64 {
        frame.adapt = Some(Misfit { block: site.block, index: site.index, ill });
    }
    true
}
