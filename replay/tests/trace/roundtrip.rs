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

/// Everything a reader can tell about a trace but where in the file it stands.
fn contents(
    bytes: Vec<u8>,
) -> (retrovisor_replay::format::header::Header, Vec<retrovisor_replay::Record>, Ending) {
    let trace = Trace::from_bytes("t", bytes).unwrap();
    let records = trace.records().collect::<Result<_, _>>().unwrap();
    let ending = match trace.ending().clone() {
        Ending::Cut(cut) => Ending::Cut(retrovisor_replay::Cut { at: 0, ..cut }),
        complete => complete,
    };
    (trace.header().clone(), records, ending)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let trace = Trace::from_bytes("t", bytes.to_vec()).unwrap();
    let file = retrovisor_replay::record::MemoryFile::default();
    let size = retrovisor_replay::format::pack::pack(&trace, Box::new(file.clone()), "packed").unwrap();
    assert_eq!(size, file.bytes().len() as u64);
    file.bytes()
}

#[test]
fn test_packing_keeps_every_record_and_the_replay() {
    for clock in CLOCKS {
        for seed in 0..40 {
            let recorded = record(seed, clock, 20_000 + seed * 100, false);
            let (before, after) = (recorded.bytes.clone(), packed(&recorded.bytes));
            assert_eq!(contents(after.clone()), contents(before.clone()), "seed {seed} {clock:?}");
            assert!(after.len() < before.len(), "seed {seed}: {} to {} bytes", before.len(), after.len());
            let trace = Trace::from_bytes("t", after.clone()).unwrap();
            let r = replay(&trace, 100, None, None);
            assert_eq!((r.exit, r.monitor.divergence()), (VmExit::InputEnded, None), "seed {seed} {clock:?}");
            assert_eq!((r.vm.when(), r.vm.state), recorded.end, "seed {seed} {clock:?}");
            assert_eq!(r.monitor.hashes(), recorded.hashes);
            assert_eq!(packed(&after), after, "packing again changes nothing");
        }
    }
}

#[test]
fn test_packed_trace_has_few_frames_and_an_index() {
    let recorded = record(2, ClockKind::Host, 1_500_000, false);
    let before = Trace::from_bytes("t", recorded.bytes.clone()).unwrap();
    let after = Trace::from_bytes("t", packed(&recorded.bytes)).unwrap();
    let full = before.frame_raw_bytes().div_ceil(retrovisor_replay::format::MAX_FRAME as u64) as usize;
    assert!(before.frames() > 10 * after.frames(), "{} to {} frames", before.frames(), after.frames());
    assert!((2..=full + 1).contains(&after.frames()), "{} frames for {full} full ones", after.frames());
    assert!(after.indexed());
    assert_eq!(contents(packed(&recorded.bytes)), contents(recorded.bytes));
}

#[test]
fn test_packing_a_cut_trace_keeps_the_cut() {
    let recorded = record(9, ClockKind::Host, 12_000, false);
    for n in (0..recorded.bytes.len()).step_by(37) {
        let Ok(trace) = Trace::from_bytes("t", recorded.bytes[..n].to_vec()) else { continue };
        if !trace.has_images() {
            let file = Box::new(retrovisor_replay::record::MemoryFile::default());
            assert!(retrovisor_replay::format::pack::pack(&trace, file, "packed").is_err());
            continue;
        }
        let before = recorded.bytes[..n].to_vec();
        assert_eq!(contents(packed(&before)), contents(before), "{n}");
    }
}
