//! The TLB and the shadow tables never show anything but what guest memory says now.

use super::*;
use crate::mem::{Written, page};
use crate::mmu::asid::ASIDS;
use crate::mmu::shadow::MAX_NODES;

fn data(r: &mut Rig, gpa: u64, v: u64) {
    assert!(r.sys.mem.write_phys(Gpa(gpa), &v.to_le_bytes()));
}

fn flags(r: &Rig, gpa: u64) -> u8 {
    r.sys.mem.flags[(gpa >> 12) as usize]
}

#[test]
fn pte_store_through_an_alias_is_seen_at_once() {
    for f in PAGED {
        let mut r = Rig::new(f);
        data(&mut r, 0x20_0000, 0x1111);
        data(&mut r, 0x30_0000, 0x2222);
        let pt = r.map(0x40_0000, 0x20_0000 | P | W);
        r.map(0x50_0000, pt & !0xfff | P | W);
        let alias = 0x50_0000 + (pt & 0xfff);
        for _ in 0..3 {
            assert_eq!(r.read::<u32>(0x40_0000).unwrap(), 0x1111);
            r.write(alias, 0x30_0003u32).unwrap();
            assert_eq!(r.read::<u32>(0x40_0000).unwrap(), 0x2222, "{f:?}");
            assert_eq!(r.fetch(0x40_0000).unwrap(), 0x30_0000);
            r.write(alias, 0x20_0003u32).unwrap();
        }
        r.write(alias, 0u32).unwrap();
        assert_eq!(r.error(0x40_0000, Access::Read), Some(0));
        // Rights too, by a one-byte store.
        r.write(alias, 0x20_0003u32).unwrap();
        r.write(0x40_0000, 1u8).unwrap();
        r.write(alias, 1u8).unwrap();
        assert_eq!(r.error(0x40_0000, Access::Write), Some(3));
    }
}

#[test]
fn dma_to_a_table_is_seen_at_once_at_every_level() {
    for f in PAGED {
        for level in 1..=f.top() {
            let mut r = Rig::new(f);
            r.map(0x40_0000, 0x20_0000 | P | W);
            r.write(0x40_0000, 1u8).unwrap();
            let at = r.entry_at(0x40_0000, level);
            let e = r.peek(at);
            r.poke(at, 0);
            assert_eq!(r.error(0x40_0000, Access::Write), Some(2), "{f:?} {level}");
            r.poke(at, e);
            assert_eq!(r.error(0x40_0000, Access::Write), None);
        }
    }
}

#[test]
fn large_page_and_table_replace_each_other() {
    for f in [Format::LegacyPse, Format::Pae, Format::Long] {
        let mut r = Rig::new(f);
        data(&mut r, 0x20_5000, 1);
        data(&mut r, 0x40_5000, 2);
        r.map(0x40_5000, 0x20_5000 | P | W);
        assert_eq!(r.read::<u8>(0x40_5000).unwrap(), 1);
        let pd = r.entry_at(0x40_5000, 2);
        let table = r.peek(pd);
        r.poke(pd, 0x40_0000 | P | W | PS);
        assert_eq!(r.read::<u8>(0x40_5000).unwrap(), 2);
        assert_eq!(r.read::<u8>(0x40_5001).unwrap(), 0);
        r.poke(pd, table);
        assert_eq!(r.read::<u8>(0x40_5000).unwrap(), 1);
    }
}

#[test]
fn cleared_accessed_and_dirty_bits_are_set_again() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W);
    for _ in 0..3 {
        r.write(0x40_0000, 1u8).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A | D);
        r.poke(pt, 0x20_0000 | P | W | A);
        r.read::<u8>(0x40_0000).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A);
        r.write(0x40_0000, 1u8).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A | D);
        r.poke(pt, 0x20_0000 | P | W);
        r.fetch(0x40_0000).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A);
    }
    let upper = r.entry_at(0x40_0000, 3);
    let e = r.peek(upper);
    r.poke(upper, e & !A);
    r.read::<u8>(0x40_0000).unwrap();
    assert_eq!(r.peek(upper) & A, A);
}

