//! The TLB arrays by themselves: where they lie, which of them an access fills, tokens, and what changes the epoch.

use super::*;
use crate::addr::Asid;
use crate::mem::page;
use crate::mmu::asid::ASIDS;
use crate::mmu::tlb::{ARRAYS, ENTRIES, Entry, FETCH, Fill, Tlb, arrays, token};

const HOST: u64 = 0x7f12_3456_7000;

fn fill(lin: u64, slab: usize, write: bool, exec: bool) -> Fill {
    Fill { lin, gpa: (slab as u64) << 12, slab, read: !exec, write, exec }
}

#[test]
fn test_arrays_never_move_and_follow_each_other() {
    let mut t = Tlb::new(64, HOST);
    let bases: Vec<_> = (0..(ASIDS * ARRAYS) as u32).map(|a| t.base(a)).collect();
    for a in 0..bases.len() as u32 {
        let exec = a & FETCH != 0;
        t.fill(a, fill(0x5000, 1 + a as usize % 60, !exec, exec));
    }
    for (a, base) in bases.iter().enumerate() {
        assert_eq!(t.base(a as u32), *base);
        assert_eq!(*base as usize, bases[0] as usize + a * ENTRIES * size_of::<Entry>());
    }
}

#[test]
fn test_tokens_differ_by_page_and_frame_and_are_never_zero() {
    assert_ne!(token(0, 0), 0);
    let top = (1 << crate::mmu::MAXPHYADDR) - 1;
    let pages = [0, 0x1000, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000];
    let all: std::collections::BTreeSet<u64> =
        pages.iter().flat_map(|lin| [0, 0x1000, 0xffff_f000, top].map(|gpa| token(*lin, gpa))).collect();
    assert_eq!(all.len(), 20);
    assert_eq!(token(0x1234, 0x5678), token(0x1fff, 0x5000));
}

#[test]
fn test_fetch_entry_gives_address_and_place_back() {
    let mut t = Tlb::new(64, HOST);
    assert_eq!(t.exec_hit(8, 0), None);
    for lin in [0, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000u64] {
        t.fill(8 | FETCH, Fill { lin, gpa: 0x7f_ffff_f000, slab: 9, read: false, write: false, exec: true });
        assert_eq!(t.exec_hit(8, lin | 0xabc), Some((0x7f_ffff_fabc, 0x9abc)), "{lin:#x}");
        // The same 48 bits, but not canonical.
        assert_eq!(t.exec_hit(8, lin ^ 1 << 48), None);
        assert_eq!(t.exec_hit(8, lin ^ 0x1000), None);
        let e = t.entries(8 | FETCH).find(|e| e.page == lin).unwrap();
        assert_eq!((e.gpa, e.read, e.write, e.exec), (0x7f_ffff_f000, false, false, true));
    }
}

#[test]
fn test_a_data_array_holds_no_token_and_a_fetch_array_no_tag() {
    let mut t = Tlb::new(64, HOST);
    let all = Fill { lin: 0x3000, gpa: 0x4000, slab: 4, read: true, write: true, exec: true };
    t.fill(8, all);
    assert_eq!((t.read_hit(8, 0x3010, 4), t.write_hit(8, 0x3010, 4)), (Some(0x4010), Some(0x4010)));
    assert_eq!(t.exec_hit(8, 0x3010), None);
    t.fill(8 | FETCH, all);
    t.clear_array(8);
    assert_eq!((t.read_hit(8, 0x3010, 4), t.write_hit(8, 0x3010, 4)), (None, None));
    assert_eq!(t.read_hit(8 | FETCH, 0x3010, 4), None);
    assert_eq!(t.exec_hit(8, 0x3010), Some((0x4010, 0x4010)));
}

/// What a machine's data array and fetch array of the current view hold.
fn counts(r: &Rig) -> (usize, usize) {
    let n = |a| r.sys.mem.tlb.entries(a).count();
    (n(r.cpu.tlb.0), n(r.cpu.tlb.0 | FETCH))
}

#[test]
fn test_data_and_code_at_conflicting_addresses_stay() {
    let mut r = Rig::new(Format::Long);
    let far = 0x40_0000 + ((ENTRIES as u64) << 12);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.map(far, 0x20_1000 | P | W);
    r.fetch(0x40_0000).unwrap();
    assert_eq!(counts(&r), (0, 1));
    r.write(far, 1u8).unwrap();
    assert_eq!(counts(&r), (1, 1));
    let misses = r.sys.mmu.counters.misses;
    for _ in 0..3 {
        r.fetch(0x40_0000).unwrap();
        r.write(far, 1u8).unwrap();
    }
    assert_eq!(r.sys.mmu.counters.misses, misses);
}

#[test]
fn test_everything_that_clears_covers_both_arrays() {
    type Clear = fn(&mut Rig);
    let clears: [(&str, Clear); 6] = [
        ("drop_linear", |r| r.sys.mem.tlb.drop_linear(0x40_0123)),
        ("clear_range", |r| {
            for a in arrays(Asid((r.cpu.tlb.0 >> 3) as u16)) {
                r.sys.mem.tlb.clear_range(a, 0x3f_f000, 2);
            }
        }),
        ("drop_page", |r| r.sys.mem.tlb.drop_page(0x200)),
        ("flush", |r| r.sys.mem.tlb.flush()),
        ("page-table write", |r| {
            let pt = r.entry_at(0x40_0000, 1);
            r.map(0x9000, pt & !0xfff | P | W);
            r.write(0x9000 | pt & 0xfff, 0u64).unwrap();
            // That write's own entry is not the matter here.
            r.sys.mem.tlb.drop_linear(0x9000);
        }),
        ("reset", |r| r.sys.mmu.reset(&mut r.sys.mem)),
    ];
    for (name, clear) in clears {
        let mut r = Rig::new(Format::Long);
        r.map(0x40_0000, 0x20_0000 | P | W);
        r.write(0x40_0000, 1u8).unwrap();
        r.fetch(0x40_0000).unwrap();
        assert_eq!(counts(&r), (1, 1));
        let epoch = r.sys.mem.tlb.epoch();
        clear(&mut r);
        assert_eq!(counts(&r), (0, 0), "{name}");
        assert_ne!(r.sys.mem.tlb.epoch(), epoch, "{name}");
    }
}

