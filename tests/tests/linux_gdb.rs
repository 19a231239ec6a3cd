//! Stock gdb on Debian kernels, from before the kernel is unpacked to power-off. The symbols come from the guest.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::Icount;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_tests::gdb::Gdb;
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::program::{self, Running};
use retrovisor_tests::script::Session;
use retrovisor_tests::symfile::{self, Class, Symbol};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const CMDLINE: &str = "console=ttyS0 nokaslr";

fn need<T>(r: Result<T, guests::Missing>) -> T {
    r.unwrap_or_else(|e| panic!("{e}"))
}

/// What a guest run prints of /proc/kallsyms.
fn kallsyms(kernel: Kernel) -> String {
    let init = "#!/bin/sh\nmount -t proc proc /proc\n\
                grep -wF -e start_kernel -e rest_init -e schedule -e x86_64_start_kernel -e i386_start_kernel \
                -e cpu_startup_entry -e do_idle -e schedule_idle -e kernel_execve -e jiffies_64 /proc/kallsyms\n\
                poweroff -f\n";
    let images = Images {
        kernel: Some(need(guests::vmlinux(kernel))),
        initrd: Some(initramfs::with_init(&need(guests::busybox(kernel.arch())), init)),
        cmdline: format!("{CMDLINE} quiet"),
        ..Images::default()
    };
    let done = Session::new(MachineConfig::default(), images, &[]).run(Icount(20_000_000_000));
    assert_eq!(done.exit, VmExit::PowerOff, "{}", done.screen);
    done.screen
}

/// The kernel's functions.
fn symbols(kernel: Kernel) -> Vec<Symbol> {
    symfile::from_kallsyms(&kallsyms(kernel))
}

fn address(symbols: &[Symbol], name: &str) -> u64 {
    symbols.iter().find(|s| s.0 == name).unwrap_or_else(|| panic!("no {name} in the guest's kallsyms")).1
}

/// A guest that waits for gdb, and gdb connected to it.
struct Bench {
    dir: tempfile::TempDir,
    guest: Running,
    gdb: Gdb,
}

impl Bench {
    /// `symbols`: what gdb is given to know; none: not even the architecture.
    fn new(kernel: Kernel, symbols: Option<&[Symbol]>, init: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| -> PathBuf {
            fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        };
        let image = file("vmlinuz", &need(guests::bzimage(kernel)));
        let initrd = file("initrd", &init(&need(guests::busybox(kernel.arch()))));
        let mut args: Vec<&Path> = ["run", "--kernel"].iter().map(Path::new).collect();
        args.extend([&image, Path::new("--initrd"), &initrd]);
        args.extend(["--append", CMDLINE, "--gdb", "127.0.0.1:0", "--freeze"].iter().map(Path::new));
        let mut guest = Running::spawn(program::command(&args).stdin(Stdio::piped()));
        guest.wait_for_stderr("waiting before the first instruction");
        let said = guest.stderr();
        let at = said.split("gdb server at ").nth(1).and_then(|s| s.split(',').next()).unwrap().to_owned();
        let mut gdb = Gdb::start();
        if let Some(symbols) = symbols {
            // The stub describes an x86-64 vCPU, which gdb refuses to pair with a 32-bit file.
            let class = Class::Elf64;
            let file = file("kernel.elf", &symfile::elf(class, symbols));
            gdb.ask(&format!("file {}", file.display()));
        }
        let said = gdb.ask(&format!("target remote {at}"));
        assert!(!said.contains("rror"), "{said}");
        Self { dir, guest, gdb }
    }

    /// Detaches; the guest runs on to its end.
    fn detach(mut self) -> String {
        let said = self.gdb.ask("detach");
        assert!(said.contains("detached"), "{said}");
        self.gdb.quit();
        let done = self.guest.finish();
        assert!(done.expect(0).stdout.contains("reboot: Power down"), "{}", done.stdout);
        drop(self.dir);
        done.stdout
    }
}

/// Asserts that `text` has these in this order.
#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("`{part}` is missing (in this order) in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

