//! The frame generated code runs on: what it shares with Rust, at fixed offsets from the host's RSP. Owns the layout
//! and the stack below it, on which the helpers called from generated code run.
//!
//! While generated code runs, RSP points to the frame, and the eight bytes below it ([`FLAGS_BELOW`]) hold the guest's
//! saved arithmetic flags: PUSHFQ writes them there.

#![allow(unsafe_code)]

use super::run::{self, Run};
use super::stubs::Stubs;
use super::x87_image::{Image, Notes, at};
use crate::clock::{Clock, ClockKind};
use crate::ctx::System;
use crate::exception::Exception;
use crate::isa::sse::native::mxcsr;
use crate::mmu::tlb::FETCH;
use crate::translate::mode::ModeKey;
use crate::translate::site::Misfit;
use crate::translate::unit::Key;
use crate::vcpu::{Seg, Vcpu, cr0, cr4};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ptr::NonNull;

/// What generated code and Rust share. Every field generated code touches has its offset below.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Frame {
    // What every block uses comes first, within reach of a one-byte displacement.
    /// Guest R12 to R15: no host register is left for them.
    pub high: [u64; 4],
    /// The TLB arrays of the current address space and privilege: data and fetches.
    pub tlb: u64,
    pub itlb: u64,
    /// Windows that are not in R15.
    pub windows: [u64; WINDOWS],
    /// Bases of FS and GS as they are added to addresses; translated code uses other segments only at base 0.
    pub seg_base: [u64; 2],
    /// The jump cache of the current mode.
    pub jump_cache: u64,
    /// Where an indirect jump goes.
    pub target: u64,
    /// The stubs `slow` and `leave` (see `stubs`).
    pub slow: u64,
    pub leave: u64,
    /// Nonzero while the guest's SSE registers are in the host's.
    pub sse: u32,
    /// Nonzero if they may be loaded, see [`sse_native`].
    pub sse_ready: u32,
    /// The stub `enter_sse`.
    pub enter_sse: u64,
    /// MXCSR of the guest, kept in the host's MXCSR while `sse`, and MXCSR of Rust code.
    pub mxcsr: u32,
    pub host_mxcsr: u32,
    /// Where the guest's x87 state is: see [`super::x87_image::at`].
    pub x87: u32,
    /// Pointers to the last x87 instruction and its memory operand, as far as translated code noted them and nobody has
    /// fetched them.
    pub notes: Notes,
    /// The x87 state as FNSAVE leaves it and FRSTOR takes it.
    pub x87_image: Image,
    /// The stub `slow_x87`.
    pub slow_x87: u64,
    /// Instructions left before [`Frame::base`], while a helper runs; else in R12, counted down by each block.
    pub budget: i64,
    /// Where a slow path comes back to.
    pub resume: u64,
    /// Address of the vCPU's general registers and of its XMM registers.
    pub gpr: u64,
    pub xmm: u64,
    /// Address of the vCPU, and of the byte that says whether an interrupt waits for it.
    pub cpu: u64,
    pub intr: u64,
    /// The TSC is this, less the budget left; if `tsc_ready`.
    pub tsc: u64,
    pub tsc_ready: u32,
    /// What generated code left for: the address of a `Site`, or the number of a link slot.
    pub site: u64,
    /// RFLAGS as the guest's arithmetic flags were saved, while a helper runs.
    pub flags: u64,
    /// The host's stack pointer to return to.
    pub host_rsp: u64,
    /// The helper slow paths call.
    pub helper: u64,
    /// The budget in the first iteration of a loop.
    pub first: i64,
    /// For a moment's use.
    pub scratch: [u64; 4],
    /// The stub `remember`.
    pub remember: u64,
    /// What remembered pages must be stamped with to be used, see [`stamp`].
    pub stamp: u64,
    /// The same while `sse`, else [`NO_STAMP`].
    pub stamp_sse: u64,
    /// What translated code remembers.
    pub remembered: [Remembered; REMEMBERED],
    // Below: Rust only.
    /// The stub `dispatch`.
    pub dispatch: u64,
    /// Translated code may go on by itself after a helper executed the end of a block.
    pub roam: bool,
    /// Exceptions (a bit each) a debugger wants to stop before; all of them if there are breakpoints.
    pub stops: u32,
    /// icount = base - budget at the start of a block.
    pub base: u64,
    /// [`crate::mmu::tlb::Tlb::epoch`] when generated code was entered.
    pub epoch: u64,
    /// The jump caches of all modes; 0: none yet.
    pub jump_caches: [u64; ModeKey::COUNT],
    /// What the helper came back with a fault for.
    pub fault: Exception,
    /// The block in which something keeps missing, if one was found.
    pub adapt: Option<Misfit>,
    /// The block the budget was used up in.
    pub sampled: Option<Key>,
    /// The run in progress.
    pub run: *mut Run,
}

