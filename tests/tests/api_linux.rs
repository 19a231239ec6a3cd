//! The API for tests of kernels, on a Debian kernel: boot to a shell, ask who wrote a variable last, bound the time with
//! interrupts off.

#![allow(clippy::unwrap_used)]

use retrovisor_debug::guest::{Guest, VmExit};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;

/// More instructions than any step here takes.
const LIMIT: u64 = 10_000_000_000;

#[test]
fn a_debian_kernel_keeps_time_and_does_not_block_interrupts() {
    let kernel = Kernel::CloudAmd64;
    let mut guest = Guest::builder()
        .kernel(guests::vmlinux(kernel).unwrap())
        .initrd(initramfs::shell(&guests::busybox(kernel.arch()).unwrap()))
        .append("console=ttyS0 nokaslr quiet")
        .boot()
        .unwrap();
    guest.run_until_console("guest ready", LIMIT).unwrap();
    let ready = guest.icount();

    // The kernel tells its own symbols.
    guest.type_text("grep -e jiffies -e tick_ /proc/kallsyms; echo symbols' 'end\n").unwrap();
    guest.run_until_console("symbols end", LIMIT).unwrap();
    guest.add_symbols(guest.console().as_bytes()).unwrap();

    // Who counted the time last?
    let write = guest.last_write("jiffies_64", 8).unwrap().unwrap();
    let who = guest.describe(write.pc);
    assert!(who.contains("jiffies") || who.contains("tick"), "{who}");
    let before = guest.read::<u64>("jiffies_64").unwrap();
    guest.seek(write.at).unwrap();
    assert!(guest.read::<u64>("jiffies_64").unwrap() < before);

    // Since the shell came up: page faults, yes; interrupts off for long, no.
    guest.seek_end().unwrap();
    assert!(guest.history().since(ready).exceptions().unwrap()[&14] > 10);
    guest.history().since(ready).interrupts_off_at_most(1_000_000).unwrap();

    // The run goes on where it was.
    guest.type_text("exit\n").unwrap();
    assert_eq!(guest.run_to_exit(LIMIT).unwrap(), VmExit::PowerOff);
}
