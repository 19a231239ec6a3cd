//! Executes one instruction on the host CPU, from a full register state to a full register state.
//!
//! Code, data and the register block lie at fixed low addresses, so that guest and host agree on RIP-relative
//! operands and on every pointer, and so that the trampoline needs no register of its own. One instance at a time.
#![allow(unsafe_code)]

use crate::{Fault, Outcome, State, USER_FLAGS};
use iced_x86::code_asm::*;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Address of the instruction under test.
pub const INSN: u64 = 0x10_1100;
/// Where a branch under test goes when taken; within reach of an 8-bit displacement.
pub const TAKEN: u64 = 0x10_1140;
/// The window of memory operands: crosses a page boundary in its middle.
pub const DATA: u64 = 0x20_0800;
/// Bytes in the window.
pub const DATA_LEN: usize = 0x1000;

const CODE: u64 = 0x10_0000;
const CODE_LEN: usize = 0x2000;
/// The trampoline to 32-bit code.
const CODE32: u64 = 0x10_0800;
/// 32-bit code that goes back to 64-bit code.
const BACK32: u64 = 0x10_1180;
/// Linux's user code segments, 32-bit and 64-bit, and its data segment.
const CS32: u16 = 0x23;
const CS64: u16 = 0x33;
const DS32: u32 = 0x2b;
const BLOCK: u64 = 0x18_0000;
const BLOCK_LEN: usize = 0x1000;
const DATA_MAP: u64 = 0x20_0000;
const DATA_MAP_LEN: usize = 0x2000;
const ALT_STACK: usize = 256 << 10;

/// The register block the trampoline loads from and saves to.
#[repr(C, align(64))]
struct Block {
    guest_fx: Fx,
    host_fx: Fx,
    gpr: [u64; 16],
    flags: u64,
    taken: u64,
    host_rsp: u64,
    /// Where the 32-bit trampoline jumps: [`INSN`] in a 32-bit code segment.
    far: [u16; 4],
}

/// An FXSAVE64 image (SDM vol. 1, 10.5.1).
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Fx {
    fcw: u16,
    fsw: u16,
    ftw: u8,
    reserved: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mxcsr_mask: u32,
    st: [[u8; 16]; 8],
    xmm: [u128; 16],
    rest: [u8; 96],
}

const GPR: u64 = BLOCK + std::mem::offset_of!(Block, gpr) as u64;
const FLAGS: u64 = BLOCK + std::mem::offset_of!(Block, flags) as u64;
const TAKEN_MARK: u64 = BLOCK + std::mem::offset_of!(Block, taken) as u64;
const HOST_RSP: u64 = BLOCK + std::mem::offset_of!(Block, host_rsp) as u64;
const FAR: u64 = BLOCK + std::mem::offset_of!(Block, far) as u64;
const GUEST_FX: u64 = BLOCK + std::mem::offset_of!(Block, guest_fx) as u64;
const HOST_FX: u64 = BLOCK + std::mem::offset_of!(Block, host_fx) as u64;

static ONE: Mutex<()> = Mutex::new(());
/// The signal the instruction under test raised, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Where the signal handler resumes.
static EXIT_ADDR: AtomicU64 = AtomicU64::new(0);

const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// The host CPU, ready to execute single instructions.
pub struct Native {
    /// Exits of the 64-bit and the 32-bit trampoline.
    exit: u64,
    exit32: u64,
    /// The code at [`TAKEN`] for each of them.
    landing: Vec<u8>,
    landing32: Vec<u8>,
    old: Vec<(i32, libc::sigaction)>,
    alt: Vec<u8>,
    _one: MutexGuard<'static, ()>,
}

/// All general registers in encoding order.
const REGS: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// The code at `base` that enters the instruction, and the code that comes back; and the latter's address.
fn trampoline(base: u64, compat: bool) -> Result<(Vec<u8>, u64), iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut exit = a.create_label();
    for r in SAVED {
        a.push(r)?;
    }
    a.pushfq()?;
    a.fxsave64(ptr(HOST_FX))?;
    a.mov(qword_ptr(HOST_RSP), rsp)?;
    a.fxrstor64(ptr(GUEST_FX))?;
    if compat {
        set_data_segments(&mut a, DS32)?;
    }
    a.push(qword_ptr(FLAGS))?;
    a.popfq()?;
    for (n, r) in REGS.into_iter().enumerate() {
        a.mov(r, qword_ptr(GPR + 8 * n as u64))?;
    }
    if compat {
        a.jmp(fword_ptr(FAR))?
    } else {
        a.jmp(INSN)?
    }
    a.set_label(&mut exit)?;
    for (n, r) in REGS.into_iter().enumerate() {
        a.mov(qword_ptr(GPR + 8 * n as u64), r)?;
    }
    a.mov(rsp, qword_ptr(HOST_RSP))?;
    a.pushfq()?;
    a.pop(qword_ptr(FLAGS))?;
    if compat {
        set_data_segments(&mut a, 0)?;
    }
    a.fxsave64(ptr(GUEST_FX))?;
    a.fxrstor64(ptr(HOST_FX))?;
    a.popfq()?;
    for r in SAVED.into_iter().rev() {
        a.pop(r)?;
    }
    a.ret()?;
    let out = a.assemble_options(base, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let exit = out.label_ip(&exit)?;
    Ok((out.inner.code_buffer, exit))
}

