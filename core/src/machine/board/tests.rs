//! The wiring, driven through the board's doors as the engine does.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::addr::{Gpa, Icount};
use crate::clock::ClockKind;
use crate::devices::lapic::reg;
use crate::input::{Idle, Poll, Query};
use crate::output::OutputPort;
use crate::state::{Reader, Writer};
use std::sync::{Arc, Mutex};

/// Answers host-time queries with a steadily growing time.
struct HostTime(u64);

impl InputPort for HostTime {
    fn poll(&mut self, _now: When) -> Poll {
        Poll::None
    }
    fn next_poll(&self) -> Option<Icount> {
        None
    }
    fn answer(&mut self, _now: When, _query: Query) -> u64 {
        self.0 += 1000;
        self.0
    }
    fn idle(&mut self, _now: When, _deadline: Option<GuestTime>) -> Idle {
        Idle::Deadline
    }
}

#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Vec<(OutputPort, u8)>>>);

impl OutputSink for Capture {
    fn write(&mut self, _when: When, port: OutputPort, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes.iter().map(|b| (port, *b)));
    }
}

/// A board with everything around it.
struct Rig {
    board: Board,
    mem: Memory,
    clock: Clock,
    input: HostTime,
    output: Capture,
    icount: u64,
}

impl Rig {
    fn new(config: &MachineConfig) -> Self {
        Self {
            board: Board::new(config),
            mem: Memory::new(1 << 20, 0).unwrap(),
            clock: Clock::new(config.clock),
            input: HostTime(0),
            output: Capture::default(),
            icount: 0,
        }
    }
    fn plain() -> Self {
        Self::new(&MachineConfig::default())
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Board, &mut BusCtx<'_>) -> R) -> R {
        let when = When { icount: Icount(self.icount), time: self.clock.now(self.icount) };
        let mut bus = BusCtx {
            when,
            clock: &mut self.clock,
            mem: &mut self.mem,
            input: &mut self.input,
            output: &mut self.output,
        };
        f(&mut self.board, &mut bus)
    }
    fn inb(&mut self, port: u16) -> u8 {
        self.with(|b, bus| b.pio_read(0, port, 1, bus)) as u8
    }
    fn outb(&mut self, port: u16, v: u8) {
        self.with(|b, bus| b.pio_write(0, port, 1, v.into(), bus))
    }
    fn ind(&mut self, port: u16) -> u32 {
        self.with(|b, bus| b.pio_read(0, port, 4, bus))
    }
    fn outd(&mut self, port: u16, v: u32) {
        self.with(|b, bus| b.pio_write(0, port, 4, v, bus))
    }
    fn apic_read(&mut self, cpu: u8, r: u8) -> u32 {
        self.with(|b, bus| b.mmio_read(cpu, Gpa(0xfee0_0000 | u64::from(r) << 4), 4, bus)) as u32
    }
    fn apic_write(&mut self, cpu: u8, r: u8, v: u32) {
        self.with(|b, bus| b.mmio_write(cpu, Gpa(0xfee0_0000 | u64::from(r) << 4), 4, v.into(), bus));
    }
    fn redirect(&mut self, pin: u8, entry: u64) {
        for (i, v) in [(0, entry as u32), (1, (entry >> 32) as u32)] {
            self.with(|b, bus| b.mmio_write(0, Gpa(IOAPIC_BASE), 4, u64::from(0x10 + 2 * pin + i), bus));
            self.with(|b, bus| b.mmio_write(0, Gpa(IOAPIC_BASE + 0x10), 4, v.into(), bus));
        }
    }
    fn init_pic(&mut self) {
        for (port, v) in
            [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2)]
        {
            self.outb(port, v);
        }
        self.outb(0xa1, 1);
    }
    /// Runs to the next deadline as an idle guest does.
    fn idle(&mut self) -> GuestTime {
        let t = self.board.deadline().unwrap();
        self.clock.advance_to(self.icount, t);
        self.with(|b, bus| b.advance(bus));
        t
    }
    fn save(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.board.save(&mut w);
        w.bytes
    }
}

#[test]
fn pit_interrupt_reaches_vcpu_0_through_the_pic() {
    let mut r = Rig::plain();
    r.init_pic();
    for (port, v) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        r.outb(port, v); // 1193: a millisecond
    }
    assert!(!r.board.intr(0));
    let t = r.idle();
    assert!((999_000..1_000_000).contains(&t.0), "{t}");
    assert!(r.board.intr(0));
    assert_eq!(r.board.ack(0), 0x20);
    assert!(!r.board.intr(0));
    r.outb(0x20, 0x20);
    r.idle();
    assert_eq!(r.board.ack(0), 0x20);
}