#[test]
fn recursive_tables_can_be_edited_through_themselves() {
    let mut r = Rig::new(Format::Long);
    r.poke(ROOT + 8 * 510, ROOT | P | W);
    let lin = 0x1234_5000u64;
    r.map(lin, 0x20_0000 | P | W);
    data(&mut r, 0x20_0000, 0xaa);
    data(&mut r, 0x30_0000, 0xbb);
    // The page-table window: PML4 slot 510 makes level n appear one level lower.
    let window = 0xffff_0000_0000_0000 | 510 << 39;
    let pte = window | lin >> 12 << 3;
    let pde = window | 510 << 30 | lin >> 21 << 3;
    for _ in 0..3 {
        assert_eq!(r.read::<u8>(lin).unwrap(), 0xaa);
        assert_eq!(r.read::<u64>(pte).unwrap() & !(A | D), 0x20_0000 | P | W);
        r.write(pte, 0x30_0000 | P | W).unwrap();
        assert_eq!(r.read::<u8>(lin).unwrap(), 0xbb);
        r.write(pte, 0x20_0000 | P | W).unwrap();
    }
    // Unlinking the page table makes both the page and its own window go.
    let old = r.read::<u64>(pde).unwrap();
    r.write(pde, 0u64).unwrap();
    assert_eq!(r.error(lin, Access::Read), Some(0));
    assert_eq!(r.error(pte, Access::Read), Some(0));
    r.write(pde, old).unwrap();
    assert_eq!(r.read::<u8>(lin).unwrap(), 0xaa);
    // Removing the recursive slot through itself removes the window.
    let own = window | 510 << 30 | 510 << 21 | 510 << 12 | 510 << 3;
    r.write(own, 0u64).unwrap();
    assert_eq!(r.error(pte, Access::Read), Some(0));
    assert_eq!(r.read::<u8>(lin).unwrap(), 0xaa);
}

#[test]
fn a_table_full_of_itself_is_handled() {
    let mut r = Rig::new(Format::Long);
    for i in 0..512 {
        r.poke(ROOT + 8 * i, ROOT | P | W | A | D);
    }
    let lin = |a: u64, b: u64, c: u64, d: u64| a << 39 | b << 30 | c << 21 | d << 12;
    for i in 0..40 {
        assert_eq!(r.read::<u64>(lin(i, i + 1, i + 2, i + 3)).unwrap() & !0xfff, ROOT);
    }
    r.write(lin(1, 2, 3, 4) + 8 * 7, 0u64).unwrap();
    assert!(r.error(lin(7, 1, 1, 1), Access::Read).is_some());
    assert!(r.error(lin(1, 1, 1, 7), Access::Read).is_some());
    assert_eq!(r.error(lin(1, 2, 3, 4), Access::Read), None);
}

/// A second root that shares everything from PML4 slot 256 on with the first.
fn second_space(r: &mut Rig) -> u64 {
    let root = 0xf0_0000;
    for i in 256..512 {
        let e = r.peek(ROOT + 8 * i);
        r.poke(root + 8 * i, e);
    }
    root
}

fn switch_to(r: &mut Rig, root: u64) {
    r.cpu.cr3 = root;
    r.ctx().mmu_switch();
}

#[test]
fn kernel_halves_are_shared_and_coherent() {
    let mut r = Rig::new(Format::Long);
    let kernel = 0xffff_8000_0040_0000;
    let pt = r.map(kernel, 0x20_0000 | P | W);
    r.map(0x40_0000, 0x21_0000 | P | W);
    let root = second_space(&mut r);
    data(&mut r, 0x20_0000, 1);
    data(&mut r, 0x30_0000, 2);
    assert_eq!(r.read::<u8>(kernel).unwrap(), 1);
    assert_eq!(r.read::<u8>(0x40_0000).unwrap(), 0);
    let (nodes, walks) = (r.sys.mmu.shadow().len(), r.sys.mmu.counters.walks);
    switch_to(&mut r, root);
    assert_eq!(r.read::<u8>(kernel).unwrap(), 1);
    assert_eq!(r.sys.mmu.shadow().len(), nodes + 1, "only the root is new");
    assert_eq!(r.error(0x40_0000, Access::Read), Some(0));
    r.poke(pt, 0x30_0000 | P | W);
    assert_eq!(r.read::<u8>(kernel).unwrap(), 2);
    switch_to(&mut r, ROOT);
    assert_eq!(r.read::<u8>(kernel).unwrap(), 2);
    let walks_before = r.sys.mmu.counters.walks;
    assert!(walks_before > walks);
    // Going back and forth needs no walk and no miss.
    let misses = r.sys.mmu.counters.misses;
    for _ in 0..10 {
        switch_to(&mut r, root);
        assert_eq!(r.read::<u8>(kernel).unwrap(), 2);
        switch_to(&mut r, ROOT);
        assert_eq!(r.read::<u8>(kernel).unwrap(), 2);
    }
    assert_eq!(r.sys.mmu.counters.walks, walks_before);
    assert_eq!(r.sys.mmu.counters.misses, misses);
}

