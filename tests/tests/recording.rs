//! `--record` when things go wrong around it: full disks, limits, two recorders, files that are there already.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cli/guest.rs"]
mod guest;

use guest::Folder;
use retrovisor_tests::program::{self, Done, Running};
use rustix::process::Signal;
use std::fs;
use std::process::Stdio;

/// Starts recording a guest that says hello and computes for ever.
fn recording(kernel: &str, trace: &str) -> Running {
    let args = ["run", "--kernel", kernel, "--record", trace];
    let mut running = Running::spawn(program::command(&args).stdin(Stdio::null()));
    running.wait_for("hello");
    running
}

fn stop(mut running: Running) -> Done {
    running.signal(Signal::INT);
    running.finish()
}

#[track_caller]
fn refused(args: &[&str], text: &str) {
    let done = program::run(args);
    done.expect(2);
    assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {}", done.stderr);
    assert!(done.stderr.contains(text), "{args:?}: `{text}` is missing in: {}", done.stderr);
}

#[test]
fn a_second_recording_to_the_same_file_is_refused_and_the_first_is_whole() {
    let f = Folder::new();
    let (kernel, trace) = (f.file("guest", &guest::loops()), f.path("a.rvt"));
    let first = recording(&kernel, &trace);
    refused(&["run", "--kernel", &kernel, "--record", &trace], "another process is recording to it");
    stop(first).expect(130);
    program::run(&["verify", &trace]).expect(0);
    // Its lock is gone with it, also when it was killed.
    let mut killed = recording(&kernel, &trace);
    killed.signal(Signal::KILL);
    killed.finish();
    stop(recording(&kernel, &trace)).expect(130);
    program::run(&["verify", &trace]).expect(0);
}

#[test]
fn two_recordings_in_one_folder_do_not_meet() {
    let f = Folder::new();
    let kernel = f.file("guest", &guest::loops());
    let traces = [f.path("a.rvt"), f.path("b.rvt")];
    let both = [recording(&kernel, &traces[0]), recording(&kernel, &traces[1])];
    both.into_iter().for_each(|r| assert_eq!(stop(r).code, Some(130)));
    program::run(&["verify", "--jobs", "2", &traces[0], &traces[1]]).expect(0);
    assert_eq!(fs::read_dir(f.dir()).unwrap().count(), 3, "nothing is left over");
}

#[test]
fn an_old_trace_is_replaced_and_anything_else_is_kept() {
    let f = Folder::new();
    let (kernel, trace) = (f.file("guest", &guest::exits(1)), f.file("a.rvt", &guest::trace()));
    let run = |to: &str| program::run(&["run", "--kernel", &kernel, "--isa-debug-exit", "--record", to]);
    run(&trace).expect(3);
    assert_ne!(fs::read(&trace).unwrap(), guest::trace());
    program::run(&["verify", &trace]).expect(0);
    let before = fs::read(&kernel).unwrap();
    refused(&["run", "--kernel", &kernel, "--record", &kernel], "not a trace");
    assert_eq!(fs::read(&kernel).unwrap(), before);
    refused(&["run", "--kernel", &kernel, "--record", f.dir()], "directory");
    assert_eq!(fs::read_dir(f.dir()).unwrap().count(), 2, "nothing is left over");
}

#[test]
fn a_disk_that_is_full_at_once_is_refused() {
    let f = Folder::new();
    let kernel = f.file("guest", &guest::exits(1));
    refused(&["run", "--kernel", &kernel, "--record", "/dev/full"], "/dev/full: cannot be created: No space");
}

#[test]
fn a_file_that_may_not_grow_stops_the_recording_not_the_run() {
    let f = Folder::new();
    let (kernel, trace) = (f.file("guest", &guest::loops()), f.path("a.rvt"));
    let mut running = recording(&kernel, &trace);
    let room = fs::metadata(&trace).unwrap().len() + 5;
    running.limit_files(room);
    running.wait_for_stderr("recording stopped");
    let done = stop(running);
    let told = |l: &str| l.contains("a.rvt: recording stopped, cannot be written: File too large");
    assert!(done.expect(130).stderr.lines().all(told), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 2, "when it happens and at the end: {done:?}");
    let verified = program::run(&["verify", &trace]);
    assert!(verified.expect(0).stdout.contains("exact up to the cut"), "{verified:?}");
}
