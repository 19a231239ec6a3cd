//! A trace cut at any byte opens (or is refused in one line) and replays up to the cut.

use crate::chaos::{record, replay};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_replay::{Ending, Problem, Trace};

#[test]
fn test_trace_cut_at_every_byte_replays_up_to_the_cut() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        let recorded = record(11, clock, 12_000, false);
        let mut points = std::collections::BTreeSet::new();
        for n in 0..recorded.bytes.len() {
            let trace = match Trace::from_bytes("cut.rvt", recorded.bytes[..n].to_vec()) {
                Ok(trace) => trace,
                Err(e) => {
                    assert!(matches!(e.problem, Problem::Empty | Problem::CutHeader), "{n}: {e}");
                    assert!(!e.to_string().contains('\n') && e.to_string().starts_with("cut.rvt: "));
                    continue;
                }
            };
            let Ending::Cut(cut) = trace.ending().clone() else {
                // Only the index and the trailer may be missing.
                assert_eq!(trace.ending().when(), recorded.end.0, "{n}");
                continue;
            };
            assert_eq!(cut.damage, None, "{n}");
            assert!(cut.at <= n as u64);
            assert_eq!(trace.machine().is_ok(), trace.has_images(), "{n}");
            if points.insert(cut.when.icount) || n % 64 == 0 {
                let r = replay(&trace, 64, None, None);
                assert_eq!((r.exit, r.monitor.divergence()), (VmExit::InputEnded, None), "{n}");
                assert_eq!(r.vm.when(), cut.when, "{n}");
            }
        }
        assert!(points.len() > 3, "the cuts fell into several frames: {points:?}");
        let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
        assert!(matches!(trace.ending(), Ending::Complete(_)));
    }
}

#[test]
fn test_damaged_byte_ends_the_trace_before_its_chunk() {
    let recorded = record(11, ClockKind::Host, 12_000, false);
    let whole = Trace::from_bytes("t", recorded.bytes.clone()).unwrap();
    let at = recorded.bytes.len() - whole.frame_bytes() as usize / 2 - 200;
    let mut bytes = recorded.bytes;
    bytes[at] ^= 0x10;
    let trace = Trace::from_bytes("t", bytes).unwrap();
    let Ending::Cut(cut) = trace.ending() else { panic!("not noticed") };
    assert!(cut.damage.is_some() && cut.at <= at as u64 && cut.when < recorded.end.0, "{cut}");
    let r = replay(&trace, 64, None, None);
    assert_eq!((r.exit, r.monitor.divergence(), r.vm.when()), (VmExit::InputEnded, None, cut.when));
}

/// What a power loss can leave: blocks that never reached the disk read as zeros, or as something older, also in front
/// of blocks that did.
#[test]
fn test_trace_with_lost_blocks_replays_up_to_the_first_of_them() {
    const BLOCK: usize = 512;
    let recorded = record(12, ClockKind::Virtual, 12_000, false);
    let whole = Trace::from_bytes("t", recorded.bytes.clone()).unwrap();
    let first = recorded.bytes.len() - whole.frame_bytes() as usize;
    let mut points = std::collections::BTreeSet::new();
    for lost in first.div_ceil(BLOCK)..recorded.bytes.len() / BLOCK {
        for fill in [0, 0xa5] {
            let mut bytes = recorded.bytes.clone();
            bytes[lost * BLOCK..][..BLOCK].fill(fill);
            let trace = Trace::from_bytes("t", bytes).unwrap();
            let Ending::Cut(cut) = trace.ending() else {
                assert_eq!(trace.ending().when(), recorded.end.0, "only index and trailer are lost");
                continue;
            };
            assert!(cut.at <= ((lost + 1) * BLOCK) as u64 && cut.damage.is_some(), "{lost}: {cut}");
            points.insert(cut.when.icount);
            let r = replay(&trace, 64, None, None);
            assert_eq!((r.exit, r.monitor.divergence()), (VmExit::InputEnded, None), "{lost}");
            assert_eq!(r.vm.when(), cut.when, "{lost}");
        }
    }
    assert!(points.len() > 3, "the losses fell into several frames: {points:?}");
}
