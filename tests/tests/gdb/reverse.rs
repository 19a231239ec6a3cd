//! Stock gdb going backwards, on both engines.

use crate::guest::{COUNTER, INPUT};
use crate::support::{Bench, assert_in_order};
use retrovisor_core::Icount;
use retrovisor_core::engine::Engine;
use retrovisor_debug::{Exit, Resume};
use std::time::Duration;

const ENGINES: [Engine; 2] = [Engine::Jit, Engine::Interp];

#[test]
fn steps_and_breakpoints_backwards_meet_what_was_met_forwards() {
    for engine in ENGINES {
        let bench = Bench::travelling(engine);
        let p = &bench.program;
        let out = bench.gdb(&[
            &format!("break *{:#x}", p.work),
            "ignore 1 4",
            "continue",
            "p $rbx",
            "reverse-stepi",
            "p $rip",
            "reverse-continue",
            "p $rbx",
            "delete",
            // A condition that gdb looks at itself, at each hit.
            &format!("hbreak *{:#x} if $rbx == 1", p.after_call),
            "reverse-continue",
            "p $rbx",
            "condition 2 $rbx == 3",
            "continue",
            "p $rbx",
            "delete",
            "set exec-direction reverse",
            "stepi",
            "p $rip",
            "continue",
            "p $rip",
            "stepi",
            "set exec-direction forward",
            "stepi",
            "p $rip",
        ]);
        assert_in_order(
            &out,
            &[
                "Breakpoint 1, ",
                "$1 = 4",
                &format!("(void (*)()) {:#x}", p.main_loop),
                "Breakpoint 1, ",
                "$3 = 3",
                "Breakpoint 2, ",
                "$4 = 1",
                "Breakpoint 2, ",
                "$5 = 3",
                // RET comes before what follows the call.
                &format!("(void (*)()) {:#x}", p.install - 1),
                "No more reverse-execution history",
                "(void (*)()) 0x100000",
                "No more reverse-execution history",
                &format!("(void (*)()) {:#x}", p.main_loop),
            ],
        );
        bench.finish();
    }
}

#[test]
fn functions_are_left_and_entered_backwards_by_name() {
    let bench = Bench::travelling(Engine::Jit);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("guest.elf");
    std::fs::write(&file, crate::guest::symbol_file(&bench.program)).unwrap();
    let load = format!("file {}", file.display());
    let commands = [
        "break work",
        "continue",
        "continue",
        "bt",
        "reverse-finish",
        "p $rip",
        "delete",
        // Over the call, both ways.
        "nexti",
        "p $rip",
        "reverse-nexti",
        "p $rip",
        "nexti",
        "p $rip",
        // Into the function, by its end.
        "reverse-stepi",
        "reverse-step",
        "p $rip",
    ];
    let out = bench.spawn(&[&load], &commands).finish();
    let call = format!("(void (*)()) {:#x} <main_loop>", bench.program.main_loop);
    let after = format!("(void (*)()) {:#x} <main_loop+5>", bench.program.after_call);
    assert_in_order(
        &out,
        &["Breakpoint 1, ", "in work ()", "#1  ", "in main_loop ()", &call, &after, &call, &after],
    );
    bench.finish();
}

#[test]
fn watchpoints_backwards_stop_before_the_access() {
    for engine in ENGINES {
        let bench = Bench::travelling(engine);
        let p = &bench.program;
        let out = bench.gdb(&[
            &format!("hbreak *{:#x} if $rbx == 7", p.work),
            "continue",
            "delete",
            &format!("watch *(long*){COUNTER:#x}"),
            "reverse-continue",
            "p $rip",
            "reverse-continue",
            "continue",
            "p $rip",
            "delete",
            &format!("rwatch *(long*){INPUT:#x}"),
            "reverse-continue",
            "p $rip",
            "delete",
            &format!("awatch *(long*){COUNTER:#x}"),
            "reverse-continue",
            "p $rip",
            &format!("monitor lastwrite {COUNTER:#x}"),
        ]);
        let rip = |at: u64| format!("(void (*)()) {at:#x}");
        assert_in_order(
            &out,
            &[
                "Hardware watchpoint 2",
                "Old value = 7",
                "New value = 6",
                &rip(p.store),
                "Old value = 6",
                "New value = 5",
                "Old value = 5",
                "New value = 6",
                &rip(p.store + 8),
                "Hardware read watchpoint 3",
                "Value = 0",
                &rip(p.store + 8),
                "Hardware access (read/write) watchpoint 4",
                "Old value = ",
                &rip(p.store),
                "instructions back",
                "mov [0x200000], rbx",
                "0x0000000000000003 -> 0x0000000000000004",
            ],
        );
        bench.finish();
    }
}