#[test]
fn pit_interrupt_reaches_ioapic_pin_2() {
    let mut r = Rig::plain();
    r.apic_write(0, reg::SVR, 0x1ff);
    r.redirect(2, 0x30);
    for (port, v) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        r.outb(port, v);
    }
    r.outb(0x21, 0xff);
    r.idle();
    assert_eq!((r.board.intr(0), r.board.ack(0)), (true, 0x30));
    r.apic_write(0, reg::EOI, 0);
    assert!(!r.board.intr(0));
}

#[test]
fn external_interrupt_goes_before_a_local_one() {
    let mut r = Rig::plain();
    r.init_pic();
    r.apic_write(0, reg::SVR, 0x1ff);
    r.apic_write(0, reg::ICR, 0x4_0050);
    r.with(|b, bus| b.input(&InputEvent::Key { bytes: vec![0x1e] }, bus));
    assert_eq!((r.board.ack(0), r.board.ack(0)), (0x21, 0x50));
}

#[test]
fn lapic_disabled_by_msr_leaves_the_page_unclaimed() {
    let mut r = Rig::plain();
    assert_eq!(r.apic_read(0, reg::VERSION), 0x0005_0014);
    r.board.set_apic_base(0, 0xfee0_0000);
    assert_eq!(r.apic_read(0, reg::VERSION), u32::MAX);
    r.board.set_apic_base(0, 0xfee0_0800);
    assert_eq!(r.apic_read(0, reg::VERSION), 0x0005_0014);
}

#[test]
fn ipis_start_other_vcpus() {
    let mut r = Rig::new(&MachineConfig { vcpus: 3, ..MachineConfig::default() });
    r.apic_write(0, reg::ICR, 0x000c_4500);
    assert_eq!(std::mem::take(&mut r.board.events), [BoardEvent::Init(1), BoardEvent::Init(2)]);
    r.apic_write(0, reg::ICR, 0x0000_8500);
    assert_eq!(r.board.events, [], "de-assert");
    r.apic_write(0, reg::ICR_HIGH, 0x0200_0000);
    r.apic_write(0, reg::ICR, 0x0000_4608);
    assert_eq!(std::mem::take(&mut r.board.events), [BoardEvent::Sipi(2, 8)]);
    r.apic_write(0, reg::ICR_HIGH, 0xff00_0000);
    r.apic_write(0, reg::ICR, 0x0000_4400);
    assert_eq!(r.board.events, [BoardEvent::Nmi(0), BoardEvent::Nmi(1), BoardEvent::Nmi(2)]);
    assert_eq!(r.apic_read(0, reg::ICR) & 0x1000, 0);
}

#[test]
fn each_vcpu_sees_its_own_apic() {
    let mut r = Rig::new(&MachineConfig { vcpus: 2, ..MachineConfig::default() });
    assert_eq!((r.apic_read(0, reg::ID), r.apic_read(1, reg::ID)), (0, 1 << 24));
    r.apic_write(1, reg::SVR, 0x1ff);
    r.apic_write(0, reg::ICR_HIGH, 1 << 24);
    r.apic_write(0, reg::ICR, 0x44);
    assert_eq!((r.board.intr(0), r.board.intr(1)), (false, true));
    assert_eq!(r.board.ack(1), 0x44);
}

#[test]
fn level_interrupt_is_asked_again_after_eoi() {
    let mut r = Rig::new(&MachineConfig { testdev: true, ..MachineConfig::default() });
    r.apic_write(0, reg::SVR, 0x1ff);
    r.redirect(14, 0x8045);
    r.outb(0x200e, 1);
    assert_eq!(r.board.ack(0), 0x45);
    assert!(!r.board.intr(0));
    r.apic_write(0, reg::EOI, 0);
    assert_eq!(r.board.ack(0), 0x45, "still asserted");
    r.outb(0x200e, 0);
    r.apic_write(0, reg::EOI, 0);
    assert!(!r.board.intr(0));
}

