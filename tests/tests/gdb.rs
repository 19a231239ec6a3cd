//! Stock gdb against a live machine, the way a kernel developer uses it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "gdb/guest.rs"]
mod guest;
#[path = "gdb/reverse.rs"]
mod reverse;
#[path = "gdb/support.rs"]
mod support;

use guest::{COPY, COUNTER, INPUT, UNMAPPED};
use retrovisor_core::Gpa;
use retrovisor_debug::gdb::{GdbAddress, GdbServer};
use retrovisor_debug::{Event, Exit, Inspect, Role};
use std::time::Duration;
use support::{Bench, assert_in_order};

#[test]
fn break_continue_and_stepi_stop_where_they_should() {
    let bench = Bench::new(true);
    let p = &bench.program;
    let out = bench.gdb(&[
        "info registers rip",
        &format!("break *{:#x}", p.work),
        "continue",
        "info registers rip rbx",
        "x/2i $pc",
        "stepi",
        "info registers rip",
        "delete",
        &format!("hbreak *{:#x}", p.after_call),
        "continue",
        "continue",
        "info registers rip rbx",
    ]);
    assert_in_order(
        &out,
        &[
            "rip            0x100000",
            "Breakpoint 1, 0x",
            &format!("rip            {:#x}", p.work),
            "rbx            0x0",
            "push",
            "mov",
            &format!("rip            {:#x}", p.work + 1),
            "Breakpoint 2, 0x",
            "Breakpoint 2, 0x",
            &format!("rip            {:#x}", p.after_call),
            "rbx            0x1",
        ],
    );
    bench.finish();
}

#[test]
fn breakpoint_set_before_the_code_exists_is_hit() {
    let bench = Bench::new(true);
    let p = &bench.program;
    let out = bench.gdb(&[
        &format!("x/2xw {COPY:#x}"),
        &format!("break *{COPY:#x}"),
        &format!("set $rip = {:#x}", p.install),
        "continue",
        "x/i $pc",
        "stepi",
        "info registers rax",
    ]);
    assert_in_order(
        &out,
        &[
            "0x00000000	0x00000000",
            "Breakpoint 1, 0x0000000000400000",
            "mov    $0x12345678,%eax",
            "rax            0x12345678",
        ],
    );
    bench.finish();
}

#[test]
fn symbols_backtrace_and_finish_work() {
    let bench = Bench::new(true);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("guest.elf");
    std::fs::write(&file, guest::symbol_file(&bench.program)).unwrap();
    let load = format!("file {}", file.display());
    let gdb = bench.spawn(&[&load], &["break work", "continue", "bt", "finish", "info registers rip"]);
    let out = gdb.finish();
    assert_in_order(
        &out,
        &[
            "Breakpoint 1, ",
            "in work ()",
            "#0  ",
            "in work ()",
            "#1  ",
            "in main_loop ()",
            &format!("rip            {:#x}", bench.program.after_call),
        ],
    );
    bench.finish();
}

#[test]
fn system_registers_are_shown() {
    let bench = Bench::new(true);
    let out = bench.gdb(&[
        "info registers cr3 cr0 efer cs_base cs_limit gdtr_limit eflags cs",
        "info registers mxcsr",
        "p $xmm0.uint128",
        "p $st0",
        "p/x $dr7",
    ]);
    for want in ["cr3            0x1000", "PG", "LMA", "cs_base        0x0", "cs             0x8", "0x400"] {
        assert!(out.contains(want), "`{want}` is missing:\n{out}");
    }
    assert!(!out.contains("Invalid"), "{out}");
    bench.finish();
}

#[test]
fn registers_and_memory_can_be_written() {
    let bench = Bench::new(true);
    let out = bench.gdb(&[
        "set $r12 = 0x1234",
        "p/x $r12",
        &format!("set {{long}}{INPUT:#x} = 0x5566"),
        &format!("x/xg {INPUT:#x}"),
        &format!("break *{:#x}", bench.program.main_loop),
        "continue",
        "continue",
        "p/x $rcx",
        "p/x $r12",
    ]);
    assert_in_order(&out, &["= 0x1234", "0x0000000000005566", "Breakpoint 1, ", "= 0x5566", "= 0x1234"]);
    bench.finish();
}

