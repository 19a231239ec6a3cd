//! System calls and port instructions, as safe functions. A call that fails ends the benchmark: nothing it measures is
//! allowed to fail.

use std::arch::asm;
use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The result, if it is no error.
fn check(what: &str, result: i32) -> i32 {
    if result < 0 {
        panic!("{what}: {}", std::io::Error::last_os_error());
    }
    result
}

/// Runs `body` with access to I/O ports; without it before and after, so that context switches carry no bitmap.
pub fn with_ports(first: u16, count: u16, body: impl FnOnce()) {
    let permit = |on| {
        // SAFETY: changes nothing but this process's right to use the ports.
        check("ioperm", unsafe { libc::ioperm(first.into(), count.into(), on) });
    };
    permit(1);
    body();
    permit(0);
}

/// Sends a byte on a 16550 as soon as its transmitter is free.
pub fn serial_send(port: u16, byte: u8) {
    const LINE_STATUS: u16 = 5;
    const TRANSMITTER_EMPTY: u8 = 0x20;
    // SAFETY: only within `with_ports`: the instructions touch the serial port and two registers.
    unsafe {
        loop {
            let status: u8;
            asm!("in al, dx", in("dx") port + LINE_STATUS, out("al") status, options(nomem, nostack));
            if status & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack));
    }
}

pub fn mount_tmpfs(at: &str) {
    let at = path(at);
    // SAFETY: the strings live through the call.
    let done = unsafe { libc::mount(c"tmpfs".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, ptr::null()) };
    check("mount", done);
}

/// Stays on the CPU it runs on: the guests have one, too. A host that does not allow it is measured as it is.
pub fn pin_to_one_cpu() {
    // SAFETY: `set` is a plain bit set, zero is its empty value, and the call only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

pub fn power_off() {
    // SAFETY: takes no memory.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// The system call itself, past any cache in the C library.
pub fn getpid() -> i64 {
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_getpid) }
}

/// CPU time of this process and of the children it has waited for, in nanoseconds.
pub fn cpu_nanos() -> u64 {
    let of = |who| {
        // SAFETY: a structure of plain numbers, which the call writes.
        let usage: libc::rusage = unsafe {
            let mut usage = std::mem::zeroed();
            libc::getrusage(who, &mut usage);
            usage
        };
        [usage.ru_utime, usage.ru_stime]
            .iter()
            .map(|t| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64)
            .sum::<u64>()
    };
    (of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)) * 1000
}

/// A pipe: (read end, write end).
pub fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: writes the two ends.
    check("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) });
    (ends[0], ends[1])
}

pub fn close(fd: i32) {
    // SAFETY: the callers own their descriptors as plain numbers.
    unsafe { libc::close(fd) };
}

/// Reads into `to`; 0 at the end of the stream.
pub fn read(fd: i32, to: &mut [u8]) -> usize {
    // SAFETY: the buffer is as long as said.
    check("read", unsafe { libc::read(fd, to.as_mut_ptr().cast(), to.len()) } as i32) as usize
}

pub fn write(fd: i32, from: &[u8]) -> usize {
    // SAFETY: the buffer is as long as said.
    check("write", unsafe { libc::write(fd, from.as_ptr().cast(), from.len()) } as i32) as usize
}

/// Runs `child` in a new process, which ends with the code it returns; its process id.
pub fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this program has one thread, so the child may do all its parent may.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: ends the child without running the parent's exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        pid => check("fork", pid),
    }
}

/// Waits for a child; its exit code.
pub fn wait(pid: i32) -> u64 {
    let mut status = 0;
    // SAFETY: writes `status`.
    check("waitpid", unsafe { libc::waitpid(pid, &mut status, 0) });
    assert!(libc::WIFEXITED(status), "child ended with status {status:x}");
    libc::WEXITSTATUS(status) as u64
}

/// Becomes another program; comes back only if it cannot.
pub fn exec(program: &CStr, argument: &CStr) -> i32 {
    let args = [program.as_ptr(), argument.as_ptr(), ptr::null()];
    let environment = [ptr::null()];
    // SAFETY: both lists end with a null pointer, and the strings live through the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    127
}

pub fn path(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Counts SIGUSR1 from now on.
pub fn handle_signals() {
    SIGNALS.store(0, Ordering::Relaxed);
    // SAFETY: the handler only adds to an atomic.
    unsafe { libc::signal(libc::SIGUSR1, count_signal as *const () as libc::sighandler_t) };
}

/// Sends SIGUSR1 to this process, which handles it before this returns; the number handled so far.
pub fn signal_self() -> u64 {
    // SAFETY: takes no memory; the handler is set.
    unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) };
    SIGNALS.load(Ordering::Relaxed)
}

/// Anonymous memory of whole pages.
pub struct Pages {
    base: *mut u8,
    len: usize,
}

pub const PAGE: usize = 4096;

impl Pages {
    pub fn new(pages: usize) -> Self {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let len = pages * PAGE;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses aliases nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
        assert!(base != libc::MAP_FAILED, "no memory");
        Self { base: base.cast(), len }
    }

    /// Adds to the first word of each page; the sum of the words.
    pub fn touch(&mut self, value: u64) -> u64 {
        (0..self.len).step_by(PAGE).fold(0, |sum, at| {
            // SAFETY: within the mapping, which is aligned, initialised and writable now.
            let word = unsafe { &mut *self.base.add(at).cast::<u64>() };
            *word = word.wrapping_add(value);
            sum + *word
        })
    }

    /// Forbids writes, or allows them again.
    pub fn protect(&mut self, writable: bool) {
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: our own mapping; `touch` is only called while it is writable.
        check("mprotect", unsafe { libc::mprotect(self.base.cast(), self.len, prot) });
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unused from here on.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
