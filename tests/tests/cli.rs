//! The program used wrongly, or left in the middle: one clear line, the documented exit code, never a crash.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cli/guest.rs"]
mod guest;

use guest::{Folder, trace};
use retrovisor_replay::format::PREAMBLE;
use retrovisor_replay::format::header::Header;
use retrovisor_tests::program::{self, Done, Running};
use rustix::process::Signal;
use std::net::TcpListener;
use std::process::Stdio;

/// Runs what must be refused: code 2, nothing but one line on stderr, which has `text` in it.
#[track_caller]
fn refused(args: &[&str], text: &str) {
    let done = program::run(args);
    done.expect(2);
    assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {}", done.stderr);
    assert!(done.stderr.contains(text), "{args:?}: `{text}` is missing in: {}", done.stderr);
    assert_eq!(done.stdout, "", "{args:?}");
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let f = Folder::new();
    let elf = [&b"\x7fELF\x02\x01\x01"[..], &[0; 20]].concat();
    let mut bzimage = vec![0u8; 4096];
    bzimage[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    refused(&["run"], "nothing to boot");
    refused(&["run", "--kernel", "/nonexistent/vmlinuz"], "No such file");
    refused(&["run", "--kernel", f.dir()], "directory");
    for (name, bytes, text) in [
        ("empty", &b""[..], "empty"),
        ("text", b"hello, world\n", "expected a Linux bzImage"),
        ("cut.elf", &elf, ""),
        ("cut.bzimage", &bzimage, ""),
        ("one", b"x", "expected a Linux bzImage"),
    ] {
        let path = f.file(name, bytes);
        refused(&["run", "--kernel", &path], text);
        refused(&["verify", &path], "");
        refused(&["replay", &path], "");
        refused(&["trace", "info", &path], "");
        refused(&["trace", "events", &path], "");
    }
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let f = Folder::new();
    let kernel = f.file("guest", &guest::exits(1));
    let run = |more: &[&str], text| {
        let args: Vec<&str> = ["run", "--kernel", &kernel].iter().chain(more).copied().collect();
        refused(&args, text);
    };
    for size in ["0", "1T", "abc", "99999999999999999999", ""] {
        run(&["--memory", size], "--memory");
    }
    for n in ["0", "17", "-1", "two"] {
        run(&[&format!("--smp={n}")], "--smp");
    }
    let large = f.file("large", &vec![7; 9 << 20]);
    run(&["--memory", "8M", "--initrd", &large], "memory");
    run(&["--initrd", "/nonexistent/initrd"], "--initrd");
    run(&["--serial", "tape"], "--serial");
    run(&["--serial", "file:/nonexistent/out"], "--serial");
    run(&["--isa-debug-exit", "zz"], "--isa-debug-exit");
    run(&["--record", "/nonexistent/a.rvt"], "/nonexistent/a.rvt");
    run(&["--gdb", "nonsense:port:9"], "--gdb");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    run(&["--gdb", &taken.local_addr().unwrap().to_string()], "--gdb");
    for flags in [&["--cpu", "i8086"][..], &["--nonsense"], &["--memory"]] {
        let args: Vec<&str> = ["run", "--kernel", &kernel].iter().chain(flags).copied().collect();
        program::run(&args).expect(2);
    }
}

#[test]
fn engines_that_are_not_there_are_refused() {
    let f = Folder::new();
    let (kernel, recorded) = (f.file("guest", &guest::exits(1)), f.file("a.rvt", &trace()));
    for command in [&["run", "--kernel", &kernel][..], &["replay", &recorded], &["verify", &recorded]] {
        let with = |more: &[&'static str], text| {
            let args: Vec<&str> = command.iter().chain(more).copied().collect();
            refused(&args, text);
        };
        with(&["--engine", "tcg"], "--engine: no engine is called \"tcg\"");
        with(&["--engine", ""], "--engine");
        with(&["--jit-opt", "no-bugs"], "--jit-opt: no translator switch is called \"no-bugs\"");
        with(&["--jit-opt", "chain"], "no-inline-tlb");
        with(&["--jit-opt", "no-chain,no-chian"], "no-chian");
        with(&["--engine", "interp", "--step-blocks", "2"], "--engine lockstep");
    }
}

#[test]
fn every_engine_runs_and_replays_alike() {
    let f = Folder::new();
    let (kernel, out) = (f.file("guest", &guest::exits(3)), f.path("a.rvt"));
    let engines = [
        &["--engine", "jit"][..],
        &["--engine", "interp"],
        &["--jit-opt", "no-chain,no-sse", "--jit-opt=no-x87"],
        &["--engine", "lockstep"],
        &["--engine", "lockstep", "--step-insns", "100"],
    ];
    let mut ends = Vec::new();
    for recorder in engines {
        let run = ["run", "--kernel", &kernel, "--isa-debug-exit", "--hash", "--record", &out];
        ends.push(program::run(&[&run, recorder].concat()).expect(7).stderr.clone());
        for player in engines {
            program::run(&[&["verify", &out][..], player].concat()).expect(0);
            program::run(&[&["replay", &out][..], player].concat()).expect(0);
        }
    }
    assert!(ends[0].contains("state ") && ends.iter().all(|e| *e == ends[0]), "{ends:?}");
}

#[test]
fn exit_codes_are_as_documented() {
    let f = Folder::new();
    let run = |code: &[u8], more: &[&str]| -> Done {
        let kernel = f.file("guest", code);
        let args: Vec<&str> =
            ["run", "--kernel", &kernel, "--isa-debug-exit"].iter().chain(more).copied().collect();
        program::run(&args)
    };
    run(&guest::exits(0), &[]).expect(1);
    run(&guest::exits(0x15), &[]).expect(0x15 << 1 | 1);
    run(&guest::powers_off(), &[]).expect(0);
    let done = run(&guest::triple_faults(), &["--no-reboot"]);
    assert_eq!(done.expect(6).stderr.lines().count(), 1, "{done:?}");
    let done = run(&guest::resets(), &["--no-reboot"]);
    assert_eq!(done.expect(6).stderr.lines().count(), 1, "{done:?}");
    let done = run(&guest::dies(), &[]);
    assert_eq!(done.expect(8).stderr.lines().count(), 1, "{done:?}");
}

#[test]
fn ctrl_c_ends_the_run_and_the_recording_is_whole() {
    let f = Folder::new();
    for (name, code) in [("busy", guest::loops()), ("idle", guest::sleeps())] {
        let kernel = f.file(name, &code);
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let trace = f.path("session.rvt");
            let args = ["run", "--kernel", &kernel, "--record", &trace];
            let mut running = Running::spawn(program::command(&args).stdin(Stdio::piped()));
            running.wait_for("hello");
            running.signal(signal);
            running.finish().expect(code);
            let done = program::run(&["verify", &trace]);
            assert!(done.expect(0).stderr.is_empty(), "{name}: {done:?}");
            assert!(program::run(&["trace", "info", &trace]).expect(0).stdout.contains("complete"));
        }
    }
}

