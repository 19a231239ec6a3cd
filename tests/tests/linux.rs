//! Debian's 6.1 kernels boot to a shell, obey what is typed, and power off; the recorded session replays exactly.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::InputEvent;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_replay::{ExitReason, Report, Trace, VerifyOptions, What, verify};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::script::{Recorded, Session, Step};
use std::sync::Arc;

/// SHA-256 of 16 MiB of zeros.
const ZEROS: &str = "080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e";

/// Each line is typed when the text before it has appeared.
const LINES: &[Step] = &[
    ("guest ready", "PS1='o''k> '\n"),
    ("ok> ", "ls /\n"),
    ("ok> ", "ps\n"),
    ("ok> ", "dmesg | tail -3\n"),
    ("ok> ", "dd if=/dev/zero bs=1M count=16 2>/dev/null | sha256sum\n"),
    ("ok> ", "n=0; for i in $(seq 200); do n=$((n+$(/bin/echo 1))); done; echo forks $n\n"),
    ("ok> ", "exit\n"),
];

/// No session is this long.
const LIMIT: Icount = Icount(30_000_000_000);

fn images(kernel: Kernel, image: Vec<u8>) -> Images {
    let busybox = guests::busybox(kernel.arch()).unwrap_or_else(|e| panic!("{e}"));
    Images {
        kernel: Some(image),
        initrd: Some(initramfs::shell(&busybox)),
        cmdline: "console=ttyS0".into(),
        kernel_name: "vmlinuz".into(),
        ..Images::default()
    }
}

fn vmlinux(kernel: Kernel) -> Images {
    images(kernel, guests::vmlinux(kernel).unwrap_or_else(|e| panic!("{e}")))
}
fn bzimage(kernel: Kernel) -> Images {
    images(kernel, guests::bzimage(kernel).unwrap_or_else(|e| panic!("{e}")))
}

fn config(clock: ClockKind) -> MachineConfig {
    MachineConfig { clock, no_reboot: true, ..MachineConfig::default() }
}

/// A session of `lines` in which everything went well.
fn session(clock: ClockKind, images: Images, lines: &[Step]) -> Recorded {
    let r = Session::new(config(clock), images, lines).run(LIMIT);
    assert_eq!(r.exit, VmExit::PowerOff, "{}", r.screen);
    for bad in ["Kernel panic", "BUG:", "WARNING: CPU", "Oops", "Call Trace", "not found", "segfault"] {
        assert!(!r.screen.contains(bad), "{bad}:\n{}", r.screen);
    }
    assert!(r.screen.contains("reboot: Power down"), "{}", r.screen);
    r
}

/// The whole session: what was typed had its effect.
fn shell(clock: ClockKind, images: Images) -> Recorded {
    let r = session(clock, images, LINES);
    for text in ["bin", "{init} /bin/sh /init", "Run /init as init process", ZEROS, "forks 200"] {
        assert!(r.screen.contains(text), "`{text}` is missing:\n{}", r.screen);
    }
    r
}

/// The trace replays with every hash equal, and holds each typed line.
fn check(r: &Recorded, lines: &[Step]) -> (Arc<Trace>, Report) {
    let trace = Trace::from_bytes("session.rvt", r.trace.clone()).unwrap();
    let report = verify(&trace, VerifyOptions::default(), &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.reason, Some(ExitReason::PowerOff));
    assert_eq!((report.when, report.hash), (r.when, r.hash));
    assert!(report.hashes > 80, "{}", report.hashes);
    let typed: Vec<u8> = trace
        .records()
        .filter_map(|record| match record.unwrap().what {
            What::Event(InputEvent::Serial { bytes, .. }) => Some(bytes),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(String::from_utf8(typed).unwrap(), lines.iter().map(|l| l.1).collect::<String>());
    (trace, report)
}

/// Besides its images a trace is small: inputs, a hash every 16 million instructions.
fn assert_small(trace: &Trace) {
    assert!(trace.frame_bytes() < 100_000, "{} bytes of records", trace.frame_bytes());
}

#[test]
fn amd64_to_a_shell_and_back_and_its_cut_trace() {
    let r = shell(ClockKind::Virtual, vmlinux(Kernel::Amd64));
    let (trace, report) = check(&r, LINES);
    assert_small(&trace);
    // A file that ends early replays up to where it ends.
    for eighths in [1, 3, 6] {
        let n = r.trace.len() - (trace.frame_bytes() * (8 - eighths) / 8) as usize;
        let cut = Trace::from_bytes("cut.rvt", r.trace[..n].to_vec()).unwrap();
        let part = verify(&cut, VerifyOptions::default(), &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        assert!(part.cut.is_some());
        assert!(part.when < report.when && part.when == cut.ending().when(), "{:?}", part.when);
    }
}

#[test]
fn cloud_bzimage_to_a_shell_and_back() {
    let r = shell(ClockKind::Virtual, bzimage(Kernel::CloudAmd64));
    let (trace, _) = check(&r, LINES);
    assert_small(&trace);
}

#[test]
fn i686_bzimage_to_a_shell_and_back() {
    let r = shell(ClockKind::Virtual, bzimage(Kernel::I686));
    let (trace, _) = check(&r, LINES);
    assert_small(&trace);
}

#[test]
fn i686_pae_to_a_shell_and_back() {
    let r = shell(ClockKind::Virtual, vmlinux(Kernel::I686Pae));
    let (trace, _) = check(&r, LINES);
    assert_small(&trace);
}

#[test]
fn cloud_on_the_host_clock_replays_exactly() {
    let r = shell(ClockKind::Host, vmlinux(Kernel::CloudAmd64));
    check(&r, LINES);
}

#[test]
fn i686_on_the_host_clock_replays_exactly() {
    let r = shell(ClockKind::Host, vmlinux(Kernel::I686));
    check(&r, LINES);
}
