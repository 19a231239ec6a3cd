//! Expectations from the SDM, chapter 10.

use super::*;

const T0: GuestTime = GuestTime(0);

fn enabled(index: u8) -> Lapic {
    let mut a = Lapic::new(index);
    a.mmio_write(reg::SVR, 0x1ff, T0);
    a
}

fn x2(index: u8) -> Lapic {
    let mut a = Lapic::new(index);
    a.set_base(0xfee0_0c00);
    a.x2apic_write(reg::SVR, 0x1ff, T0);
    a
}

#[test]
fn lapic_power_on_state() {
    let mut a = Lapic::new(3);
    assert_eq!(a.mmio_read(reg::ID, T0), 3 << 24);
    assert_eq!(a.mmio_read(reg::VERSION, T0) & 0xff, 0x14);
    assert_eq!(a.mmio_read(reg::SVR, T0), 0xff);
    assert_eq!(a.mmio_read(reg::DFR, T0), u32::MAX);
    assert!((reg::LVT_TIMER..=reg::LVT_ERROR).all(|r| a.mmio_read(r, T0) == 0x1_0000));
}

#[test]
fn lapic_priorities_nest_by_class() {
    let mut a = enabled(0);
    a.accept(0x41, false);
    assert_eq!(a.acknowledge(), 0x41);
    a.accept(0x4f, false);
    assert_eq!(a.pending(), None, "same class waits");
    a.accept(0x50, false);
    assert_eq!(a.acknowledge(), 0x50);
    assert_eq!(a.ppr(), 0x50);
    assert_eq!(a.eoi(), Effect::None);
    assert_eq!(a.ppr(), 0x40);
    a.eoi();
    assert_eq!(a.pending(), Some(0x4f));
}

#[test]
fn lapic_task_priority_holds_back_its_class() {
    let mut a = enabled(0);
    a.accept(0x35, false);
    a.set_cr8(3);
    assert_eq!(a.pending(), None);
    assert_eq!(a.mmio_read(reg::TPR, T0), 0x30);
    a.set_cr8(2);
    assert_eq!(a.pending(), Some(0x35));
}

#[test]
fn lapic_eoi_of_level_interrupt_is_broadcast() {
    let mut a = enabled(0);
    a.accept(0x61, true);
    assert_eq!(a.mmio_read(reg::TMR + 3, T0), 2);
    a.acknowledge();
    assert_eq!(a.mmio_write(reg::EOI, 0, T0), Effect::Eoi(0x61));
    assert_eq!(a.mmio_write(reg::EOI, 0, T0), Effect::None, "nothing in service");
}

#[test]
fn lapic_spurious_vector_without_a_request() {
    let mut a = enabled(0);
    assert_eq!(a.acknowledge(), 0xff);
    assert_eq!(a.mmio_read(reg::ISR + 7, T0), 0);
}

#[test]
fn lapic_software_disable_masks_lvts_and_refuses_interrupts() {
    let mut a = enabled(1);
    a.mmio_write(reg::LVT_TIMER, 0x30, T0);
    a.mmio_write(reg::SVR, 0xff, T0);
    assert_eq!(a.mmio_read(reg::LVT_TIMER, T0), 0x1_0030);
    a.mmio_write(reg::LVT_TIMER, 0x30, T0);
    assert_eq!(a.mmio_read(reg::LVT_TIMER, T0), 0x1_0030, "cannot be unmasked");
    assert!(!a.accept(0x55, false));
}

#[test]
fn lapic_global_disable_and_enable_again() {
    let mut a = enabled(0);
    a.accept(0x55, false);
    a.set_base(0xfee0_0000);
    assert_eq!(a.mode(), ApicMode::Disabled);
    assert_eq!(a.pending(), None);
    assert!(a.accepts_extint(), "INTR goes straight to the processor");
    a.set_base(0xfee0_0800);
    assert_eq!(a.mmio_read(reg::SVR, T0), 0xff);
    assert!(!a.accepts_extint(), "LINT0 is masked again");
    a.mmio_write(reg::LVT_TIMER + 3, 0x700, T0);
    a.mmio_write(reg::SVR, 0x1ff, T0);
    a.mmio_write(reg::LVT_TIMER + 3, 0x700, T0);
    assert!(a.accepts_extint());
}