/// Windows a block may have open besides the one in R15.
pub const WINDOWS: usize = 4;

/// Pages a lookup found, which are neighbours in linear memory and in the slab; or (see `translate::hot`) what the
/// pages of a block were remembered under.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Remembered {
    /// Base of the first linear page, or the stamp.
    pub tag: u64,
    /// Offsets from there below this may be accessed; 0: no pages.
    pub limit: u64,
    /// Host address of the first page.
    pub host: u64,
    /// How often others may still be found before somebody asks whether this is worth it.
    pub left: i32,
    /// A page less the size of the access.
    pub room: u32,
}

/// Pages remembered at most, by all blocks together.
pub const REMEMBERED: usize = 4096;

/// Neither a stamp nor what a line that was never used holds in its place, with any bits of a view.
const NO_STAMP: u64 = 1;

/// Names what is remembered in one TLB array as long as nothing is revoked.
pub const fn stamp(array: u32, epoch: u64) -> u64 {
    const { assert!(crate::mmu::asid::ASIDS * crate::mmu::tlb::ARRAYS <= 1 << 10) };
    (epoch + 1) << 10 | array as u64
}

macro_rules! offsets {
    ($t:ty: $($name:ident = $field:ident $(. $inner:ident)?;)*) => {
        $(pub const $name: $t = {
            let at = std::mem::offset_of!(Frame, $field $(. $inner)?);
            assert!(at <= <$t>::MAX as usize);
            at as $t
        };)*
    };
}
offsets! { i8:
    HIGH = high;
    TLB = tlb;
    ITLB = itlb;
    OPEN = windows;
    SEG_BASE = seg_base;
    JUMP_CACHE = jump_cache;
    TARGET = target;
    SLOW = slow;
    LEAVE = leave;
}
offsets! { i32:
    SSE = sse;
    SSE_READY = sse_ready;
    ENTER_SSE = enter_sse;
    BUDGET = budget;
    MXCSR = mxcsr;
    HOST_MXCSR = host_mxcsr;
    X87 = x87;
    X87_FIP = notes.fip;
    X87_FDP = notes.fdp;
    X87_SEG = notes.seg;
    X87_IMAGE = x87_image;
    SLOW_X87 = slow_x87;
    RESUME = resume;
    GPR = gpr;
    XMM = xmm;
    CPU = cpu;
    INTR = intr;
    TSC = tsc;
    TSC_READY = tsc_ready;
    SITE = site;
    FLAGS = flags;
    HOST_RSP = host_rsp;
    HELPER = helper;
    FIRST = first;
    SCRATCH = scratch;
    REMEMBER = remember;
    STAMP = stamp;
    STAMP_SSE = stamp_sse;
    PAGES = remembered;
}

/// Where the guest's saved flags are, relative to the frame.
pub const FLAGS_BELOW: i8 = -8;

/// Bytes of stack below the frame, for helpers: device models and recorders run on it.
const STACK: usize = 2 << 20;
const GUARD: usize = 4096;
const FRAME: usize = size_of::<Frame>().next_multiple_of(4096);
const TOTAL: usize = GUARD + STACK + FRAME;