#[test]
fn tlb_misses_are_filled_from_shadows() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.read::<u8>(0x40_0000).unwrap();
    let walks = r.sys.mmu.counters.walks;
    r.sys.mem.tlb.flush();
    r.read::<u8>(0x40_0000).unwrap();
    assert_eq!(r.sys.mmu.counters.walks, walks);
    assert!(r.sys.mmu.counters.shadow_hits > 0);
    let asid = r.sys.mmu.asids(&r.sys.mem)[0].asid;
    let path = r.sys.mmu.shadow_walk(asid, crate::addr::Gva(0x40_0000));
    assert_eq!(path.iter().map(|s| s.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert!(path.iter().all(|s| s.entry.is_some()));
}

#[test]
fn a_table_written_like_data_is_untraced() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W) & !0xfff;
    r.map(0x50_0000, pt | P | W);
    r.read::<u8>(0x40_0000).unwrap();
    assert_ne!(flags(&r, pt) & page::TABLE, 0);
    // 0x50_0000 is mapped by the same table, so unlink both and reuse the page through another table.
    let other = 0x8000_0000u64;
    r.map(other, pt | P | W);
    r.read::<u8>(other).unwrap();
    for i in 0..512u64 {
        r.write(other + 8 * i, i).unwrap();
    }
    assert_eq!(flags(&r, pt) & page::TABLE, 0);
    let traced = r.sys.mmu.shadow().counters.traced_writes;
    assert!(traced < 64, "{traced}");
    for i in 0..512u64 {
        assert_eq!(r.read::<u64>(other + 8 * i).unwrap(), i);
    }
    assert!(r.error(0x40_0000, Access::Read).is_some());
}

#[test]
fn dropping_a_table_drops_what_it_mapped() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W) & !0xfff;
    // The alias is mapped by another table.
    r.map(0x8000_0000, pt | P | W);
    for (wide, writes) in [(false, 100u64), (true, 1)] {
        r.write(0x40_0000, 1u8).unwrap();
        r.fetch(0x40_0000).unwrap();
        for i in 0..writes {
            match wide {
                true => r.write(0x8000_0f00, 0u128).unwrap(),
                false => r.write(0x8000_0800 + 8 * (i % 64), 0u64).unwrap(),
            }
        }
        assert_eq!(flags(&r, pt) & page::TABLE, 0);
        r.write(0x8000_0000, 0x30_0000 | P | W).unwrap();
        assert_eq!(r.fetch(0x40_0000).unwrap(), 0x30_0000, "{wide}");
        r.write(0x8000_0000, 0x20_0000 | P | W).unwrap();
        assert_eq!(r.fetch(0x40_0000).unwrap(), 0x20_0000);
    }
}

#[test]
fn evicted_tables_leave_no_entries_behind() {
    let mut r = Rig::with_memory(Format::Long, 64 << 20);
    let pt = r.map(0x7f00_0000_0000, 0x20_0000 | P | W);
    r.map(0x7f80_0000_1000, pt & !0xfff | P | W);
    let alias = 0x7f80_0000_1000 + (pt & 0xfff);
    let others: Vec<u64> = (2..MAX_NODES as u64 + 700).map(|i| i << 21 | 5 << 12).collect();
    for lin in &others {
        r.map(*lin, 0x20_5000 | P | W);
    }
    // Hot in the TLB, cold in the shadow tables.
    r.read::<u8>(0x7f00_0000_0000).unwrap();
    r.write(alias + 8, 0u8).unwrap();
    for lin in others {
        r.read::<u8>(lin).unwrap();
        r.read::<u8>(0x7f00_0000_0000).unwrap();
    }
    assert!(r.sys.mmu.shadow().counters.evicted > 0);
    r.write(alias, 0x30_0000 | P | W).unwrap();
    assert_eq!(r.fetch(0x7f00_0000_0000).unwrap(), 0x30_0000);
    assert_eq!(r.read::<u8>(0x7f00_0000_0000).unwrap(), 0);
    assert_eq!(
        r.ctx().bulk_page(0x7f00_0000_0000, Access::Read, Privilege::Current).map(|w| w.0),
        Some(0x30_0000)
    );
}