/// Value of a register as `info registers` shows it.
fn register(gdb: &mut Gdb, name: &str) -> u64 {
    let said = gdb.ask(&format!("info registers {name}"));
    let hex = said.split_whitespace().find_map(|w| w.strip_prefix("0x"));
    hex.and_then(|h| u64::from_str_radix(h, 16).ok()).unwrap_or_else(|| panic!("{name}: {said}"))
}

/// A kernel debugged by name from before it is unpacked; `pc` and `sp` are its registers' names.
fn by_name(kernel: Kernel, pc: &str, extra: impl Fn(&mut Gdb)) {
    let symbols = symbols(kernel);
    let mut b = Bench::new(kernel, Some(&symbols), initramfs::shell);
    let gdb = &mut b.gdb;
    // Nothing of the kernel is in memory yet.
    gdb.ask("hbreak start_kernel");
    gdb.ask("break rest_init");
    in_order(&gdb.ask("continue"), &["Breakpoint 1, ", "start_kernel ()"]);
    assert_eq!(register(gdb, pc), address(&symbols, "start_kernel"));
    in_order(&gdb.ask("bt 3"), &["#0  ", "start_kernel ()"]);
    extra(gdb);
    assert_eq!(gdb.ask("x/20i $pc").lines().filter(|l| l.contains(":\t")).count(), 20);
    let before = register(gdb, pc);
    for _ in 0..3 {
        gdb.ask("stepi");
    }
    assert_ne!(register(gdb, pc), before);
    in_order(&gdb.ask("continue"), &["Breakpoint 2, ", "rest_init ()"]);
    let said = gdb.ask("bt 3");
    in_order(&said, &["#0  ", "rest_init ()", "#1  "]);
    // In a function that returns.
    gdb.ask("delete");
    gdb.ask("tbreak schedule");
    in_order(&gdb.ask("continue"), &["schedule ()"]);
    let said = gdb.ask("finish");
    assert!(said.contains("Run till exit"), "{said}");
    // Ctrl-C while it runs, long after.
    gdb.send("continue");
    b.guest.wait_for("guest ready");
    b.gdb.interrupt();
    b.gdb.expect("SIGINT");
    assert!(register(&mut b.gdb, pc) > 0);
    b.guest.send("exit\n");
    b.detach();
}

#[test]
fn amd64_by_name_from_before_it_is_unpacked() {
    by_name(Kernel::CloudAmd64, "rip", |gdb| {
        let all = gdb.ask("info registers");
        for name in ["rax", "rip", "eflags", "cs", "fs_base", "gs_base", "cr0", "cr3", "cr4", "efer"] {
            assert!(all.lines().any(|l| l.starts_with(&format!("{name} "))), "{name} is missing in:\n{all}");
        }
        assert_ne!(register(gdb, "cr3") & !0xfff, 0);
        assert_eq!(register(gdb, "cs"), 0x10);
        assert!(register(gdb, "gs_base") >> 47 != 0, "per-CPU data is in the kernel's half");
    });
}

#[test]
fn amd64_by_address_without_symbols() {
    let symbols = symbols(Kernel::CloudAmd64);
    let off = |busybox: &[u8]| initramfs::with_init(busybox, "#!/bin/sh\necho guest ready\npoweroff -f\n");
    let mut b = Bench::new(Kernel::CloudAmd64, None, off);
    let gdb = &mut b.gdb;
    let (start, rest) = (address(&symbols, "start_kernel"), address(&symbols, "rest_init"));
    gdb.ask(&format!("hbreak *{start:#x}"));
    gdb.ask(&format!("break *{rest:#x}"));
    in_order(&gdb.ask("continue"), &["Breakpoint 1, ", &format!("{start:#018x}")]);
    assert_eq!(gdb.ask("x/20i $pc").lines().filter(|l| l.contains(":\t")).count(), 20);
    gdb.ask("stepi");
    assert_ne!(register(gdb, "rip"), start);
    in_order(&gdb.ask("continue"), &["Breakpoint 2, ", &format!("{rest:#018x}")]);
    let said = gdb.ask("monitor help");
    assert!(said.lines().count() > 3, "{said}");
    gdb.ask("delete");
    assert!(b.detach().contains("guest ready"));
}