/// 32-bit code needs DS and ES; 64-bit code does not care. Uses EAX.
fn set_data_segments(a: &mut CodeAssembler, selector: u32) -> Result<(), iced_x86::IcedError> {
    a.mov(eax, selector)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)
}

/// The landing place of taken branches: leaves a mark, touches no register or flag. The bytes mean the same in 32-
/// and in 64-bit code.
fn landing(exit: u64) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(dword_ptr(TAKEN_MARK), 1)?;
    a.jmp(exit)?;
    a.assemble(TAKEN)
}

/// 32-bit code: a far jump to `exit` in 64-bit code.
fn back_from_32(exit: u64) -> Vec<u8> {
    let mut out = vec![0xea];
    out.extend_from_slice(&(exit as u32).to_le_bytes());
    out.extend_from_slice(&CS64.to_le_bytes());
    out
}

/// Maps anonymous memory at exactly `at`.
fn map_at(at: u64, len: usize, prot: ProtFlags) -> Result<(), String> {
    // SAFETY: FIXED_NOREPLACE never replaces an existing mapping; the range becomes ours alone.
    let p = unsafe { mmap_anonymous(at as *mut _, len, prot, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE) };
    match p {
        Ok(p) if p as u64 == at => Ok(()),
        Ok(_) => Err(format!("the kernel did not map {at:#x}")),
        Err(e) => Err(format!("cannot map {len:#x} bytes at {at:#x}: {e}")),
    }
}