#[test]
fn an_unlinked_table_is_untraced() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W) & !0xfff;
    r.read::<u8>(0x40_0000).unwrap();
    assert_ne!(flags(&r, pt) & page::TABLE, 0);
    let pd = r.entry_at(0x40_0000, 2);
    r.poke(pd, 0);
    assert_eq!(r.error(0x40_0000, Access::Read), Some(0));
    assert_eq!(flags(&r, pt) & page::TABLE, 0);
}

#[test]
fn address_spaces_are_recycled_under_pressure() {
    let mut r = Rig::new(Format::Long);
    let spaces = 3 * ASIDS as u64;
    // Each space: root and three tables of its own at 2 MiB + n * 16 KiB, one data page.
    let base = |n: u64| 0x20_0000 + n * 0x5000;
    for n in 0..spaces {
        let b = base(n);
        for (i, t) in [b, b + 0x1000, b + 0x2000, b + 0x3000].into_iter().enumerate() {
            data(&mut r, t, (t + 0x1000) | P | W | if i == 3 { 0 } else { U });
        }
        data(&mut r, b + 0x4000, n);
    }
    for round in 0..4 {
        for n in 0..spaces {
            let n = if round % 2 == 0 { n } else { n * 7 % spaces };
            switch_to(&mut r, base(n));
            assert_eq!(r.read::<u64>(0).unwrap(), n);
            r.write(8, n + round).unwrap();
        }
    }
    assert!(r.sys.mmu.counters.recycled >= spaces);
    assert!(r.sys.mmu.asids(&r.sys.mem).len() < ASIDS);
    for n in 0..spaces {
        // Recycled spaces leave no trace on their tables.
        switch_to(&mut r, base(n));
        assert_eq!(r.read::<u64>(0).unwrap(), n);
    }
    assert!(r.sys.mmu.shadow().len() <= 4 * ASIDS);
}

/// Makes `n` address spaces with roots of their own that all map linear 0 to a word holding `v`; their table pages
/// have odd numbers.
fn crowd(r: &mut Rig, n: u64, v: u64) -> Vec<u64> {
    let t = 0x70_0000;
    data(r, t, (t + 0x1000) | P | W);
    data(r, t + 0x1000, (t + 0x2000) | P | W);
    data(r, t + 0x2000, (t + 0x3000) | P | W);
    data(r, t + 0x3000, v);
    let roots: Vec<u64> = (0..n).map(|i| 0x80_1000 + i * 0x2000).collect();
    roots.iter().for_each(|root| data(r, *root, t | P | W));
    roots
}

#[test]
fn a_vcpu_keeps_its_space_while_another_recycles() {
    let mut r = Rig::new(Format::Long);
    r.map(0, 0x20_0000 | P | W);
    data(&mut r, 0x20_0000, 42);
    assert_eq!(r.read::<u64>(0).unwrap(), 42);
    let mut other = r.cpu.clone();
    other.index = 1;
    for root in crowd(&mut r, 2 * ASIDS as u64, 7) {
        other.cr3 = root;
        let mut c = Ctx { cpu: &mut other, sys: &mut r.sys };
        c.mmu_switch();
        assert_eq!(c.load::<u64>(3, 0).unwrap(), 7);
        assert_eq!(r.read::<u64>(0).unwrap(), 42);
    }
}

#[test]
fn a_remembered_space_that_was_recycled_is_not_reused() {
    let mut r = Rig::new(Format::Long);
    r.map(0, 0x20_0000 | P | W);
    data(&mut r, 0x20_0000, 42);
    assert_eq!(r.read::<u64>(0).unwrap(), 42);
    // Odd table pages do not displace the even one of ROOT from what the vCPU remembers.
    for root in crowd(&mut r, 2 * ASIDS as u64, 7) {
        switch_to(&mut r, root);
        assert_eq!(r.read::<u64>(0).unwrap(), 7);
    }
    switch_to(&mut r, ROOT);
    assert_eq!(r.read::<u64>(0).unwrap(), 42);
}