#[test]
fn a_killed_run_leaves_a_readable_recording() {
    let f = Folder::new();
    let (kernel, trace) = (f.file("busy", &guest::loops()), f.path("session.rvt"));
    let mut running = Running::spawn(
        program::command(&["run", "--kernel", &kernel, "--record", &trace]).stdin(Stdio::null()),
    );
    running.wait_for("hello");
    running.signal(Signal::KILL);
    running.finish();
    program::run(&["trace", "info", &trace]).expect(0);
    program::run(&["verify", &trace]).expect(0);
}

#[test]
fn ctrl_c_ends_a_replay() {
    let f = Folder::new();
    let path = f.file("long.rvt", &guest::long_trace());
    for command in ["replay", "verify"] {
        let mut running = Running::spawn(program::command(&[command, &path]).stdin(Stdio::null()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        running.signal(Signal::INT);
        running.finish().expect(130);
    }
}

#[test]
fn ctrl_c_ends_a_verification_with_what_is_known() {
    let f = Folder::new();
    let (long, short) = (f.file("long.rvt", &guest::long_trace()), f.file("short.rvt", &trace()));
    let mut running = Running::spawn(
        program::command(&["verify", "--jobs", "2", &short, &long, &short]).stdin(Stdio::null()),
    );
    running.wait_for("short.rvt: exact");
    // The third is done at some time, and waits for the second.
    std::thread::sleep(std::time::Duration::from_secs(1));
    running.signal(Signal::INT);
    let done = running.finish();
    assert!(done.expect(130).stderr.starts_with("retrovisor: interrupted: "), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "no status without a terminal: {done:?}");
}

#[test]
fn traces_cut_anywhere_are_read_up_to_the_cut() {
    let f = Folder::new();
    let whole = trace();
    let header = PREAMBLE as usize + u32::from_le_bytes(whole[8..12].try_into().unwrap()) as usize;
    refused(&["verify", &f.file("cut.rvt", &[])], "is empty");
    for n in [1, 3, 4, 8, 15, header - 1] {
        refused(&["verify", &f.file("cut.rvt", &whole[..n])], "cut.rvt");
    }
    refused(&["verify", &f.file("cut.rvt", &whole[..header + 20])], "cannot be replayed");
    for k in 1..12 {
        let n = header + (whole.len() - header) * k / 12;
        let path = f.file("cut.rvt", &whole[..n]);
        for command in [&["verify"][..], &["replay"], &["trace", "info"], &["trace", "events"]] {
            let args: Vec<&str> = command.iter().copied().chain([path.as_str()]).collect();
            sane(&program::run(&args), &args);
        }
    }
}

/// However damaged its file: a documented code, and no more than a line about it.
#[track_caller]
fn sane(done: &Done, what: &[&str]) {
    assert!(matches!(done.code, Some(0 | 2 | 4)), "{what:?}: {done:#?}");
    assert!(!done.stderr.contains("panicked"), "{what:?}: {}", done.stderr);
    assert!(done.stderr.lines().count() <= 1, "{what:?}: {}", done.stderr);
    if done.code == Some(2) {
        assert_eq!(done.stderr.lines().count(), 1, "{what:?}: {done:#?}");
    }
}

#[test]
fn flipped_bits_are_found_or_harmless() {
    let f = Folder::new();
    let good = trace();
    let mut state = 0x1234_5678_9abc_def0u64;
    for n in 0..200 {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bit = state as usize % (good.len() * 8);
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let path = f.file("bad.rvt", &bad);
        let (to, folder) = (f.path("to"), f.path("folder"));
        let commands = [
            &["verify"][..],
            &["replay"],
            &["trace", "info", "--json"],
            &["trace", "events", "--kind=all"],
            &["trace", "export"],
            &["trace", "export", "--format=perfetto", "-o", "/dev/null"],
            &["trace", "pack", "-o", &to],
            &["trace", "unpack", "-o", &folder],
        ];
        let command = commands[n % commands.len()];
        let args: Vec<&str> = command.iter().copied().chain([path.as_str()]).collect();
        let _ = std::fs::remove_dir_all(&folder);
        sane(&program::run(&args), &[&format!("bit {bit}"), command[0]]);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let f = Folder::new();
    let good = trace();
    let mut newer = good.clone();
    newer[4] = 9;
    refused(&["verify", &f.file("newer.rvt", &newer)], "version 9");
    let mut long = good.clone();
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&["verify", &f.file("long.rvt", &long)], "header");
    let lie = |change: &dyn Fn(&mut Header)| guest::with_header(&good, change);
    for (name, bytes) in [
        ("image", lie(&|h| h.images[0].size = 1 << 60)),
        ("images", lie(&|h| h.images[0].size = 1 << 29)),
        ("memory", lie(&|h| h.machine.memory = 1 << 50)),
        ("vcpus", lie(&|h| h.machine.vcpus = 255)),
        ("hashes", lie(&|h| h.machine.hash_interval = 0)),
        ("time", lie(&|h| h.machine.wall_time = u64::MAX)),
        ("digest", lie(&|h| h.images[0].digest ^= 1)),
    ] {
        let path = f.file(&format!("{name}.rvt"), &bytes);
        refused(&["verify", &path], name);
        refused(&["replay", &path], name);
    }
    // As much memory as a trace may ask for: had or refused.
    let path = f.file("most.rvt", &lie(&|h| h.machine.memory = 64 << 30));
    sane(&program::run(&["trace", "info", &path]), &["most"]);
}

#[test]
fn a_trace_of_another_machine_diverges() {
    let f = Folder::new();
    let path = f.file("other.rvt", &guest::with_header(&trace(), |h| h.machine.ns_per_insn = 2));
    for command in ["verify", "replay"] {
        let done = program::run(&[command, &path]);
        assert_eq!(done.expect(4).stderr.lines().count(), 1, "{done:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    for args in [
        &["--help"][..],
        &["help"],
        &["run", "--help"],
        &["replay", "--help"],
        &["verify", "--help"],
        &["trace", "--help"],
        &["trace", "info", "--help"],
        &["trace", "events", "--help"],
        &["trace", "export", "--help"],
        &["trace", "pack", "--help"],
        &["trace", "unpack", "--help"],
        &["demo", "--help"],
    ] {
        let done = program::run(args);
        assert!(done.expect(0).stdout.contains("Usage: retrovisor"), "{args:?}");
        assert_eq!(done.stderr, "");
    }
    assert!(program::run(&["--version"]).expect(0).stdout.starts_with("retrovisor "));
    let none: [&str; 0] = [];
    program::run(&none).expect(2);
}

#[test]
fn demo_finds_the_guilty_function() {
    let f = Folder::new();
    let (saved, elf) = (f.path("demo.rvt"), f.path("rearview.elf"));
    let done = program::run(&["demo", "--save", &saved, "--elf", &elf]);
    assert!(done.expect(0).stdout.contains("guilty"), "{}", done.stdout);
    assert!(done.stdout.contains("> klog_put+"), "{}", done.stdout);
    program::run(&["verify", &saved]).expect(0);
    let done = program::run(&["demo", "--save", "/nonexistent/demo.rvt"]);
    assert!(done.expect(2).stderr.contains("/nonexistent/demo.rvt"), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
}
