//! The fixed pieces of generated code: the way in, the way out, and the way to a helper and back. Owns which host
//! register holds which guest register.
//!
//! RAX and R15 are scratch, R12 is the budget; guest RAX is in R14, guest RSP in R13, guest R12 to R15 in the
//! frame; every other guest register is in the host register of its name.

// `dynasm!` converts register numbers.
#![allow(clippy::useless_conversion)]

use super::frame::{
    BUDGET, FLAGS, FLAGS_BELOW, GPR, HELPER, HIGH, HOST_MXCSR, HOST_RSP, MXCSR, RESUME, Remembered, SCRATCH,
    SITE, SSE, STAMP, STAMP_SSE, TARGET, X87, X87_IMAGE, XMM,
};
use super::x87_image::at;
use crate::translate::jump_cache;
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmError, DynasmLabelApi, VecAssembler, dynasm};

/// Host register of each guest register; [`IN_FRAME`] if it has none.
pub const HOST: [u8; 16] = [14, 1, 2, 3, 13, 5, 6, 7, 8, 9, 10, 11, IN_FRAME, IN_FRAME, IN_FRAME, IN_FRAME];
/// Marks a guest register that lives in the frame.
pub const IN_FRAME: u8 = 0xff;

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    /// `extern "sysv64" fn(frame, code) -> u32`: enters translated code at an entry that expects saved flags. Returns 0
    /// if a link slot was left through (its number is in the frame's `site`), else what the helper returned.
    pub enter: u64,
    /// Leaves through the link slot whose number is in EAX; the guest's flags are saved.
    pub leave: u64,
    /// Goes on at the guest RIP in the frame's `target`, to which the vCPU's RIP is set, too: through the jump cache, or
    /// leaves.
    pub dispatch: u64,
    /// Calls the helper with the site whose address is in RAX, then resumes at the frame's `resume`, or leaves.
    pub slow: u64,
    /// The same, at a site where the x87 state may be looked at: it is saved before.
    pub slow_x87: u64,
    /// Loads the guest's SSE state and jumps to the frame's `resume`. RAX is lost; RFLAGS stay.
    pub enter_sse: u64,
    /// Remembers a page, R15, in the line RAX points to: see [`remember`].
    pub remember: u64,
}

type Asm = VecAssembler<X64Relocation>;

/// Assembles the stubs for address `base`: the code, and where each is in it.
pub fn assemble(base: u64) -> Result<(Vec<u8>, Stubs), DynasmError> {
    let mut a: Asm = VecAssembler::new(base as usize);
    let here = |a: &Asm| base + a.offset().0 as u64;
    let enter = here(&a);
    dynasm!(a ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
        ; mov [rdi + HOST_RSP], rsp
        ; mov [BYTE rdi + TARGET], rsi
        ; mov rsp, rdi
    );
    load_registers(&mut a);
    dynasm!(a ; .arch x64 ; jmp QWORD [BYTE rsp + TARGET]);

    let leave = here(&a);
    dynasm!(a ; .arch x64 ; mov [rsp + SITE], rax);
    store_state(&mut a);
    dynasm!(a ; .arch x64
        ; xor eax, eax
        ; out:
        ; cmp BYTE [rsp + X87], at::HOST as i8
        ; jne >elsewhere
        ; fnsave [rsp + X87_IMAGE]
        ; elsewhere:
        ; mov rsp, [rsp + HOST_RSP]
        ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );

    let slow_x87 = here(&a);
    dynasm!(a ; .arch x64
        ; cmp BYTE [rsp + X87], at::HOST as i8
        ; jne >elsewhere
        ; fnsave [rsp + X87_IMAGE]
        ; mov DWORD [rsp + X87], at::IMAGE as i32
        ; elsewhere:
    );
    let slow = here(&a);
    dynasm!(a ; .arch x64 ; mov [rsp + SITE], rax);
    store_state(&mut a);
    dynasm!(a ; .arch x64
        ; mov rdi, rsp
        ; mov rsi, [rsp + SITE]
        ; call QWORD [rsp + HELPER]
        ; test eax, eax
        ; jne <out
        ; cmp DWORD [rsp + SSE], 0
        ; je >plain
        ; call ->load_sse
        ; plain:
        ; cmp BYTE [rsp + X87], at::IMAGE as i8
        ; jne >elsewhere
        ; frstor [rsp + X87_IMAGE]
        ; mov DWORD [rsp + X87], at::HOST as i32
        ; elsewhere:
    );
    load_registers(&mut a);
    dynasm!(a ; .arch x64 ; jmp QWORD [rsp + RESUME]);

    let dispatch = here(&a);
    dynasm!(a ; .arch x64 ; mov rax, [BYTE rsp + TARGET]);
    let miss = a.new_dynamic_label();
    jump_cache::lookup(&mut a, miss);
    dynasm!(a ; .arch x64
        ; jmp QWORD [BYTE r15 + jump_cache::CODE]
        ; =>miss
        ; mov rax, [BYTE rsp + TARGET]
    );
    let miss = a.new_dynamic_label();
    jump_cache::lookup_beside(&mut a, miss);
    dynasm!(a ; .arch x64 ; jmp QWORD [BYTE r15 + jump_cache::CODE] ; =>miss);
    store_state(&mut a);
    dynasm!(a ; .arch x64
        ; mov eax, 1
        ; jmp <out
    );

    dynasm!(a ; .arch x64
        ; ->store_sse:
        ; mov rax, [rsp + 8 + XMM]
    );
    for n in 0..16u8 {
        dynasm!(a ; .arch x64 ; movups [rax + i32::from(n) * 16], Rx(n));
    }
    dynasm!(a ; .arch x64
        ; stmxcsr [rsp + 8 + MXCSR]
        ; ldmxcsr [rsp + 8 + HOST_MXCSR]
        ; ret
        ; ->load_sse:
        ; mov rax, [rsp + 8 + XMM]
    );
    load_xmm(&mut a);
    dynasm!(a ; .arch x64 ; ldmxcsr [rsp + 8 + MXCSR] ; ret);

    // Nothing is pushed: the guest's flags are below the frame.
    let enter_sse = here(&a);
    dynasm!(a ; .arch x64
        ; mov DWORD [rsp + SSE], 1
        ; mov rax, [rsp + STAMP]
        ; mov [rsp + STAMP_SSE], rax
        ; mov rax, [rsp + XMM]
    );
    load_xmm(&mut a);
    dynasm!(a ; .arch x64 ; ldmxcsr [rsp + MXCSR] ; jmp QWORD [rsp + RESUME]);
    let remembers = here(&a);
    remember(&mut a);
    Ok((a.finalize()?, Stubs { enter, leave, slow, slow_x87, dispatch, enter_sse, remember: remembers }))
}

