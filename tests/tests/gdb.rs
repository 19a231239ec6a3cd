//! Stock gdb against a live machine, the way a kernel developer uses it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "gdb/guest.rs"]
mod guest;
#[path = "gdb/support.rs"]
mod support;

use guest::{COPY, COUNTER, INPUT, UNMAPPED};
use retrovisor_core::Gpa;
use retrovisor_debug::{Event, Exit, Role};
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
            "0x1000:\t0x03\t0x20\t0x00\t0x00",
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