/// The icount `monitor when` tells.
fn icount(gdb: &mut Gdb) -> u64 {
    let said = gdb.ask("monitor when");
    let after = said.split("icount ").nth(1);
    let n = after.and_then(|t| t.split(',').next()).and_then(|n| n.parse().ok());
    n.unwrap_or_else(|| panic!("no icount in: {said}"))
}

/// The two numbers a watchpoint shows.
fn old_and_new(said: &str) -> (u64, u64) {
    let after = |what: &str| said.split(what).nth(1)?.split_whitespace().next()?.parse().ok();
    after("Old value = ").zip(after("New value = ")).unwrap_or_else(|| panic!("no values in: {said}"))
}

#[test]
fn a_live_session_goes_back_to_its_beginning_and_on_from_where_it_was() {
    let kernel = Kernel::CloudAmd64;
    let screen = kallsyms(kernel);
    let symbols = symfile::from_kallsyms(&screen);
    let jiffies = screen.lines().find(|l| l.ends_with(" jiffies_64")).and_then(|l| l.split(' ').next());
    let jiffies = jiffies.unwrap_or_else(|| panic!("no jiffies_64 in the guest's kallsyms: {screen}"));
    let mut b = Bench::new(kernel, Some(&symbols), initramfs::shell);
    let gdb = &mut b.gdb;
    // Late in the boot: the first program is about to be executed.
    gdb.ask("hbreak kernel_execve");
    in_order(&gdb.ask("continue"), &["Breakpoint 1, ", "kernel_execve ()"]);
    let late = icount(gdb);
    let memory = gdb.ask("x/32xg $rsp");
    gdb.ask("monitor mark late");

    // Back to an early breakpoint, and before it.
    gdb.ask("hbreak start_kernel");
    in_order(&gdb.ask("reverse-continue"), &["Breakpoint 2, ", "start_kernel ()"]);
    let early = icount(gdb);
    assert_eq!(register(gdb, "rip"), address(&symbols, "start_kernel"));
    gdb.ask("reverse-stepi 100");
    assert_eq!(icount(gdb), early - 100);
    gdb.ask("stepi 100");
    assert_eq!((icount(gdb), register(gdb, "rip")), (early, address(&symbols, "start_kernel")));

    // A variable, backwards from late in the boot.
    gdb.ask("delete");
    gdb.ask("monitor goto late");
    in_order(&gdb.ask("stepi"), &["kernel_execve ()"]);
    assert_eq!((icount(gdb), gdb.ask("x/32xg $rsp")), (late, memory.clone()));
    gdb.ask(&format!("watch *(unsigned long *) 0x{jiffies}"));
    let mut before = None;
    for _ in 0..3 {
        let (old, new) = old_and_new(&gdb.ask("reverse-continue"));
        assert_eq!((old, before.unwrap_or(old)), (new + 1, old), "backwards, a tick at a time");
        before = Some(new);
    }
    let here = icount(gdb);
    in_order(&gdb.ask(&format!("monitor lastwrite 0x{jiffies}")), &["icount ", "instructions back", " -> "]);
    assert_eq!(icount(gdb), here, "looking for the writer moves nothing");
    let (old, new) = old_and_new(&gdb.ask("continue"));
    assert_eq!((Some(old), new), (before, old + 1));

    // Forward to the newest point, and on live.
    gdb.ask("delete");
    gdb.ask("hbreak kernel_execve");
    in_order(&gdb.ask("continue"), &["kernel_execve ()"]);
    assert_eq!((icount(gdb), gdb.ask("x/32xg $rsp")), (late, memory));
    gdb.ask("delete");
    gdb.send("continue");
    b.guest.wait_for("guest ready");
    b.guest.send("echo live $((6 * 7))\n");
    b.guest.wait_for("live 42");
    b.gdb.interrupt();
    b.gdb.expect("SIGINT");
    // Back from a live shell, too.
    let now = icount(&mut b.gdb);
    b.gdb.ask("reverse-stepi 10");
    assert!(icount(&mut b.gdb) < now);
    b.gdb.send("continue");
    b.guest.send("exit\n");
    // With a history the end can be looked back from.
    b.gdb.expect("the guest switched the machine off");
    b.gdb.ask("reverse-stepi");
    assert!(b.detach().contains("guest ready"));
}