#[test]
fn unmapped_memory_is_an_error_and_a_partial_read_stops_at_the_boundary() {
    let bench = Bench::new(true);
    let out = bench.gdb(&[
        &format!("x/xg {UNMAPPED:#x}"),
        &format!("x/2xg {:#x}", UNMAPPED - 8),
        &format!("set {{long}}{UNMAPPED:#x} = 1"),
        "x/xg 0x8000000000000000",
    ]);
    assert_in_order(
        &out,
        &[
            "Cannot access memory at address 0x1000000",
            "0xfffff8:\t0x0000000000000000\tCannot access memory at address 0x1000000",
            "Cannot access memory at address 0x1000000",
            "Cannot access memory at address 0x8000000000000000",
        ],
    );
    bench.finish();
}

#[test]
fn watchpoints_stop_after_the_access() {
    let bench = Bench::new(true);
    let p = &bench.program;
    let out = bench.gdb(&[
        &format!("watch *(long*){COUNTER:#x}"),
        "continue",
        "info registers rip",
        "delete",
        &format!("rwatch *(long*){INPUT:#x}"),
        "continue",
        "delete",
        &format!("awatch *(long*){COUNTER:#x}"),
        "continue",
    ]);
    assert_in_order(
        &out,
        &[
            "Hardware watchpoint 1",
            "Old value = 0",
            "New value = 1",
            &format!("rip            {:#x}", p.store + 8),
            "Hardware read watchpoint 2",
            "Value = 0",
            "Hardware access (read/write) watchpoint 3",
            "New value = 2",
        ],
    );
    bench.finish();
}

#[test]
fn ctrl_c_stops_a_running_guest_and_detach_lets_it_run() {
    let bench = Bench::new(false);
    let mut gdb = bench.spawn(&[], &["echo running\\n", "continue", "info registers rip", "detach"]);
    gdb.expect("running");
    std::thread::sleep(Duration::from_millis(300));
    gdb.interrupt();
    let out = gdb.finish();
    assert_in_order(&out, &["received signal SIGINT", "rip            0x1000", "detached"]);
    let handle = bench.session.handle();
    let before = handle.when().unwrap().icount;
    std::thread::sleep(Duration::from_millis(50));
    assert!(handle.when().unwrap().icount > before, "the guest runs on after detach");
    assert!(matches!(handle.state(), Ok(Event::Running(_))));
    // And a debugger can come back.
    let out = bench.gdb(&["info registers rip", "detach"]);
    assert_in_order(&out, &["rip            0x1000", "detached"]);
    bench.finish();
}

#[test]
fn kill_ends_the_run() {
    let bench = Bench::new(true);
    bench.gdb(&["kill"]);
    assert_eq!(bench.session.wait(), Exit::Killed);
    bench.finish();
}

#[test]
fn triple_fault_stops_before_the_end_and_is_explained() {
    let bench = Bench::new(true);
    let crash = bench.program.crash;
    let out = bench.gdb(&[&format!("set $rip = {crash:#x}"), "continue", "info registers rip", "continue"]);
    assert_in_order(
        &out,
        &[
            "retrovisor: triple fault",
            "ud2",
            "SIGABRT",
            &format!("rip            {crash:#x}"),
            "retrovisor: the guest triple-faulted",
            "exited with code 01",
        ],
    );
    assert_eq!(bench.session.wait(), Exit::TripleFault);
    bench.finish();
}

#[test]
fn chosen_exception_stops_before_it_is_delivered() {
    let bench = Bench::new(true);
    let crash = bench.program.crash;
    let set = format!("set $rip = {crash:#x}");
    let out = bench.gdb(&["monitor catch ud", &set, "continue", "info registers rip", "monitor catch off"]);
    assert_in_order(
        &out,
        &["stopping before: #UD (6)", "retrovisor: #UD", "ud2", "SIGILL", "stopping before: nothing"],
    );
    bench.finish();
}

#[test]
fn guests_exit_code_reaches_gdb() {
    let bench = Bench::new(true);
    let out = bench.gdb(&[&format!("set $rip = {:#x}", bench.program.exit), "continue"]);
    assert_in_order(&out, &["isa-debug-exit with value 0x10", "exited with code 041"]);
    assert_eq!(bench.session.wait(), Exit::DebugExit(0x10));
    bench.finish();
}