#[test]
fn serial_output_leaves_and_input_interrupts() {
    let mut r = Rig::plain();
    r.init_pic();
    r.outb(0x3f8, b'A');
    r.outb(0xe9, b'B');
    r.outb(0x402, b'C');
    let out = r.output.0.lock().unwrap().clone();
    assert_eq!(
        out,
        [(OutputPort::Serial(0), b'A'), (OutputPort::DebugCon, b'B'), (OutputPort::DebugCon, b'C')]
    );
    r.outb(0x3f9, 1);
    r.with(|b, bus| b.input(&InputEvent::Serial { port: 0, bytes: b"hi".to_vec() }, bus));
    assert_eq!(r.board.ack(0), 0x24);
    assert_eq!((r.inb(0x3f8), r.inb(0x3f8)), (b'h', b'i'));
    assert!(!r.board.intr(0));
}

#[test]
fn absent_ports_read_all_ones() {
    let mut r = Rig::plain();
    for port in [0x2f8, 0x3e8, 0x2e8, 0x378, 0x278, 0x1f0, 0x5658] {
        assert_eq!(r.inb(port), 0xff, "port {port:#x}");
    }
    assert_eq!(r.ind(0x1f0), u32::MAX);
    assert_eq!(r.with(|b, bus| b.mmio_read(0, Gpa(0xfed0_0000), 8, bus)), u64::MAX);
}

#[test]
fn keyboard_bytes_are_edges_on_irq1() {
    let mut r = Rig::plain();
    r.init_pic();
    r.with(|b, bus| b.input(&InputEvent::Key { bytes: vec![0x1e, 0x9e] }, bus));
    assert_eq!(r.board.ack(0), 0x21);
    assert_eq!(r.inb(0x60), 0x1e);
    r.outb(0x20, 0x20);
    assert_eq!(r.board.ack(0), 0x21, "the second byte");
    assert_eq!((r.inb(0x60), r.inb(0x64) & 1), (0x9e, 0));
}

#[test]
fn a20_gate_is_one_state_behind_two_ports() {
    let mut r = Rig::plain();
    r.board.a20_changed = false;
    r.outb(0x92, 0);
    assert_eq!((r.mem.a20_mask, r.board.a20_changed), (!(1 << 20), true));
    r.outb(0x64, 0xd0);
    assert_eq!(r.inb(0x60) & 2, 0);
    r.outb(0x64, 0xd1);
    r.outb(0x60, 0xdf);
    assert_eq!((r.mem.a20_mask, r.inb(0x92) & 2), (u64::MAX, 2));
}

#[test]
fn reset_ports_ask_for_a_reset() {
    for ports in [&[(0x64, 0xfe)][..], &[(0xcf9, 0x02), (0xcf9, 0x06)], &[(0x92, 0x03)]] {
        let mut r = Rig::plain();
        for (port, v) in ports {
            r.outb(*port, *v);
        }
        assert_eq!(r.board.events, [BoardEvent::Reset], "{ports:x?}");
    }
}

#[test]
fn acpi_power_off_and_power_button() {
    let mut r = Rig::plain();
    r.init_pic();
    r.outb(0xb2, 0xf1);
    r.with(|b, bus| b.pio_write(0, 0x602, 2, 0x100, bus));
    r.with(|b, bus| b.input(&InputEvent::PowerButton, bus));
    assert_eq!(r.board.ack(0), 0x29, "SCI");
    r.with(|b, bus| b.pio_write(0, 0x600, 2, 0x100, bus));
    r.with(|b, bus| b.pio_write(0, 0x604, 2, 0x2001, bus));
    assert_eq!(r.board.events, [BoardEvent::PowerOff]);
}

#[test]
fn debug_exit_takes_its_ports() {
    let mut r = Rig::new(&MachineConfig { debug_exit: Some((0xf4, 4)), ..MachineConfig::default() });
    r.outd(0xf4, 0x1234);
    r.outb(0xf7, 3);
    assert_eq!(r.board.events, [BoardEvent::DebugExit(0x1234), BoardEvent::DebugExit(3)]);
    let mut without = Rig::plain();
    without.outd(0xf4, 1);
    assert_eq!(without.board.events, []);
}

#[test]
fn pci_configuration_ports() {
    let mut r = Rig::plain();
    r.outd(0xcf8, 0x8000_0000);
    assert_eq!(r.ind(0xcf8), 0x8000_0000);
    assert_eq!(r.ind(0xcfc), 0x1237_8086);
    assert_eq!(r.with(|b, bus| b.pio_read(0, 0xcfe, 2, bus)), 0x1237);
}

#[test]
fn pm_timer_follows_guest_time() {
    let mut r = Rig::plain();
    r.icount = 1_000_000;
    assert_eq!(r.ind(0x608), 3579);
}