#[test]
fn lapic_one_shot_timer_deadline_is_exact() {
    let mut a = enabled(0);
    a.mmio_write(reg::DIVIDE, 0x3, T0); // by 16
    a.mmio_write(reg::LVT_TIMER, 0x40, T0);
    a.mmio_write(reg::INITIAL_COUNT, 1000, GuestTime(500));
    assert_eq!(a.deadline(), Some(GuestTime(16_500)));
    assert_eq!(a.mmio_read(reg::CURRENT_COUNT, GuestTime(500)), 1000);
    assert_eq!(a.mmio_read(reg::CURRENT_COUNT, GuestTime(500 + 16)), 999);
    a.expire(GuestTime(16_499));
    assert_eq!(a.pending(), None);
    a.expire(GuestTime(16_500));
    assert_eq!(a.pending(), Some(0x40));
    assert_eq!((a.deadline(), a.mmio_read(reg::CURRENT_COUNT, GuestTime(20_000))), (None, 0));
}

#[test]
fn lapic_divide_configurations() {
    let by = [(0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xa, 128), (0xb, 1)];
    for (code, divisor) in by {
        let mut a = enabled(0);
        a.mmio_write(reg::LVT_TIMER, 0x40, T0);
        a.mmio_write(reg::DIVIDE, code, T0);
        a.mmio_write(reg::INITIAL_COUNT, 10, T0);
        assert_eq!(a.deadline(), Some(GuestTime(10 * divisor)), "code {code:#x}");
    }
}

#[test]
fn lapic_periodic_timer_reloads_and_coalesces() {
    let mut a = enabled(0);
    a.mmio_write(reg::DIVIDE, 0xb, T0);
    a.mmio_write(reg::LVT_TIMER, 0x2_0040, T0);
    a.mmio_write(reg::INITIAL_COUNT, 100, T0);
    a.expire(GuestTime(100));
    assert_eq!(a.deadline(), Some(GuestTime(200)));
    a.expire(GuestTime(555));
    assert_eq!(a.deadline(), Some(GuestTime(600)), "phase is kept");
    assert_eq!(a.mmio_read(reg::CURRENT_COUNT, GuestTime(560)), 40);
    assert_eq!(a.acknowledge(), 0x40);
    assert_eq!(a.pending(), None);
}

#[test]
fn lapic_masked_timer_counts_silently() {
    let mut a = enabled(0);
    a.mmio_write(reg::DIVIDE, 0xb, T0);
    a.mmio_write(reg::LVT_TIMER, 0x3_0040, T0);
    a.mmio_write(reg::INITIAL_COUNT, 100, T0);
    assert_eq!(a.deadline(), None);
    assert_eq!(a.mmio_read(reg::CURRENT_COUNT, GuestTime(130)), 70);
    a.mmio_write(reg::LVT_TIMER, 0x2_0040, GuestTime(130));
    assert_eq!(a.deadline(), Some(GuestTime(200)));
}

#[test]
fn lapic_tsc_deadline_fires_once_and_disarms() {
    let mut a = enabled(0);
    a.set_tsc_deadline(5000, GuestTime(5000));
    assert_eq!(a.tsc_deadline(), 0, "ignored outside its mode");
    a.mmio_write(reg::LVT_TIMER, 0x4_0040, T0);
    a.set_tsc_deadline(5000, GuestTime(4990));
    assert_eq!((a.tsc_deadline(), a.deadline()), (5000, Some(GuestTime(4990))));
    a.mmio_write(reg::INITIAL_COUNT, 7, T0);
    assert_eq!(a.mmio_read(reg::CURRENT_COUNT, T0), 0);
    a.expire(GuestTime(4990));
    assert_eq!((a.tsc_deadline(), a.deadline(), a.pending()), (0, None, Some(0x40)));
    a.set_tsc_deadline(9000, GuestTime(9000));
    a.set_tsc_deadline(0, GuestTime(0));
    assert_eq!(a.deadline(), None);
}

#[test]
fn lapic_leaving_tsc_deadline_mode_disarms() {
    let mut a = enabled(0);
    a.mmio_write(reg::LVT_TIMER, 0x4_0040, T0);
    a.set_tsc_deadline(5000, GuestTime(5000));
    a.mmio_write(reg::LVT_TIMER, 0x40, T0);
    assert_eq!(a.deadline(), None);
}