#[test]
fn two_gdbs_share_the_machine() {
    let bench = Bench::new(true);
    let p = &bench.program;
    let waits =
        [format!("hbreak *{:#x}", p.after_call), "echo ready\\n".into(), "continue".into(), "detach".into()];
    let mut waiting = bench.spawn(&[], &waits.iter().map(String::as_str).collect::<Vec<_>>());
    waiting.expect("ready");
    std::thread::sleep(Duration::from_millis(300));
    // The guest came to the first gdb's breakpoint; the second sees the same machine.
    let out = bench.gdb(&["info registers rip"]);
    assert!(out.contains("rip            0x1000"), "{out}");
    assert_in_order(&waiting.finish(), &["Breakpoint 1, ", "detached"]);
    bench.finish();
}

#[test]
fn busy_port_is_one_clear_line() {
    let bench = Bench::new(true);
    let error = GdbServer::bind(bench.server.address()).err().unwrap().to_string();
    assert!(error.contains("in use") && error.contains("--gdb") && !error.contains('\n'), "{error}");
    bench.finish();
}

#[test]
fn unix_socket_serves_too_and_is_removed() {
    let bench = Bench::new(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gdb.sock");
    let server = GdbServer::bind(&GdbAddress::Unix(path.clone())).unwrap();
    let server = server.serve(bench.session.handle(), |_| {}).unwrap();
    let gdb = std::process::Command::new("gdb")
        .args(["-nx", "-batch", "-ex"])
        .arg(format!("target remote {}", path.display()))
        .args(["-ex", "info registers rip"])
        .output()
        .expect("gdb is needed for this test: install it, e.g. `apt-get install gdb`");
    assert!(String::from_utf8_lossy(&gdb.stdout).contains("0x100000"));
    server.finish();
    assert!(!path.exists());
    bench.finish();
}

#[test]
fn monitor_commands_answer() {
    let bench = Bench::new(true);
    let out = bench.gdb(&[
        "monitor help",
        "stepi",
        "stepi",
        "monitor when",
        &format!("monitor pt {COUNTER:#x}"),
        &format!("monitor pt {UNMAPPED:#x}"),
        "monitor xp/4xb 0x1000",
        "monitor xp 0xfffffffff000",
        "monitor dis $rip 1",
        "monitor nonsense",
    ]);
    assert_in_order(
        &out,
        &[
            "pt ADDR",
            "icount 2, guest time",
            "4-level paging, CR3 0x1000",
            "PML4E",
            "PDE",
            "P R/W",
            "PS",
            "physical 0x200000 (2 MiB page)",
            "not mapped: PDE is not present",
            "0x1000:\t0x23\t0x20\t0x00\t0x00",
            "neither RAM nor ROM",
            "push rbp",
            "there is no command `nonsense`",
        ],
    );
    bench.finish();
}

#[test]
fn looking_does_not_change_the_machine() {
    let bench = Bench::new(true);
    let handle = bench.session.handle();
    // A second debugger, so that gdb's leaving does not set the guest going.
    let other = handle.attach(Role::Debugger, Box::new(|_| true)).unwrap();
    let state = || (handle.when().unwrap(), handle.read_physical(Gpa(0x1000), 0x4000).unwrap());
    let before = state();
    let out = bench.gdb(&[
        &format!("x/4xg {COUNTER:#x}"),
        "x/i $pc",
        "info registers",
        "monitor pt 0x100000",
        "detach",
    ]);
    assert_in_order(&out, &["xor", "CR3", "detached"]);
    assert!(matches!(handle.state(), Ok(Event::Stopped(_))));
    assert_eq!(state(), before);
    drop(other);
    bench.finish();
}

/// Waits until the running guest's loop is translated, its blocks are linked, and it hardly ever leaves them.
fn wait_until_hot(bench: &Bench) {
    let store = bench.program.store;
    let look = move || {
        let look = move |m: &mut Inspect<'_>| {
            let alive = m.vm().translator().is_some_and(|t| t.blocks().any(|(_, b)| b.contains(store)));
            (alive, m.icount().0, m.vm().jit_stats().entries)
        };
        bench.session.handle().inspect(look).unwrap()
    };
    let first = look();
    let mut before = first;
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let now = look();
        let (ran, entered) = (now.1 - before.1, now.2 - before.2);
        if ran < 100_000 {
            continue;
        }
        if now.0 && entered < ran / 1000 {
            return;
        }
        assert!(now.1 - first.1 < 10_000_000_000, "never: {now:?}");
        before = now;
    }
}