#[test]
fn host_clock_reads_are_logged_and_whole() {
    let mut r = Rig::new(&MachineConfig { clock: ClockKind::Host, ..MachineConfig::default() });
    r.ind(0x608);
    assert_eq!(r.input.0, 1000, "one question for a four-byte read");
    r.inb(0x3fd);
    r.inb(0x64);
    assert_eq!(r.input.0, 1000, "others do not ask");
}

#[test]
fn pm_status_read_under_the_host_clock_raises_the_sci() {
    let mut r = Rig::new(&MachineConfig { clock: ClockKind::Host, ..MachineConfig::default() });
    r.init_pic();
    r.outb(0xb2, 0xf1);
    r.with(|b, bus| b.pio_write(0, 0x602, 2, 1, bus));
    r.input.0 = 3_000_000_000;
    assert_eq!(r.with(|b, bus| b.pio_read(0, 0x600, 2, bus)), 1);
    assert_eq!(r.board.ack(0), 0x29);
    assert_eq!(r.board.deadline(), None);
}

#[test]
fn several_timers_expire_together() {
    let mut r = Rig::plain();
    r.init_pic();
    r.apic_write(0, reg::SVR, 0x1ff);
    r.apic_write(0, reg::DIVIDE, 0xb);
    r.apic_write(0, reg::LVT_TIMER, 0x2_0060);
    r.apic_write(0, reg::INITIAL_COUNT, 1000);
    for (port, v) in [(0x43, 0x34), (0x40, 100), (0x40, 0)] {
        r.outb(port, v);
    }
    assert_eq!(r.board.deadline(), Some(GuestTime(1000)));
    r.clock.advance_to(0, GuestTime(1_000_500));
    r.with(|b, bus| b.advance(bus));
    assert_eq!((r.board.ack(0), r.board.ack(0)), (0x20, 0x60));
    assert_eq!(r.board.deadline(), Some(GuestTime(1_001_000)));
    let before = r.save();
    r.with(|b, bus| b.advance(bus));
    assert_eq!(r.save(), before, "nothing due, nothing changed");
}

#[test]
fn tsc_deadline_through_the_board() {
    let mut r = Rig::plain();
    r.apic_write(0, reg::SVR, 0x1ff);
    r.apic_write(0, reg::LVT_TIMER, 0x4_00ec);
    r.board.set_tsc_deadline(0, 700, GuestTime(700));
    assert_eq!((r.board.deadline(), r.board.tsc_deadline(0)), (Some(GuestTime(700)), 700));
    r.idle();
    assert_eq!((r.board.ack(0), r.board.tsc_deadline(0), r.board.deadline()), (0xec, 0, None));
}

#[test]
fn x2apic_msrs_through_the_board() {
    let mut r = Rig::plain();
    assert_eq!(r.with(|b, bus| b.x2apic_read(0, reg::ID, bus)), None);
    r.board.set_apic_base(0, 0xfee0_0d00);
    assert_eq!(r.apic_read(0, reg::ID), u32::MAX, "the page is gone");
    assert!(r.with(|b, bus| b.x2apic_write(0, reg::SVR, 0x1ff, bus)));
    assert!(r.with(|b, bus| b.x2apic_write(0, reg::SELF_IPI, 0x42, bus)));
    assert_eq!(r.board.ack(0), 0x42);
    assert!(r.with(|b, bus| b.x2apic_write(0, reg::EOI, 0, bus)));
}

#[test]
fn task_priority_by_cr8_gates_interrupts() {
    let mut r = Rig::plain();
    r.apic_write(0, reg::SVR, 0x1ff);
    r.board.set_cr8(0, 5);
    r.apic_write(0, reg::ICR, 0x4_0055);
    assert_eq!((r.board.intr(0), r.board.cr8(0)), (false, 5));
    r.board.set_cr8(0, 4);
    assert!(r.board.intr(0));
}

#[test]
fn user_nmi_goes_through_lint1_and_the_mask() {
    let mut r = Rig::plain();
    r.with(|b, bus| b.input(&InputEvent::Nmi, bus));
    assert_eq!(std::mem::take(&mut r.board.events), [BoardEvent::Nmi(0)]);
    r.outb(0x70, 0x80);
    r.with(|b, bus| b.input(&InputEvent::Nmi, bus));
    assert_eq!(r.board.events, []);
}

