//! What was recorded replays exactly, however the two runs are sliced.

use crate::chaos::{config, images, record, replay};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_replay::{Ending, ExitReason, Trace, What};

const CLOCKS: [ClockKind; 2] = [ClockKind::Virtual, ClockKind::Host];

#[test]
fn test_recorded_runs_replay_exactly_with_any_slice() {
    for clock in CLOCKS {
        for seed in 0..60 {
            let recorded = record(seed, clock, 8000 + seed, false);
            let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
            for slice in [1, 100, 1 << 40] {
                let r = replay(&trace, slice, None, None);
                assert_eq!(r.monitor.divergence(), None, "seed {seed} slice {slice} {clock:?}");
                assert_eq!(r.exit, VmExit::InputEnded, "seed {seed} slice {slice} {clock:?}");
                assert_eq!((r.vm.when(), r.vm.state), recorded.end, "seed {seed} slice {slice} {clock:?}");
                assert_eq!(r.monitor.hashes(), recorded.hashes);
                let Ending::Complete(end) = trace.ending() else { panic!("{:?}", trace.ending()) };
                assert_eq!((end.hash, end.reason), (r.vm.hash(), ExitReason::Quit));
            }
        }
    }
}

#[test]
fn test_run_that_powers_off_replays_to_its_own_power_off() {
    for clock in CLOCKS {
        for seed in 0..20 {
            let recorded = record(seed, clock, 5000, true);
            let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
            let r = replay(&trace, 77, Some(5000), None);
            assert_eq!((r.exit, r.monitor.divergence()), (VmExit::PowerOff, None), "seed {seed}");
            assert_eq!((r.vm.when(), r.vm.state), recorded.end);
        }
    }
}

#[test]
fn test_trace_gives_machine_and_images_back() {
    let recorded = record(3, ClockKind::Host, 2000, false);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    assert_eq!(trace.machine().unwrap(), (config(3, ClockKind::Host), images()));
    assert!(trace.has_images());
}

#[test]
fn test_records_are_ordered_and_complete() {
    let recorded = record(4, ClockKind::Host, 20_000, false);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    assert!(trace.frames() > 3, "the recording was flushed early now and then");
    let all: Vec<_> = trace.records().collect::<Result<_, _>>().unwrap();
    assert!(all.is_sorted_by_key(|r| r.when.icount));
    let hashes = all.iter().filter(|r| matches!(r.what, What::Hash { .. })).count();
    assert_eq!(hashes as u64, recorded.hashes);
}

#[test]
fn test_records_from_uses_index_and_loses_nothing() {
    let recorded = record(4, ClockKind::Host, 20_000, false);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    let all: Vec<_> = trace.records().collect::<Result<_, _>>().unwrap();
    for from in [0, 1, 5000, 12_345, 19_999, 1 << 40] {
        let got: Vec<_> =
            trace.records_from(retrovisor_core::Icount(from)).collect::<Result<_, _>>().unwrap();
        assert!(all.ends_with(&got));
        let after = |r: &&retrovisor_replay::Record| r.when.icount.0 >= from;
        assert_eq!(got.iter().filter(after).count(), all.iter().filter(after).count());
        assert!(from < 12_345 || got.len() < all.len());
    }
}

#[test]
fn test_virtual_trace_without_input_is_tiny() {
    use crate::fake::Fake;
    use retrovisor_core::{input::NoInput, loader::Images, machine::config::MachineConfig, output::NullSink};
    let config = MachineConfig { hash_interval: 1000, ..MachineConfig::default() };
    let (recording, file) = retrovisor_replay::Recording::in_memory(&config, &Images::default()).unwrap();
    let port = recording.port(NoInput);
    let mut vm = Fake::new(&config, Box::new(port), Box::new(recording.output(NullSink)));
    vm.run(Some(100_000));
    vm.arrive();
    recording.finish(vm.when(), ExitReason::Quit, vm.hash()).unwrap();
    // 100 hash points of 24 incompressible bytes; each random number is logged, too: about 2000 of 8 bytes.
    let trace = Trace::from_bytes("t", file.bytes()).unwrap();
    let randoms =
        trace.records().filter(|r| matches!(r.as_ref().unwrap().what, What::Answer { .. })).count() as u64;
    let budget = 100 * 28 + randoms * 11 + 400;
    assert!(trace.size() < budget, "{} bytes for {randoms} random numbers, expected {budget}", trace.size());
}
