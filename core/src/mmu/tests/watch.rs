//! Debugger watchpoints and the guest's data breakpoints.

use super::*;
use crate::addr::Gva;
use crate::engine::hooks::{Watch, WatchAddr, WatchKind};

fn rig() -> Rig {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.map(0x50_0000, 0x20_0000 | P | W);
    r.map(0x40_1000, 0x21_0000 | P | W);
    r.write(0x40_0000, 0u64).unwrap();
    r.write(0x50_0000, 0u64).unwrap();
    r
}

/// The watch hit by the last access, and whether the block was ended for it.
fn hit(r: &mut Rig) -> Option<(u64, bool)> {
    let ended = std::mem::replace(&mut r.sys.limit, u64::MAX) == 0;
    let h = r.sys.mmu.take_watch_hit(&mut r.sys.mem)?;
    assert!(ended);
    Some((h.gva.0, h.write))
}

fn watch(r: &mut Rig, addr: WatchAddr, len: u64, kind: WatchKind) {
    r.sys.mmu.set_watches(&mut r.sys.mem, &[Watch { addr, len, kind }]);
}

#[test]
fn virtual_watch_sees_its_bytes_only() {
    let mut r = rig();
    watch(&mut r, WatchAddr::Virtual(Gva(0x40_0010)), 4, WatchKind::Write);
    for _ in 0..2 {
        r.write(0x40_000c, 1u32).unwrap();
        assert_eq!(hit(&mut r), None);
        r.write(0x40_000c, 1u64).unwrap();
        assert_eq!(hit(&mut r), Some((0x40_000c, true)));
        r.write(0x40_0013, 1u8).unwrap();
        assert_eq!(hit(&mut r), Some((0x40_0013, true)));
        r.read::<u32>(0x40_0010).unwrap();
        assert_eq!(hit(&mut r), None);
        // Another mapping of the same bytes.
        r.write(0x50_0010, 1u32).unwrap();
        assert_eq!(hit(&mut r), None);
    }
    r.sys.mmu.set_watches(&mut r.sys.mem, &[]);
    r.write(0x40_0010, 1u32).unwrap();
    assert_eq!(hit(&mut r), None);
}

#[test]
fn read_and_access_watches() {
    let mut r = rig();
    watch(&mut r, WatchAddr::Virtual(Gva(0x40_0010)), 8, WatchKind::Read);
    r.read::<u8>(0x40_0011).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_0011, false)));
    r.write(0x40_0010, 1u32).unwrap();
    assert_eq!(hit(&mut r), None);
    watch(&mut r, WatchAddr::Virtual(Gva(0x40_0010)), 8, WatchKind::Access);
    r.read::<u8>(0x40_0011).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_0011, false)));
    r.write(0x40_0010, 1u32).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_0010, true)));
}

#[test]
fn physical_watch_sees_every_mapping_and_devices() {
    let mut r = rig();
    watch(&mut r, WatchAddr::Physical(Gpa(0x20_0100)), 8, WatchKind::Write);
    r.write(0x50_0104, 1u8).unwrap();
    assert_eq!(hit(&mut r), Some((0x50_0104, true)));
    r.write(0x40_00ff, 1u16).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_00ff, true)));
    r.write(0x40_00f8, 1u64).unwrap();
    assert_eq!(hit(&mut r), None);
    r.sys.mem.write_phys(Gpa(0x20_00f0), &[0; 64]);
    let h = r.sys.mmu.take_watch_hit(&mut r.sys.mem).unwrap();
    assert_eq!((h.gva.0, h.write), (0x20_00f0, true));
}

#[test]
fn straddling_access_hits_on_its_second_page() {
    let mut r = rig();
    watch(&mut r, WatchAddr::Physical(Gpa(0x21_0000)), 1, WatchKind::Write);
    r.write(0x40_0ffd, 1u32).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_1000, true)));
}

#[test]
fn rmw_and_bulk_do_not_escape_a_watch() {
    let mut r = rig();
    watch(&mut r, WatchAddr::Virtual(Gva(0x40_0800)), 1, WatchKind::Read);
    assert!(r.ctx().bulk_page(0x40_0000, Access::Read, Privilege::Current).is_none());
    r.ctx().load_rmw::<u8>(3, 0x40_0800).unwrap();
    assert_eq!(hit(&mut r), Some((0x40_0800, false)));
}

#[test]
fn data_breakpoints_collect_dr6_bits() {
    let mut r = rig();
    r.cpu.dr = [0x40_0020, 0x40_0040, 0x40_0060, 0x40_0083];
    // DR0: write, 4 bytes; DR1: read/write, 8 bytes; DR2: disabled; DR3: write, 2 bytes (aligned down), global.
    r.cpu.dr7 = 0x400 | 1 | 1 << 2 | 2 << 6 | 0xd << 16 | 0xb << 20 | 0xd << 24 | 0x5 << 28;
    r.ctx().refresh_debug_regs();
    let mut take = |at: u64, write: bool| {
        if write {
            r.write(at, 0u8).unwrap()
        } else {
            r.read::<u8>(at).map(drop).unwrap()
        }
        std::mem::take(&mut r.cpu.pending_db)
    };
    for _ in 0..2 {
        assert_eq!(take(0x40_0023, true), 1);
        assert_eq!(take(0x40_0023, false), 0);
        assert_eq!(take(0x40_0024, true), 0);
        assert_eq!(take(0x40_0047, false), 2);
        assert_eq!(take(0x40_0040, true), 2);
        assert_eq!(take(0x40_0060, true), 0);
        assert_eq!(take(0x40_0082, true), 8);
        assert_eq!(take(0x40_0084, true), 0);
    }
    r.cpu.dr7 = 0x400;
    r.ctx().refresh_debug_regs();
    r.write(0x40_0020, 0u64).unwrap();
    assert_eq!(r.cpu.pending_db, 0);
}
