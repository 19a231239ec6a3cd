//! Entering translated code, and the helper it calls for whatever it does not do itself. Owns the only places where
//! Rust and generated code hand the machine to each other.
//!
//! While generated code runs, the vCPU and the system are lent out: the only references to them are made anew, from
//! the frame's `run`, inside the helper, and are gone when it returns. The helper never unwinds into generated code.
//! At a site that does not look at the x87 state the helper runs with the guest's x87 registers and control word in the
//! host's (see `x87_image`); whoever looks at them has had them saved by the stub.

#![allow(unsafe_code)]

use super::frame::{Frame, FrameStack};
use super::stubs::Stubs;
use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::translate::site::{self, Outcome, Site};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What a run of generated code works on, for the helper.
pub struct Run {
    ctx: *mut Ctx<'static>,
    panic: Option<Box<dyn Any + Send>>,
}

/// Why generated code was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Through a link slot.
    Link(u32),
    /// At an instruction boundary; RIP and icount are right.
    Boundary,
    /// The instruction at RIP raised an exception.
    Fault(Exception),
    /// Delivering an exception shut the vCPU down.
    TripleFault,
}

/// Runs translated code from `code` on. The frame's derived fields and flags have been set; afterwards the vCPU's
/// general, SSE and x87 registers are up to date, its RIP only if the result is not [`Left::Link`].
pub fn enter(stack: &mut FrameStack, stubs: &Stubs, code: u64, ctx: &mut Ctx<'_>) -> Left {
    let mut run = Run { ctx: std::ptr::from_mut(ctx).cast(), panic: None };
    let frame = stack.get();
    frame.gpr = ctx.cpu.gpr.as_mut_ptr() as u64;
    frame.cpu = std::ptr::from_mut(ctx.cpu) as u64;
    frame.intr = ctx.sys.board.intr_address(ctx.cpu.index);
    frame.xmm = ctx.cpu.fpu.xmm.as_mut_ptr() as u64;
    frame.notes.clear();
    frame.run = &raw mut run;
    let frame = stack.frame();
    // SAFETY: `stubs.enter` is the address of code `stubs::assemble` made for this signature and `code` that of an entry
    // the translator made; both stay mapped while the translator's buffer, borrowed by the caller, lives. Generated
    // code keeps the ABI's callee-saved registers, touches only the frame, the registers whose addresses are in it,
    // TLB entries, and guest memory those entries point to (docs/unsafe.md), and calls only `helper`.
    let status = unsafe {
        let f: unsafe extern "sysv64" fn(*mut Frame, u64) -> u32 = std::mem::transmute(stubs.enter);
        f(frame, code)
    };
    let frame = stack.get();
    frame.run = std::ptr::null_mut();
    if std::mem::take(&mut frame.sse) != 0 {
        ctx.cpu.fpu.mxcsr = frame.mxcsr;
    }
    frame.take_x87(ctx.cpu);
    if let Some(p) = run.panic.take() {
        resume_unwind(p);
    }
    match status {
        0 => Left::Link(frame.site as u32),
        2 => Left::Fault(frame.fault),
        3 => Left::TripleFault,
        _ => Left::Boundary,
    }
}

/// Does at a site what translated code does not. 0: go on; else leave.
pub(super) extern "sysv64" fn helper(frame: *mut Frame, site: *const Site) -> u32 {
    // SAFETY: called only from generated code between `enter`'s call and its return: `frame` is the frame it was given,
    // `frame.run` the live `Run` of that call with its `ctx`, to which no other reference is in use meanwhile; `site` is
    // an address the translator put into the code of a block, whose sites live as long as its code can be reached.
    let (frame, run, site) = unsafe { (&mut *frame, &mut *(*frame).run, &*site) };
    // SAFETY: as above; the lifetime of the borrow ends with this function.
    let ctx: &mut Ctx<'_> = unsafe { &mut *run.ctx };
    match catch_unwind(AssertUnwindSafe(|| site::perform(frame, ctx, site))) {
        Ok(Outcome::Resume) => 0,
        Ok(Outcome::Leave) => 1,
        Ok(Outcome::Fault) => 2,
        Ok(Outcome::TripleFault) => 3,
        Err(p) => {
            run.panic = Some(p);
            1
        }
    }
}