#[test]
fn test_replacing_an_entry_keeps_the_epoch_but_what_it_was_good_for_is_remembered() {
    let mut t = Tlb::new(64, HOST);
    let far = (ENTRIES as u64) << 12;
    t.fill(8, fill(0x1000, 1, true, false));
    t.fill(8, fill(0x1000 + far, 2, false, false));
    assert_eq!(t.epoch(), 0);
    // Page 1 has no entry left, but somebody may have checked a write to it.
    t.drop_write(1);
    assert_eq!(t.epoch(), 1);
    // Nobody can have since.
    t.drop_write(1);
    t.drop_write(2);
    assert_eq!(t.epoch(), 1);
    // Translations are revoked whether or not they have entries.
    t.clear_range(8, 0x7000, 1);
    assert_eq!(t.epoch(), 2);
    t.clear_range(9, 0x7000, 1);
    assert_eq!(t.epoch(), 3);
    t.drop_linear(0x9000);
    assert_eq!(t.epoch(), 4);
    t.drop_all_writes();
    assert_eq!(t.epoch(), 5);
}

#[test]
fn test_write_that_revokes_a_translation_ends_the_block() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W);
    r.map(0x9000, pt & !0xfff | P | W);
    let entry = 0x9000 | pt & 0xfff;
    r.write(entry, 0x20_0000u64 | P | W).unwrap();
    r.fetch(0x40_0000).unwrap();
    for (at, ends) in [(entry + 0x100, false), (entry, true), (entry, false)] {
        r.sys.limit = u64::MAX;
        let epoch = r.sys.mem.tlb.epoch();
        r.write(at, 0x30_0000u64 | P | W).unwrap();
        // An entry no translation came from is as good as plain memory.
        assert_eq!((r.sys.limit == 0, r.sys.mem.tlb.epoch() != epoch), (ends, ends), "{at:#x}");
    }
    assert_eq!(r.fetch(0x40_0000).unwrap(), 0x30_0000);
}

#[test]
fn test_data_beside_code_neither_ends_the_block_nor_is_reported() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.write(0x40_0000, 1u8).unwrap();
    r.sys.mem.mark_code(0x200, 0x100, 0x40);
    r.sys.mem.mark_code(0x200, 0x800, 1);
    let hit = |r: &mut Rig, at: u64| {
        r.sys.limit = u64::MAX;
        r.write(at, 1u32).unwrap();
        (r.sys.limit == 0, r.sys.mem.code_writes.drain(..).count())
    };
    assert_eq!(hit(&mut r, 0x40_0200), (false, 0));
    assert_eq!(hit(&mut r, 0x40_00fc), (false, 0));
    assert_eq!(hit(&mut r, 0x40_00fd), (true, 1));
    assert_eq!(hit(&mut r, 0x40_013c), (true, 1));
    r.sys.mem.unmark_code(0x200);
    assert_eq!(hit(&mut r, 0x40_0800), (true, 1));
    r.sys.mem.unmark_code(0x200);
    assert_eq!(r.sys.mem.flags[0x200] & page::CODE, 0);
    assert_eq!(hit(&mut r, 0x40_0800), (false, 0));
    // The page is plain again, so the last store left a write entry.
    assert!(r.sys.mem.tlb.write_hit(r.cpu.tlb.0, 0x40_0800, 4).is_some());
}

#[test]
fn test_empty_entries_allow_nothing() {
    /// The first page that shares an entry with page 0.
    const FAR: u64 = (ENTRIES as u64) << 12;
    let mut t = Tlb::new(64, HOST);
    let probe = |t: &Tlb| {
        for lin in [0u64, 1, 0xfff, 0x1000, 0x1fff, 0x3ff000, FAR, 1 << 63, u64::MAX - 0xfff, u64::MAX] {
            for size in [1, 2, 4, 8, 16] {
                assert_eq!(
                    (t.read_hit(8, lin, size), t.write_hit(8, lin, size)),
                    (None, None),
                    "{lin:#x} {size}"
                );
            }
        }
    };
    probe(&t);
    for lin in [0, 0x1000, FAR] {
        t.fill(8, Fill { lin, gpa: 0x5000, slab: 5, read: true, write: true, exec: false });
        assert_eq!(t.read_hit(8, lin + 0xffc, 4), Some(0x5ffc), "{lin:#x}");
        assert_eq!(t.read_hit(8, lin + 0xffd, 4), None, "straddles");
        assert_eq!(t.entries(8).count(), 1 + usize::from(lin != 0), "{lin:#x}");
    }
    t.drop_write(5);
    assert_eq!((t.read_hit(8, 0x1004, 4), t.write_hit(8, 0x1004, 4)), (Some(0x5004), None));
    t.clear_array(8);
    probe(&t);
}
