//! The real program with a Debian kernel: a shell over pipes and on a terminal, recorded, verified, and repeatable.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_tests::guests::{self, Arch, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::program::{self, Running};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A folder with the kernel and an initramfs, and the arguments that boot them.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(initramfs: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = guests::bzimage(Kernel::CloudAmd64).unwrap_or_else(|e| panic!("{e}"));
        let busybox = guests::busybox(Arch::Amd64).unwrap_or_else(|e| panic!("{e}"));
        fs::write(dir.path().join("vmlinuz"), kernel).unwrap();
        fs::write(dir.path().join("initrd"), initramfs(&busybox)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn boot(&self, more: &[&str]) -> Vec<String> {
        let text = |p: PathBuf| p.display().to_string();
        let mut args = vec!["run".to_owned(), "--kernel".into(), text(self.path("vmlinuz"))];
        args.extend([
            "--initrd".into(),
            text(self.path("initrd")),
            "--append".into(),
            "console=ttyS0".into(),
        ]);
        args.extend(more.iter().map(|m| (*m).to_owned()));
        args
    }

    fn boot_recorded(&self) -> (Vec<String>, PathBuf) {
        let trace = self.path("session.rvt");
        (self.boot(&["--record", &trace.display().to_string()]), trace)
    }
}

fn on_trace(command: &[&str], trace: &Path) -> program::Done {
    let mut args: Vec<_> = command.iter().map(|c| (*c).to_owned()).collect();
    args.push(trace.display().to_string());
    program::run(&args)
}

/// The recording verifies, and lists what was typed.
fn check(trace: &Path, typed: &[&str]) {
    let verified = on_trace(&["verify"], trace);
    assert!(verified.expect(0).stdout.contains("session.rvt"), "{verified:?}");
    let events = on_trace(&["trace", "events"], trace);
    for text in typed {
        assert!(events.expect(0).stdout.contains(text), "`{text}` in {}", events.stdout);
    }
    assert!(on_trace(&["trace", "info"], trace).expect(0).stdout.contains("complete: power-off"));
}

#[test]
fn shell_over_pipes_is_recorded_and_verifies() {
    let files = Files::new(initramfs::shell);
    let (args, trace) = files.boot_recorded();
    let mut guest = Running::spawn(program::command(&args).stdin(Stdio::piped()));
    guest.wait_for("guest ready");
    guest.wait_for("# ");
    guest.send("echo sum $((6*7))\n");
    guest.wait_for("sum 42");
    guest.wait_for("# ");
    guest.send("exit\n");
    let done = guest.finish();
    assert!(done.expect(0).stdout.contains("reboot: Power down"), "{done:?}");
    assert_eq!(done.stderr, "");
    check(&trace, &["echo sum $((6*7))", "exit"]);
    let replayed = on_trace(&["replay", "--show"], &trace);
    assert_eq!(replayed.expect(0).stdout, done.stdout);
}

#[test]
fn shell_on_a_terminal_takes_keys_and_gives_the_terminal_back() {
    let files = Files::new(initramfs::shell);
    let (args, trace) = files.boot_recorded();
    let mut guest = Running::on_terminal(&mut program::command(&args));
    guest.wait_for("guest ready");
    guest.wait_for("# ");
    // Ctrl-C belongs to the guest: its shell drops the line.
    guest.send("echo wrong\x03");
    guest.wait_for("# ");
    guest.send("echo sum $((6*7))\r");
    guest.wait_for("sum 42");
    guest.wait_for("# ");
    guest.send("exit\r");
    let done = guest.finish();
    assert!(done.expect(0).stdout.contains("reboot: Power down"), "{done:?}");
    assert!(!done.stdout.contains("\nwrong"), "{}", done.stdout);
    check(&trace, &["echo wrong", "echo sum $((6*7))"]);
}

#[test]
fn two_runs_without_input_end_in_the_same_state() {
    let files =
        Files::new(|busybox| initramfs::with_init(busybox, "#!/bin/sh\necho guest ready\npoweroff -f\n"));
    let args = files.boot(&["--hash"]);
    let mut ends: Vec<String> = Vec::new();
    for _ in 0..2 {
        let done = program::run(&args);
        assert!(done.expect(0).stdout.contains("guest ready"), "{done:?}");
        assert!(done.stderr.contains("ended at instruction"), "{}", done.stderr);
        ends.push(done.stderr);
    }
    assert_eq!(ends[0], ends[1]);
}