#[test]
fn lapic_icr_writes_decode() {
    let mut a = enabled(0);
    a.mmio_write(reg::ICR_HIGH, 0x0200_0000, T0);
    let Effect::Ipi(i) = a.mmio_write(reg::ICR, 0x000c_4500, T0) else { panic!("no command") };
    assert_eq!((i.mode, i.shorthand, i.dest, i.deassert), (5, 3, 2, false));
    assert_eq!(a.mmio_read(reg::ICR, T0) & 0x1000, 0, "delivery is never pending");
    let Effect::Ipi(i) = a.mmio_write(reg::ICR, 0x0000_8500, T0) else { panic!("no command") };
    assert!(i.deassert);
}

#[test]
fn lapic_illegal_vectors_are_errors() {
    let mut a = enabled(0);
    assert_eq!(a.mmio_write(reg::ICR, 0x0f, T0), Effect::None);
    a.accept(0x0f, false);
    a.mmio_read(0x3a, T0);
    assert_eq!(a.mmio_read(reg::ESR, T0), 0, "shown after a write only");
    a.mmio_write(reg::ESR, 0, T0);
    assert_eq!(a.mmio_read(reg::ESR, T0), 0xe0);
    a.mmio_write(reg::ESR, 0, T0);
    assert_eq!(a.mmio_read(reg::ESR, T0), 0);
}

#[test]
fn lapic_error_interrupt_is_raised() {
    let mut a = enabled(0);
    a.mmio_write(reg::LVT_ERROR, 0xfe, T0);
    a.mmio_read(0x3a, T0);
    assert_eq!(a.pending(), Some(0xfe));
}

#[test]
fn lapic_logical_destinations() {
    let mut a = enabled(1);
    a.mmio_write(reg::LDR, 0x0200_0000, T0);
    assert!(a.addressed(true, 0x03, 0xff) && !a.addressed(true, 0x05, 0xff));
    a.mmio_write(reg::DFR, 0x0fff_ffff, T0);
    a.mmio_write(reg::LDR, 0x2100_0000, T0);
    assert!(
        a.addressed(true, 0x21, 0xff) && !a.addressed(true, 0x11, 0xff) && !a.addressed(true, 0x22, 0xff)
    );
    assert!(a.addressed(false, 1, 0xff) && !a.addressed(false, 2, 0xff) && a.addressed(false, 0xff, 0xff));
}

#[test]
fn x2apic_registers() {
    let mut a = x2(0x12);
    assert_eq!(a.x2apic_read(reg::ID, T0), Some(0x12));
    assert_eq!(a.x2apic_read(reg::LDR, T0), Some(0x1_0004));
    assert!(a.addressed(true, 0x1_0006, u32::MAX) && !a.addressed(true, 0x2_0004, u32::MAX));
    assert!(a.addressed(false, 0x12, u32::MAX) && !a.addressed(false, 0xff, u32::MAX));
    let Some(Effect::Ipi(i)) = a.x2apic_write(reg::ICR, 0x12_0000_0041, T0) else { panic!("no command") };
    assert_eq!((i.vector, i.dest), (0x41, 0x12));
}

#[test]
fn x2apic_invalid_accesses_fault() {
    let mut a = x2(0);
    for r in [reg::DFR, reg::ICR_HIGH, reg::EOI, reg::SELF_IPI, 0x00, 0x3a] {
        assert_eq!(a.x2apic_read(r, T0), None, "read {r:#x}");
    }
    for (r, v) in
        [(reg::ID, 0), (reg::LDR, 0), (reg::EOI, 1), (reg::ESR, 1), (reg::TPR, 0x100), (reg::ICR, 1 << 12)]
    {
        assert_eq!(a.x2apic_write(r, v, T0), None, "write {r:#x}");
    }
    assert_eq!(enabled(0).x2apic_read(reg::ID, T0), None, "xAPIC mode");
}

#[test]
fn x2apic_self_ipi_is_an_edge_to_self() {
    let mut a = x2(0);
    let Some(Effect::Ipi(i)) = a.x2apic_write(reg::SELF_IPI, 0x77, T0) else { panic!("no command") };
    assert_eq!((i.vector, i.mode, i.shorthand), (0x77, 0, 1));
}

#[test]
fn init_keeps_id_and_mode() {
    let mut a = enabled(0);
    a.mmio_write(reg::ID, 9 << 24, T0);
    a.accept(0x44, false);
    a.init();
    assert_eq!((a.mmio_read(reg::ID, T0), a.pending()), (9 << 24, None));
    assert_eq!(a.mmio_read(reg::LVT_TIMER + 3, T0), 0x1_0000);
}