#[test]
fn nodes_are_bounded_and_eviction_is_invisible() {
    let mut r = Rig::with_memory(Format::Long, 64 << 20);
    let n = MAX_NODES as u64 + 1000;
    for i in 0..n {
        let lin = i << 21;
        r.map(lin, (0x20_0000 + (i % 16) * 0x1000) | P | W);
        r.write(lin + 8, i as u8).unwrap();
    }
    assert!(r.sys.mmu.shadow().len() <= MAX_NODES);
    assert!(r.sys.mmu.shadow().counters.evicted > 0);
    for i in 0..n {
        assert_eq!(r.fetch(i << 21).unwrap(), 0x20_0000 + (i % 16) * 0x1000);
        let pt = r.entry_at(i << 21, 1);
        r.poke(pt, 0x30_0000 | P);
        assert_eq!(r.fetch(i << 21).unwrap(), 0x30_0000);
    }
}

#[test]
fn take_dirty_reports_each_page_once_per_epoch() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W);
    r.write(0x40_0000, 1u8).unwrap();
    r.sys.mem.take_dirty(Written::ToHash);
    r.write(0x40_0008, 1u8).unwrap();
    assert_eq!(r.sys.mem.take_dirty(Written::ToHash), [0x200]);
    r.read::<u8>(0x40_0008).unwrap();
    assert!(r.sys.mem.take_dirty(Written::ToHash).is_empty());
    for _ in 0..3 {
        r.write(0x40_0010, 1u8).unwrap();
    }
    // The walk's own writes count too.
    r.poke(pt, 0x20_0000 | P | W);
    r.sys.mem.take_dirty(Written::ToHash);
    r.read::<u8>(0x40_0000).unwrap();
    assert_eq!(r.sys.mem.take_dirty(Written::ToHash), [(pt >> 12) as usize]);
}

#[test]
fn stores_to_code_pages_are_reported_each_time() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.write(0x40_0000, 1u8).unwrap();
    r.sys.mem.mark_code(0x200, 0xfe0, 0x20);
    for i in 0..3 {
        r.sys.limit = u64::MAX;
        r.write(0x40_0ffe, 1u16).unwrap();
        assert_eq!(r.sys.limit, 0, "{i}");
        let w: Vec<_> = r.sys.mem.code_writes.drain(..).collect();
        assert_eq!(w, [crate::mem::Traced { gpa: Gpa(0x20_0ffe), len: 2 }]);
    }
    assert!(r.ctx().bulk_page(0x40_0000, Access::Write, Privilege::Current).is_none());
    r.sys.mem.unmark_code(0x200);
    r.sys.limit = u64::MAX;
    r.write(0x40_0000, 1u8).unwrap();
    assert_eq!(r.sys.limit, u64::MAX);
    assert_eq!(r.ctx().bulk_page(0x40_0010, Access::Write, Privilege::Current), Some((0x20_0010, 0xff0)));
}

#[test]
fn exec_epoch_changes_when_a_fetch_translation_does() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W);
    r.fetch(0x40_0000).unwrap();
    let e = r.sys.mem.tlb.epoch();
    r.fetch(0x40_0000).unwrap();
    assert_eq!(r.sys.mem.tlb.epoch(), e);
    r.poke(pt, 0x30_0000 | P | W);
    assert_ne!(r.sys.mem.tlb.epoch(), e);
}

#[test]
fn accessed_bit_that_is_an_address_bit_elsewhere_is_seen() {
    let mut r = Rig::new(Format::Long);
    // The upper half of the 8-byte entry is the second entry of the same page read as a 32-bit table.
    let pt = r.map(0, 0x20_0000 | P | W | (P | W) << 32);
    assert_eq!(r.fetch(0).unwrap(), 0x3_0020_0000);
    let directory = 0x70_0000;
    data(&mut r, directory, pt & !0xfff | P | W);
    r.set_format(Format::Legacy);
    switch_to(&mut r, directory);
    assert_eq!(r.fetch(0x1000).unwrap(), 0);
    r.set_format(Format::Long);
    assert_eq!(r.fetch(0).unwrap(), 0x23_0020_0000);
}

#[test]
fn reset_drops_everything_derived() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.write(0x40_0000, 1u8).unwrap();
    r.sys.mmu.reset(&mut r.sys.mem);
    assert!(r.sys.mem.flags.iter().all(|f| f & page::TABLE == 0));
    // Memory changed behind everybody's back, as a restore does.
    let pt = r.entry_at(0x40_0000, 1);
    r.sys.mem.ram.write(pt as usize, 0x30_0000u64 | P | W);
    r.ctx().mmu_switch();
    assert_eq!(r.fetch(0x40_0000).unwrap(), 0x30_0000);
}
