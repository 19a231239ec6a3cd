//! A recording that is kept in the tree: it replays on both engines, holds what it held, and the machine records the same run
//! today. So a change of the trace format or of the machine's behaviour shows here, whether it was meant or not.
//!
//! After a change that was meant (a new format version, state that is saved otherwise, another device model), make it anew:
//! `RETROVISOR_BLESS=1 cargo test -p retrovisor-tests --test kept_trace`, and say in the changelog that older traces differ.

#![allow(clippy::unwrap_used)]

use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_replay::format::pack::pack_file;
use retrovisor_replay::rewrite::checkpoint;
use retrovisor_replay::{Ending, ExitReason, Record, Recording, Trace, VerifyOptions, verify, verify_spread};
use retrovisor_tests::ticker::{self, Keys};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// Timer ticks the guest waits for.
const TICKS: u32 = 30;
/// Instructions between two checkpoints.
const EVERY: u64 = 1 << 17;
/// Bytes it may have.
const SMALL: u64 = 16 << 10;

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/ticker.rvt")
}

/// The ticker with somebody typing, recorded now, with checkpoints and packed.
fn recorded(to: &Path) -> Arc<Trace> {
    let (config, images) = (ticker::config(ClockKind::Virtual), ticker::small_images(TICKS));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let mut vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let exit = vm.run(None);
    assert_eq!(exit, VmExit::DebugExit(ticker::DONE));
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    let trace = Trace::from_bytes("now.rvt", file.bytes()).unwrap();
    checkpoint(&trace, to, EVERY, VerifyOptions::default(), &mut |_| ()).unwrap();
    pack_file(&Trace::open(to).unwrap(), to).unwrap();
    Trace::open(to).unwrap()
}

/// The trace in the tree; made anew first if that is asked for.
fn open() -> Arc<Trace> {
    static BLESS: Once = Once::new();
    if std::env::var_os("RETROVISOR_BLESS").is_some() {
        BLESS.call_once(|| drop(recorded(&kept())));
    }
    Trace::open(&kept()).unwrap()
}

fn records(trace: &Trace) -> Vec<Record> {
    trace.records().collect::<Result<_, _>>().unwrap()
}

#[test]
fn it_replays_on_both_engines_and_from_its_checkpoints() {
    let trace = open();
    assert!(trace.size() <= SMALL, "{} bytes", trace.size());
    for engine in [Engine::Jit, Engine::Interp] {
        let options = VerifyOptions { engine, ..VerifyOptions::default() };
        let report = verify(&trace, options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.reason, Some(ExitReason::DebugExit(ticker::DONE)));
        assert_eq!(verify_spread(&trace, options, 2, &|_| ()).unwrap(), report);
    }
}

#[test]
fn the_same_run_is_recorded_today() {
    let (trace, dir) = (open(), tempfile::tempdir().unwrap());
    let now = recorded(&dir.path().join("now.rvt"));
    assert_eq!(trace.version(), now.version(), "the format has a new version");
    assert_eq!(
        (&trace.header().machine, &trace.header().images),
        (&now.header().machine, &now.header().images)
    );
    for (kept, now) in records(&trace).iter().zip(&records(&now)) {
        assert_eq!(kept, now, "the machine behaves otherwise from here on");
    }
    let Ending::Complete(end) = trace.ending() else { panic!("{:?}", trace.ending()) };
    assert_eq!(now.ending(), &Ending::Complete(*end));
    assert_eq!(trace.checkpoints(), now.checkpoints());
    for n in 0..now.checkpoints() {
        assert!(trace.checkpoint(n).unwrap() == now.checkpoint(n).unwrap(), "checkpoint {n} differs");
        let map = |t: &Trace| {
            let mut entries = Vec::new();
            t.checkpoint_map(n, &mut |e| entries.push(e)).unwrap();
            entries
        };
        assert_eq!(map(&trace), map(&now), "the map of checkpoint {n}");
    }
}