#[test]
fn breakpoint_in_the_middle_of_a_hot_translated_loop_stops_each_round() {
    let bench = Bench::new(false);
    let p = &bench.program;
    wait_until_hot(&bench);
    let out = bench.gdb(&[
        // The store is in the middle of the block that begins behind the call.
        &format!("monitor blocks {:#x}", p.store),
        &format!("break *{:#x}", p.store),
        "continue",
        "info registers rip",
        &format!("p $rbx - *(long*){COUNTER:#x}"),
        "set $was = $rbx",
        "continue",
        "p $rbx - $was",
        "ignore 1 50",
        "continue",
        "p $rbx - $was",
        "monitor stats",
        "delete",
        "detach",
    ]);
    let rip = format!("rip            {:#x}", p.store);
    let block = format!("block at {:#x}, ", p.after_call);
    assert_in_order(
        &out,
        &[&block, "Breakpoint 1, ", &rip, "$1 = 1", "Breakpoint 1, ", "$2 = 1", "Breakpoint 1, ", "$3 = 52"],
    );
    let killed = out.split_once("written over, ").unwrap().1.split_once(" for breakpoints").unwrap().0;
    assert_ne!(killed, "0", "{out}");
    // Without the breakpoint the loop is one block again, and is not stopped in.
    wait_until_hot(&bench);
    bench.finish();
}

#[test]
fn watchpoint_and_steps_in_a_hot_translated_loop_are_exact() {
    let bench = Bench::new(false);
    let p = &bench.program;
    wait_until_hot(&bench);
    let out = bench.gdb(&[
        &format!("break *{:#x}", p.store),
        "continue",
        "delete",
        &format!("set $was = *(long*){COUNTER:#x}"),
        &format!("watch *(long*){COUNTER:#x}"),
        "continue",
        "info registers rip",
        &format!("p *(long*){COUNTER:#x} - $was"),
        "continue",
        &format!("p *(long*){COUNTER:#x} - $was"),
        "delete",
        // Eleven instructions make a round.
        "set $at = $rip",
        "stepi 220",
        "p $rip - $at",
        "p $rbx - $was",
        "stepi 9",
        "info registers rip",
        "stepi",
        &format!("p *(long*){COUNTER:#x} - $was"),
        "stepi",
        &format!("p *(long*){COUNTER:#x} - $was"),
        "detach",
    ]);
    assert_in_order(
        &out,
        &[
            "Breakpoint 1, ",
            "Hardware watchpoint 2",
            "Old value = ",
            &format!("rip            {:#x}", p.store + 8),
            "$1 = 1",
            "Old value = ",
            "$2 = 2",
            "$3 = 0",
            "$4 = 22",
            &format!("rip            {:#x}", p.after_call),
            "$5 = 22",
            "$6 = 23",
            "detached",
        ],
    );
    wait_until_hot(&bench);
    bench.finish();
}

#[test]
fn code_written_from_gdb_runs_though_the_old_was_translated() {
    let bench = Bench::new(false);
    let p = &bench.program;
    wait_until_hot(&bench);
    let killed = || bench.session.handle().inspect(|m| m.vm().jit_stats().written).unwrap();
    let before = killed();
    // `inc rbx` becomes `dec rbx`.
    let out = bench.gdb(&[
        &format!("set {{char}}{:#x} = 0xcb", p.after_call + 2),
        &format!("x/i {:#x}", p.after_call),
        "set $rbx = 0",
        "detach",
    ]);
    assert_in_order(&out, &["dec    %rbx", "detached"]);
    wait_until_hot(&bench);
    assert!(killed() > before, "the block was killed");
    let out = bench.gdb(&[
        &format!("monitor blocks {:#x}", p.after_call),
        &format!("break *{:#x}", p.store),
        "continue",
        "set $was = $rbx",
        "continue",
        "p $rbx - $was",
        "p $rbx < 0",
        "detach",
    ]);
    assert_in_order(&out, &["dec rbx", "Breakpoint 1, ", "Breakpoint 1, ", "$1 = -1", "$2 = 1", "detached"]);
    bench.finish();
}