/// Copies `bytes` to `at`, inside one of our mappings.
fn put(at: u64, bytes: &[u8]) {
    // SAFETY: callers pass addresses inside the mappings that `Native::new` made and that live as long as it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let uc = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext_t to an SA_SIGINFO handler, ours alone until it returns.
    let regs = unsafe { &mut (*uc).uc_mcontext.gregs };
    let rip = regs[libc::REG_RIP as usize] as u64;
    if !(CODE..CODE + CODE_LEN as u64).contains(&rip) {
        // Not ours: the default action ends the process with the true signal.
        // SAFETY: signal(2) is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Ordering::SeqCst);
    regs[libc::REG_RIP as usize] = EXIT_ADDR.load(Ordering::SeqCst) as i64;
    let selectors = &mut regs[libc::REG_CSGSFS as usize];
    *selectors = (*selectors & !0xffff) | i64::from(CS64);
}

impl Native {
    /// Prepares the host. Waits for any other instance to go; fails where the fixed addresses cannot be had.
    pub fn new() -> Result<Self, String> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let rw = ProtFlags::READ | ProtFlags::WRITE;
        map_at(CODE, CODE_LEN, rw | ProtFlags::EXEC)?;
        map_at(BLOCK, BLOCK_LEN, rw)?;
        map_at(DATA_MAP, DATA_MAP_LEN, rw)?;
        let (code, exit) = trampoline(CODE, false).map_err(|e| e.to_string())?;
        let (code32, exit32) = trampoline(CODE32, true).map_err(|e| e.to_string())?;
        put(CODE, &code);
        put(CODE32, &code32);
        put(BACK32, &back_from_32(exit32));
        let at_taken = |exit| landing(exit).map_err(|e| e.to_string());
        let (landing, landing32) = (at_taken(exit)?, at_taken(BACK32)?);
        let mut alt = vec![0u8; ALT_STACK];
        let stack = libc::stack_t { ss_sp: alt.as_mut_ptr().cast(), ss_flags: 0, ss_size: ALT_STACK };
        // SAFETY: the stack lives until `drop`, which disables it.
        unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
        let old = SIGNALS.into_iter().map(|s| (s, catch(s))).collect();
        Ok(Self { exit, exit32, landing, landing32, old, alt, _one: one })
    }

    /// Can this kernel run 32-bit code in a 64-bit process?
    pub fn has_32_bit_code(&mut self) -> bool {
        let mut s = State::default();
        s.gpr[4] = DATA;
        s.gpr[0] = 5;
        // INC EAX; in 64-bit code a lone REX prefix.
        self.run32(&[0x40], &mut s, &mut [0; DATA_LEN]) == Outcome::Retired && s.gpr[0] == 6
    }

    /// Executes `code`, which must be one instruction, at [`INSN`] with registers `state` and `data` in the window;
    /// both are updated. After a fault `state` is as the fault left it.
    pub fn run(&mut self, code: &[u8], state: &mut State, data: &mut [u8; DATA_LEN]) -> Outcome {
        let exit = self.exit;
        EXIT_ADDR.store(exit, Ordering::SeqCst);
        put(TAKEN, &self.landing);
        self.enter(CODE, exit, code, state, data)
    }

    /// As [`Native::run`], in a flat 32-bit code segment.
    pub fn run32(&mut self, code: &[u8], state: &mut State, data: &mut [u8; DATA_LEN]) -> Outcome {
        EXIT_ADDR.store(self.exit32, Ordering::SeqCst);
        put(TAKEN, &self.landing32);
        let outcome = self.enter(CODE32, BACK32, code, state, data);
        for r in &mut state.gpr {
            *r &= 0xffff_ffff; // the upper halves are not defined after leaving 32-bit code
        }
        outcome
    }

    fn enter(
        &mut self,
        trampoline: u64,
        exit: u64,
        code: &[u8],
        state: &mut State,
        data: &mut [u8; DATA_LEN],
    ) -> Outcome {
        let back = INSN + code.len() as u64;
        let mut bytes = code.to_vec();
        bytes.push(0xe9);
        bytes.extend_from_slice(&(exit.wrapping_sub(back + 5) as u32).to_le_bytes());
        assert!(bytes.len() as u64 <= TAKEN - INSN, "not one instruction");
        put(INSN, &bytes);
        put(DATA, data);
        SIGNAL.store(0, Ordering::SeqCst);
        let block = BLOCK as *mut Block;
        // SAFETY: the block is mapped, aligned and ours; the trampoline keeps every callee-saved register,
        // the flags and the FPU state, and comes back to here whatever the instruction does: by falling through, by
        // the landing place, or through the signal handler.
        let after = unsafe {
            fill(&mut *block, state);
            let enter: extern "sysv64" fn() = std::mem::transmute(trampoline as *const ());
            enter();
            std::ptr::copy_nonoverlapping(DATA as *const u8, data.as_mut_ptr(), DATA_LEN);
            block.read_volatile()
        };
        let signal = SIGNAL.load(Ordering::SeqCst);
        collect(&after, state);
        state.rip = match () {
            _ if signal != 0 => INSN,
            _ if after.taken != 0 => TAKEN,
            _ => back,
        };
        match signal {
            0 => Outcome::Retired,
            libc::SIGILL => Outcome::Fault(Fault::Undefined),
            libc::SIGFPE => Outcome::Fault(Fault::Arithmetic),
            _ => Outcome::Fault(Fault::Memory),
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        for (s, a) in &self.old {
            // SAFETY: puts back what sigaction itself gave.
            unsafe { libc::sigaction(*s, a, std::ptr::null_mut()) };
        }
        let off =
            libc::stack_t { ss_sp: self.alt.as_mut_ptr().cast(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: disables the alternate stack of this thread before its memory goes.
        unsafe { libc::sigaltstack(&off, std::ptr::null_mut()) };
        for (at, len) in [(CODE, CODE_LEN), (BLOCK, BLOCK_LEN), (DATA_MAP, DATA_MAP_LEN)] {
            // SAFETY: these mappings are ours, and nothing refers to them any more.
            let _ = unsafe { munmap(at as *mut _, len) };
        }
    }
}

/// Routes `signal` to [`on_signal`]; returns the action there was.
fn catch(signal: i32) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is valid; the handler has the SA_SIGINFO signature.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = on_signal as extern "C" fn(_, _, _) as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(signal, &new, &mut old);
        old
    }
}

fn fill(b: &mut Block, s: &State) {
    b.gpr = s.gpr;
    b.flags = s.flags | 0x202;
    b.taken = 0;
    b.far = [INSN as u16, (INSN >> 16) as u16, CS32, 0];
    let mut st = [[0; 16]; 8];
    for (image, (significand, exponent)) in st.iter_mut().zip(s.st) {
        image[..8].copy_from_slice(&significand.to_le_bytes());
        image[8..10].copy_from_slice(&exponent.to_le_bytes());
    }
    b.guest_fx = Fx {
        fcw: s.fcw,
        fsw: s.fsw,
        ftw: s.ftw,
        reserved: 0,
        fop: 0,
        fip: 0,
        fdp: 0,
        mxcsr: s.mxcsr,
        mxcsr_mask: 0,
        st,
        xmm: s.xmm,
        rest: [0; 96],
    };
}

fn collect(b: &Block, s: &mut State) {
    s.gpr = b.gpr;
    s.flags = b.flags & USER_FLAGS;
    let fx = &b.guest_fx;
    (s.fcw, s.fsw, s.ftw, s.mxcsr, s.xmm) = (fx.fcw, fx.fsw, fx.ftw, fx.mxcsr, fx.xmm);
    for ((significand, exponent), image) in s.st.iter_mut().zip(fx.st) {
        *significand = u64::from_le_bytes(std::array::from_fn(|n| image[n]));
        *exponent = u16::from_le_bytes([image[8], image[9]]);
    }
}