#[test]
fn the_end_of_the_run_can_be_gone_back_from() {
    let bench = Bench::travelling(Engine::Jit);
    let p = &bench.program;
    let out = bench.gdb(&[
        &format!("hbreak *{:#x} if $rbx == 3", p.work),
        "continue",
        &format!("set $rip = {:#x}", p.exit),
        "continue",
        "monitor when",
        "reverse-stepi",
        "x/i $pc",
        "reverse-continue",
        "continue",
        "continue",
        "monitor back io",
        "continue",
        "continue",
        "continue",
    ]);
    assert_in_order(
        &out,
        &[
            "Breakpoint 1, ",
            "retrovisor: the guest exited through isa-debug-exit with value 0x10",
            "No more reverse-execution history",
            "at the newest point; 100.0% of the history",
            "out    %al,$0xf4",
            "No more reverse-execution history",
            "Breakpoint 1, ",
            "the guest exited through isa-debug-exit",
            "No more reverse-execution history",
            "write to port 0xf4: 0x10, bytes: 1",
            "SIGTRAP",
            "the guest exited through isa-debug-exit",
            "exited with code 041",
        ],
    );
    assert_eq!(bench.session.wait(), Exit::DebugExit(0x10));
    bench.finish();
}

#[test]
fn gdb_sees_where_a_command_went_with_its_next_step() {
    let bench = Bench::travelling(Engine::Jit);
    let p = &bench.program;
    let out = bench.gdb(&[
        &format!("hbreak *{:#x} if $rbx == 20", p.work),
        "continue",
        "x/gx 0x200000",
        "monitor mark twenty",
        "monitor seek 50%",
        "stepi",
        "x/gx 0x200000",
        "monitor goto twenty",
        "reverse-stepi",
        "p $rip",
        "monitor seek +100000",
        "continue",
        "p $rip",
        "delete",
        "monitor seek start",
        "continue 1",
        "p $rip",
    ]);
    let work = format!("(void (*)()) {:#x}", p.work);
    assert_in_order(
        &out,
        &[
            "Breakpoint 1, ",
            "0x0000000000000014",
            "mark `twenty` at icount ",
            "gdb sees it after `stepi`",
            "0x200000:\t0x000000000000000a",
            // The step back went nowhere: it only told where the mark is.
            &work,
            "icount 222, ",
            &work,
            "icount 0, ",
            "(void (*)()) 0x100000",
        ],
    );
    bench.finish();
}

#[test]
fn ctrl_c_ends_a_search_where_it_began() {
    let bench = Bench::travelling(Engine::Jit);
    let handle = bench.session.handle();
    let far = Icount(200_000_000);
    let run = handle.resume(Resume::Continue { until: Some(far) }).unwrap();
    assert!(handle.wait_for_stop(run, Duration::from_secs(60)).unwrap().is_some());
    // Never written, but beside what is written all the time.
    let watch = format!("watch *(char*){:#x}", COUNTER + 64);
    let commands =
        [&watch, "echo searching\\n", "reverse-continue", "monitor when", "reverse-stepi", "p $rip"];
    let mut gdb = bench.spawn(&[], &commands);
    gdb.expect("searching");
    std::thread::sleep(Duration::from_millis(100));
    gdb.interrupt();
    let out = gdb.finish();
    assert_in_order(&out, &["received signal SIGINT", "icount 200000000, ", "$1 = "]);
    bench.finish();
}
