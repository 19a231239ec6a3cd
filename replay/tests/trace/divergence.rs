//! A replay that differs says so at once and never hangs.

use crate::chaos::{record, replay};
use crate::fake::Fault;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_replay::Trace;
use retrovisor_replay::play::Difference;

const FAULTS: [Fault; 6] =
    [Fault::State, Fault::Ask, Fault::DontAsk, Fault::Output, Fault::Halt, Fault::Time];

#[test]
fn test_every_fault_is_found_soon_and_ends_the_replay() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        for seed in 0..20 {
            let recorded = record(seed, clock, 12_000, false);
            let trace = Trace::from_bytes("t", recorded.bytes.clone()).unwrap();
            for fault in FAULTS {
                let planted = 3000 + seed * 17;
                let r = replay(&trace, 100, None, Some((planted, fault)));
                let Some(d) = r.monitor.divergence() else {
                    // A jump of time inside an idle wait's gap is swallowed by the wait: the same run after all.
                    assert_eq!(
                        (fault, r.vm.when(), r.vm.state),
                        (Fault::Time, recorded.end.0, recorded.end.1)
                    );
                    continue;
                };
                assert!(matches!(r.exit, VmExit::InputEnded | VmExit::Diverged), "{:?}", r.exit);
                // What a machine fails to ask shows only where it should have asked.
                let late = fault == Fault::DontAsk;
                assert!((late || d.after.0 <= planted) && planted <= d.at.0, "{fault:?} at {planted}: {d}");
                // A hash point comes every 512 instructions.
                assert!(d.at.0 <= planted + 1024, "{fault:?} at {planted}: {d}");
                assert!(!d.to_string().contains('\n'));
            }
        }
    }
}

#[test]
fn test_difference_names_what_differs() {
    let recorded = record(5, ClockKind::Virtual, 12_000, false);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    let what = |fault| replay(&trace, 100, None, Some((4000, fault))).monitor.divergence().unwrap().what;
    assert!(matches!(what(Fault::Ask), Difference::Query { .. }), "{}", what(Fault::Ask));
    assert!(matches!(what(Fault::Output), Difference::Output { .. }), "{}", what(Fault::Output));
    assert!(matches!(what(Fault::DontAsk), Difference::Missed { .. }), "{}", what(Fault::DontAsk));
}

#[test]
fn test_machine_that_misses_its_recorded_end_diverges() {
    let recorded = record(6, ClockKind::Virtual, 5000, true);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    let r = replay(&trace, 100, None, None);
    assert_eq!(r.exit, VmExit::InputEnded);
    assert!(matches!(r.monitor.divergence().unwrap().what, Difference::RunsOn { .. }));
    let r = replay(&trace, 100, None, Some((1000, Fault::PowerOff)));
    assert_eq!(r.exit, VmExit::PowerOff, "the caller compares where it ended");
}

#[test]
fn test_poked_replay_compares_no_hashes() {
    use crate::fake::Fake;
    use retrovisor_core::{input::InputEvent, output::NullSink};
    use retrovisor_replay::{Mailbox, Player};
    let recorded = record(6, ClockKind::Virtual, 5000, false);
    let trace = Trace::from_bytes("t", recorded.bytes).unwrap();
    let player = Player::new(trace.clone(), Mailbox::new());
    let monitor = player.monitor();
    let output = Box::new(player.output(NullSink));
    let mut vm = Fake::new(trace.config(), Box::new(player), output);
    assert_eq!(vm.run(Some(600)), VmExit::Reached);
    vm.inject(&InputEvent::WriteReg { vcpu: 0, reg: 0, value: 7 });
    vm.run(Some(10_000_000));
    assert!(monitor.poked());
    let hash_mismatch = |d: &Difference| matches!(d, Difference::State { .. } | Difference::Output { .. });
    assert!(!monitor.divergence().is_some_and(|d| hash_mismatch(&d.what)));
}
