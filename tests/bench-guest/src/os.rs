//! What operating systems are asked for: system calls, processes, memory, signals, files.

use crate::integer::fold;
use crate::sys;
use std::io::{Read, Write};

/// The argument with which this program ends at once: the target of `exec`.
pub const NOTHING: &str = "nothing";

/// A tmpfs directory.
pub fn scratch() -> &'static str {
    if std::process::id() == 1 { "/tmp" } else { "/dev/shm" }
}

/// A hundred of the cheapest system call, a unit.
pub fn getpid(n: u64) -> u64 {
    let first = sys::getpid();
    (0..n * 100).fold(0, |sum, _| sum + u64::from(sys::getpid() == first))
}

/// A byte to another process and back, a unit.
pub fn pipe(n: u64) -> u64 {
    let (there, back) = (sys::pipe(), sys::pipe());
    let child = sys::fork(|| {
        sys::close(there.1);
        let mut byte = [0];
        while sys::read(there.0, &mut byte) == 1 {
            byte[0] = byte[0].wrapping_mul(5).wrapping_add(1);
            sys::write(back.1, &byte);
        }
        0
    });
    let (mut sum, mut byte) = (0, [1]);
    for _ in 0..n {
        sys::write(there.1, &byte);
        sys::read(back.0, &mut byte);
        sum = fold(sum, byte[0].into());
    }
    [there.0, there.1, back.0, back.1].into_iter().for_each(sys::close);
    sum + sys::wait(child)
}

/// Maps 64 pages, touches each, unmaps them: a unit.
pub fn mmap(n: u64) -> u64 {
    (0..n).fold(0, |sum, i| fold(sum, sys::Pages::new(64).touch(i)))
}

/// A process that ends at once, waited for: a unit.
pub fn fork(n: u64) -> u64 {
    (0..n).fold(0, |sum, i| fold(sum, sys::wait(sys::fork(|| (i % 64) as i32))))
}

/// The same, but it becomes another program first: a unit.
pub fn exec(n: u64) -> u64 {
    let (program, argument) = (sys::path(&std::env::args().next().unwrap_or_default()), sys::path(NOTHING));
    (0..n).fold(n, |sum, _| sum + sys::wait(sys::fork(|| sys::exec(&program, &argument))))
}

/// A signal to oneself and its handler, a unit.
pub fn signal(n: u64) -> u64 {
    sys::handle_signals();
    (0..n).fold(0, |sum, _| fold(sum, sys::signal_self()))
}

/// Makes 16 pages read-only and writable again, and writes to each: a unit.
pub fn mprotect(n: u64) -> u64 {
    let mut pages = sys::Pages::new(16);
    (0..n).fold(0, |sum, i| {
        pages.protect(false);
        pages.protect(true);
        fold(sum, pages.touch(i))
    })
}

/// Writes a file of 16 KiB in tmpfs, reads it back, looks it up, removes it: a unit.
pub fn file(n: u64) -> u64 {
    let name = format!("{}/retrovisor-bench-{}", scratch(), std::process::id());
    let mut data = [7u8; 4096];
    (0..n).fold(0, |sum, i| {
        data[0] = i as u8;
        let one = || -> std::io::Result<u64> {
            let mut f = std::fs::File::create(&name)?;
            (0..4).try_for_each(|_| f.write_all(&data))?;
            let (mut f, mut total) = (std::fs::File::open(&name)?, 0);
            let mut back = [0; 4096];
            while let n @ 1.. = f.read(&mut back)? {
                total += n as u64 + u64::from(back[0]);
            }
            let len = std::fs::metadata(&name)?.len();
            std::fs::remove_file(&name)?;
            Ok(fold(total, len))
        };
        fold(sum, one().unwrap_or_else(|e| panic!("{name}: {e}")))
    })
}