#[test]
fn testdev_latch_and_buffer() {
    let mut r = Rig::new(&MachineConfig { testdev: true, ..MachineConfig::default() });
    r.outd(0xe0, 0x1234_5678);
    assert_eq!((r.ind(0xe0), r.inb(0xe1), r.ind(0xe8)), (0x1234_5678, 0x56, 0x1234_5678));
    r.outb(0xe9, 0xaa);
    assert_eq!(r.ind(0xe0), 0x1234_aa78);
    r.with(|b, bus| b.mmio_write(0, Gpa(0xff00_0008), 8, 0x1122_3344_5566_7788, bus));
    assert_eq!(r.with(|b, bus| b.mmio_read(0, Gpa(0xff00_000a), 2, bus)), 0x5566);
}

#[test]
fn vga_window_is_memory() {
    let mut r = Rig::plain();
    r.with(|b, bus| b.mmio_write(0, Gpa(0xb_8000), 2, 0x0748, bus));
    assert_eq!(r.with(|b, bus| b.mmio_read(0, Gpa(0xb_8000), 4, bus)), 0x0748);
    assert_eq!(&r.board.vga.text()[..2], b"H\x07");
}

#[test]
fn state_round_trips_between_boards() {
    let config = MachineConfig { vcpus: 2, testdev: true, ..MachineConfig::default() };
    let mut r = Rig::new(&config);
    r.init_pic();
    for (port, v) in
        [(0x43, 0x34), (0x40, 0), (0x40, 0x10), (0x3f9, 1), (0x92, 0), (0x70, 0x0f), (0x71, 0x0a)]
    {
        r.outb(port, v);
    }
    r.with(|b, bus| b.input(&InputEvent::Serial { port: 0, bytes: b"pending".to_vec() }, bus));
    r.outb(0x200e, 1);
    let saved = r.save();
    let mut other = Rig::new(&config);
    other.board.load(&mut Reader::new(&saved)).unwrap();
    assert_eq!(other.save(), saved);
    assert_eq!((other.board.intr(0), other.board.deadline()), (r.board.intr(0), r.board.deadline()));
    assert_eq!((other.board.a20_mask(), other.board.events.len()), (!(1 << 20), 0));
    assert_eq!(other.board.ack(0), r.board.ack(0));
    for cut in (0..saved.len()).step_by(997) {
        assert!(Rig::new(&config).board.load(&mut Reader::new(&saved[..cut])).is_err());
    }
}

#[test]
fn random_accesses_never_panic() {
    let config =
        MachineConfig { vcpus: 2, testdev: true, debug_exit: Some((0xf4, 4)), ..MachineConfig::default() };
    let mut rng = crate::devices::conformance::Rng::new(2024);
    let mut r = Rig::new(&config);
    for _ in 0..200_000 {
        r.icount += rng.below(1 << 12);
        let (size, v, cpu) = (1 << rng.below(3), rng.next() as u32, rng.below(2) as u8);
        let port = if rng.below(8) == 0 { rng.next() as u16 } else { rng.below(0x700) as u16 };
        let gpa =
            Gpa([0xfee0_0000, 0xfec0_0000, 0xa_0000, 0xff00_0000][rng.below(4) as usize] + rng.below(0x1000));
        match rng.below(9) {
            0 | 1 => drop(r.with(|b, bus| b.pio_read(cpu, port, size, bus))),
            2 | 3 => r.with(|b, bus| b.pio_write(cpu, port, size, v, bus)),
            4 => drop(r.with(|b, bus| b.mmio_read(cpu, gpa, size * 2, bus))),
            5 => r.with(|b, bus| b.mmio_write(cpu, gpa, size * 2, v.into(), bus)),
            6 if r.board.intr(cpu) => drop(r.board.ack(cpu)),
            7 => {
                let reg = rng.below(0x40) as u8;
                r.with(|b, bus| b.x2apic_write(cpu, reg, u64::from(v & 0xfff), bus));
            }
            _ => r.with(|b, bus| b.advance(bus)),
        }
        r.board.events.clear();
        if rng.below(5000) == 0 {
            r.board.set_apic_base(cpu, 0xfee0_0000 | rng.below(4) << 10);
        }
    }
    r.board.reset();
    assert_eq!(r.board.a20_mask(), u64::MAX);
}

#[test]
fn reset_keeps_time_and_cmos() {
    let mut r = Rig::plain();
    r.outb(0x70, 0x0f);
    r.outb(0x71, 0x05);
    r.board.reset();
    r.outb(0x70, 0x0f);
    assert_eq!(r.inb(0x71), 0x05);
    let mut fresh = Rig::plain();
    fresh.outb(0x70, 0x0f);
    fresh.outb(0x71, 0x05);
    fresh.board.reset();
    fresh.outb(0x70, 0x0f);
    assert_eq!(fresh.save(), r.save());
}