/// A frame and the stack below it, with a guard page at its end.
pub struct FrameStack {
    map: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone and is valid in every thread.
unsafe impl Send for FrameStack {}

impl FrameStack {
    /// A frame for code that calls `stubs`; the rest is set when it is entered.
    pub fn new(stubs: &Stubs) -> std::io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let p = unsafe {
            mmap_anonymous(std::ptr::null_mut(), TOTAL, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let map =
            NonNull::new(p.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap returned address 0"))?;
        let mut this = Self { map };
        // SAFETY: the first page of the mapping just made; nothing has been put there.
        unsafe { mprotect(p, GUARD, MprotectFlags::empty()) }?;
        let frame = this.get();
        (frame.adapt, frame.sampled) = (None, None);
        (frame.slow, frame.leave, frame.dispatch) = (stubs.slow, stubs.leave, stubs.dispatch);
        (frame.enter_sse, frame.slow_x87) = (stubs.enter_sse, stubs.slow_x87);
        frame.remember = stubs.remember;
        frame.helper = run::helper as *const () as u64;
        frame.host_mxcsr = super::thunk::HOST_MXCSR;
        Ok(this)
    }

    /// The frame's address.
    pub fn frame(&self) -> *mut Frame {
        // SAFETY: GUARD + STACK < TOTAL, so the offset stays inside the mapping.
        unsafe { self.map.as_ptr().add(GUARD + STACK) }.cast()
    }

    /// The frame, between two runs of generated code.
    pub fn get(&mut self) -> &mut Frame {
        // SAFETY: the mapping is zero-filled or holds what was stored before, both valid for every field (integers, flags,
        // enums with a variant 0, and a raw pointer), page-aligned, and generated code does not run while `self` is borrowed here.
        unsafe { &mut *self.frame() }
    }
}

impl Drop for FrameStack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the frame is only reached through `self`.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), TOTAL) };
    }
}

/// May SSE instructions run on the host, with the guest's MXCSR?
pub fn sse_native(cpu: &Vcpu) -> bool {
    cpu.cr0 & (cr0::EM | cr0::TS) == 0
        && cpu.cr4 & cr4::OSFXSR != 0
        && cpu.fpu.mxcsr & mxcsr::MASKS == mxcsr::MASKS
}

impl Frame {
    /// Takes over what generated code needs of a vCPU's derived state.
    pub fn refresh(&mut self, cpu: &Vcpu, sys: &System) {
        self.refresh_tlb(cpu, sys);
        self.stamp = stamp(cpu.tlb.0, sys.mem.tlb.epoch());
        self.stamp_sse = if self.sse == 0 { NO_STAMP } else { self.stamp };
        self.refresh_bases(cpu);
        self.refresh_sse(cpu);
        self.refresh_tsc(cpu, &sys.clock);
    }

    /// Takes over what RDTSC needs if it may be executed at every CPL and asks nobody.
    fn refresh_tsc(&mut self, cpu: &Vcpu, clock: &Clock) {
        let plain = clock.kind == ClockKind::Virtual && clock.ns_per_insn == 1;
        self.tsc_ready = (plain && cpu.cr4 & cr4::TSD == 0).into();
        self.tsc = self.base.wrapping_add(clock.skew).wrapping_add(cpu.msr.tsc_offset);
    }

    /// Moves the x87 state and what was noted of it into the vCPU; true if the state was not there. A helper may do this
    /// only at a site whose stub has saved the host's registers.
    pub fn take_x87(&mut self, cpu: &mut Vcpu) -> bool {
        self.notes.take(cpu);
        let away = std::mem::replace(&mut self.x87, at::VCPU) != at::VCPU;
        if away {
            self.x87_image.get(&mut cpu.fpu);
        }
        away
    }

    /// The reverse: the stub loads the host's registers.
    pub fn give_x87(&mut self, cpu: &Vcpu) {
        self.x87_image.set(&cpu.fpu);
        self.x87 = at::IMAGE;
    }

    /// Takes over which TLB arrays are used.
    pub fn refresh_tlb(&mut self, cpu: &Vcpu, sys: &System) {
        let tlb = &sys.mem.tlb;
        self.tlb = tlb.base(cpu.tlb.0) as u64;
        self.itlb = tlb.base(cpu.tlb.0 | FETCH) as u64;
    }

    /// Takes over the bases of FS and GS.
    pub fn refresh_bases(&mut self, cpu: &Vcpu) {
        self.seg_base = [cpu.seg[Seg::Fs as usize].lin_base, cpu.seg[Seg::Gs as usize].lin_base];
    }

    /// Takes over whether SSE instructions may run on the host, and MXCSR.
    pub fn refresh_sse(&mut self, cpu: &Vcpu) {
        self.sse_ready = sse_native(cpu).into();
        self.mxcsr = cpu.fpu.mxcsr;
    }

    /// Offset of the base of FS or GS.
    pub const fn seg_offset(seg: u8) -> i8 {
        SEG_BASE + 8 * (seg as i8 - Seg::Fs as i8)
    }

    /// Offset of guest register `r` (12 to 15).
    pub const fn high_offset(r: u8) -> i8 {
        HIGH + 8 * (r as i8 - 12)
    }
}

/// Segments whose base generated code always adds.
pub const fn has_base(seg: u8) -> bool {
    seg == Seg::Fs as u8 || seg == Seg::Gs as u8
}