/// The linear page in R15, at the host address in the second word of the frame's scratch, joins those in the line RAX points
/// to if it is their neighbour in both, else it replaces them. The first word is an offset in it, which comes back in R15 as
/// an offset from where the line begins. Goes on at the frame's `resume`; RFLAGS and RAX are lost.
fn remember(a: &mut Asm) {
    const OFFSET: i32 = SCRATCH;
    const PAGE: i32 = SCRATCH + 8;
    const RCX: i32 = SCRATCH + 16;
    const RDX: i32 = SCRATCH + 24;
    const TAG: i8 = std::mem::offset_of!(Remembered, tag) as i8;
    const LIMIT: i8 = std::mem::offset_of!(Remembered, limit) as i8;
    const HOST: i8 = std::mem::offset_of!(Remembered, host) as i8;
    const ROOM: i8 = std::mem::offset_of!(Remembered, room) as i8;
    dynasm!(a ; .arch x64
        ; mov [rsp + RCX], rcx
        ; mov [rsp + RDX], rdx
        // Empty?
        ; mov rdx, [BYTE rax + LIMIT]
        ; test rdx, rdx
        ; je >replace
        // As far from the line's first page here as there?
        ; mov rcx, [rsp + PAGE]
        ; sub rcx, [BYTE rax + HOST]
        ; sub r15, [BYTE rax + TAG]
        ; cmp r15, rcx
        ; jne >other
        // RDX = length of the line's pages.
        ; mov ecx, [BYTE rax + ROOM]
        ; sub rdx, rcx
        ; add rdx, 4095
        ; cmp r15, rdx
        ; je >behind
        ; cmp r15, -4096
        ; je >before
        ; other:
        ; add r15, [BYTE rax + TAG]
        ; replace:
        ; mov [BYTE rax + TAG], r15
        ; mov rcx, [rsp + PAGE]
        ; mov [BYTE rax + HOST], rcx
        ; mov ecx, [BYTE rax + ROOM]
        ; add rcx, 1
        ; mov [BYTE rax + LIMIT], rcx
        ; mov r15, [rsp + OFFSET]
        ; jmp >done
        ; before:
        ; add [BYTE rax + TAG], r15
        ; add [BYTE rax + HOST], r15
        ; xor r15d, r15d
        ; behind:
        ; add r15, [rsp + OFFSET]
        ; add QWORD [BYTE rax + LIMIT], 4096
        ; done:
        ; mov rcx, [rsp + RCX]
        ; mov rdx, [rsp + RDX]
        ; jmp QWORD [rsp + RESUME]
    );
}

/// The guest's XMM registers, which RAX points to, into the host's.
fn load_xmm(a: &mut Asm) {
    for n in 0..16u8 {
        dynasm!(a ; .arch x64 ; movups Rx(n), [rax + i32::from(n) * 16]);
    }
}

/// The vCPU's registers and the frame's flags into their places.
fn load_registers(a: &mut Asm) {
    dynasm!(a ; .arch x64 ; mov r12, [rsp + BUDGET] ; mov rax, [rsp + FLAGS] ; mov [BYTE rsp + FLAGS_BELOW], rax ; mov rax, [rsp + GPR]);
    for (guest, host) in (0i8..).zip(HOST) {
        match host {
            IN_FRAME => dynasm!(a ; .arch x64
                ; mov r15, [BYTE rax + guest * 8]
                ; mov [BYTE rsp + HIGH + (guest - 12) * 8], r15),
            h => dynasm!(a ; .arch x64 ; mov Rq(h), [BYTE rax + guest * 8]),
        }
    }
}

/// The reverse, and the SSE state if it is in the host's registers. RAX and R15 are lost.
fn store_state(a: &mut Asm) {
    dynasm!(a ; .arch x64 ; mov [rsp + BUDGET], r12 ; mov rax, [BYTE rsp + FLAGS_BELOW] ; mov [rsp + FLAGS], rax ; mov rax, [rsp + GPR]);
    for (guest, host) in (0i8..).zip(HOST) {
        match host {
            IN_FRAME => dynasm!(a ; .arch x64
                ; mov r15, [BYTE rsp + HIGH + (guest - 12) * 8]
                ; mov [BYTE rax + guest * 8], r15),
            h => dynasm!(a ; .arch x64 ; mov [BYTE rax + guest * 8], Rq(h)),
        }
    }
    dynasm!(a ; .arch x64
        ; cmp DWORD [rsp + SSE], 0
        ; je >plain
        ; call ->store_sse
        ; plain:
    );
}
