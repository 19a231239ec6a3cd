//! Translation, rights and error codes in every paging mode.

use super::*;
use crate::addr::Gva;
use crate::mem::page;
use crate::vcpu::flags::bit;

#[test]
fn unpaged_addresses_are_physical() {
    let mut r = Rig::new(Format::Off);
    r.write(0x1234, 0xdead_beefu32).unwrap();
    let mut b = [0; 4];
    r.sys.mem.read_phys(Gpa(0x1234), &mut b);
    assert_eq!(u32::from_le_bytes(b), 0xdead_beef);
    assert_eq!(r.fetch(0x5678).unwrap(), 0x5678);
}

#[test]
fn small_pages_translate_in_every_format() {
    for f in PAGED {
        let mut r = Rig::new(f);
        for lin in [0x40_5000u64, 0x8000_0000, 0xc012_3000] {
            r.map(lin, 0x20_3000 | P | W);
            r.write(lin + 0x123, 0x55u8).unwrap();
            let mut b = [0];
            r.sys.mem.read_phys(Gpa(0x20_3123), &mut b);
            assert_eq!(b[0], 0x55, "{f:?}");
            assert_eq!(r.read::<u8>(lin + 0x123).unwrap(), 0x55);
            assert_eq!(r.fetch(lin + 4).unwrap(), 0x20_3004);
            assert_eq!(r.ctx().translate_quiet(Gva(lin + 7)), Some(Gpa(0x20_3007)));
            r.write(lin + 0x123, 0u8).unwrap();
        }
    }
}

#[test]
fn long_mode_maps_high_half() {
    let mut r = Rig::new(Format::Long);
    let lin = 0xffff_ffff_8100_0000;
    r.map(lin, 0x20_3000 | P | W);
    r.write(lin, 0x77u8).unwrap();
    assert_eq!(r.read::<u8>(lin).unwrap(), 0x77);
    assert_eq!(r.fetch(lin).unwrap(), 0x20_3000);
}

#[test]
fn large_pages_translate() {
    for (f, level, size) in [
        (Format::LegacyPse, 2, 4u64 << 20),
        (Format::Pae, 2, 2 << 20),
        (Format::Long, 2, 2 << 20),
        (Format::Long, 3, 1 << 30),
    ] {
        let mut r = Rig::new(f);
        let lin = 0x4000_0000;
        let at = r.entry_at(lin, level);
        r.poke(at, P | W | PS);
        let offset = size.min(16 << 20) - 0x1000;
        r.write(lin + offset, 0x66u8).unwrap();
        let mut b = [0];
        r.sys.mem.read_phys(Gpa(offset), &mut b);
        assert_eq!(b[0], 0x66, "{f:?} {level}");
        assert_eq!(r.peek(at), P | W | PS | A | D);
    }
}

#[test]
fn pse36_address_bits_are_used() {
    let mut r = Rig::new(Format::LegacyPse);
    let at = r.entry_at(0x40_0000, 2);
    r.poke(at, P | W | PS | 1 << 13);
    assert_eq!(r.fetch(0x40_1234).unwrap(), 0x1_0000_1234);
    // Without CR4.PSE the same bit pattern is a table pointer.
    r.set_format(Format::Legacy);
    assert_eq!(r.error(0x40_1234, Access::Read), Some(0));
}

#[test]
fn not_present_sets_no_p_bit_at_any_level() {
    for f in PAGED {
        for level in 1..=f.top() {
            let mut r = Rig::new(f);
            r.map(0x40_0000, 0x20_0000 | P | W | U);
            assert_eq!(r.error(0x40_0000, Access::Read), None);
            let at = r.entry_at(0x40_0000, level);
            let e = r.peek(at);
            r.poke(at, e & !P);
            let id = if matches!(f, Format::Pae | Format::Long) { 16 } else { 0 };
            assert_eq!(r.error(0x40_0000, Access::Read), Some(0));
            assert_eq!(r.error(0x40_0000, Access::Write), Some(2));
            assert_eq!(r.error(0x40_0000, Access::Exec), Some(id));
            r.set_cpl(3);
            assert_eq!(r.error(0x40_0000, Access::Read), Some(4));
            assert_eq!(r.error(0x40_0000, Access::Write), Some(6));
            assert_eq!(r.error(0x40_0000, Access::Exec), Some(4 + id));
        }
    }
}

#[test]
fn pae_pdpte_registers_gate_translation() {
    let mut r = Rig::new(Format::Pae);
    r.map(0x4000_0000, 0x20_0000 | P);
    assert_eq!(r.error(0x4000_0000, Access::Read), None);
    r.cpu.pdpte[1] = 0;
    r.ctx().mmu_switch();
    assert_eq!(r.error(0x4000_0000, Access::Read), Some(0));
}

/// (format, level, entry bit, NXE) that must be reserved.
fn reserved_bits() -> Vec<(Format, u8, u64, bool)> {
    let mut v = vec![
        (Format::Long, 4, PS, true),
        (Format::Long, 3, PS | 1 << 13, true),
        (Format::Long, 3, PS | 1 << 29, true),
        (Format::Long, 2, PS | 1 << 13, true),
        (Format::Long, 2, PS | 1 << 20, true),
        (Format::Pae, 2, PS | 1 << 20, true),
        (Format::LegacyPse, 2, PS | 1 << 20, false),
        (Format::LegacyPse, 2, PS | 1 << 21, false),
    ];
    for level in 1..=4 {
        v.push((Format::Long, level, 1 << 39, true));
        v.push((Format::Long, level, 1 << 51, true));
        v.push((Format::Long, level, NX, false));
    }
    for level in 1..=2 {
        v.push((Format::Pae, level, 1 << 39, true));
        v.push((Format::Pae, level, 1 << 52, true));
        v.push((Format::Pae, level, 1 << 62, true));
        v.push((Format::Pae, level, NX, false));
    }
    v
}

#[test]
fn reserved_bits_fault_with_rsvd() {
    for (f, level, bits, nxe) in reserved_bits() {
        let mut r = Rig::new(f);
        if !nxe {
            r.cpu.msr.efer &= !efer::NXE;
            r.ctx().mmu_switch();
        }
        r.map(0x40_0000, 0x20_0000 | P | W | U);
        assert_eq!(r.error(0x40_0000, Access::Write), None);
        let at = r.entry_at(0x40_0000, level);
        let clean = r.peek(at);
        r.poke(at, clean | bits);
        assert_eq!(r.error(0x40_0000, Access::Read), Some(1 | 8), "{f:?} {level} {bits:#x}");
        assert_eq!(r.error(0x40_0000, Access::Write), Some(1 | 2 | 8));
        r.set_cpl(3);
        assert_eq!(r.error(0x40_0000, Access::Read), Some(1 | 4 | 8));
        r.poke(at, clean);
        assert_eq!(r.error(0x40_0000, Access::Read), None);
    }
}

#[test]
fn ignored_bits_do_not_fault() {
    let mut r = Rig::new(Format::Long);
    let at = r.map(0x40_0000, 0x20_0000 | P | W | 0x7ff << 52 | 7 << 9);
    assert_eq!(r.error(0x40_0000, Access::Write), None);
    // PAT of a large page.
    let pd = r.entry_at(0x80_0000, 2);
    r.poke(pd, P | W | PS | 1 << 12 | 0x20_0000);
    assert_eq!(r.fetch(0x80_0000).unwrap(), 0x20_0000);
    let _ = at;
}

/// Expected error of an access under the manual's rules (SDM vol. 3A, 4.6), written out independently.
#[derive(Clone, Copy)]
struct Case {
    user_page: bool,
    writable: bool,
    nx: bool,
    cpl: u32,
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

fn expected(c: Case, access: Access, implicit: bool) -> Option<u32> {
    let user_mode = c.cpl == 3 && !implicit;
    let bad = if user_mode {
        !c.user_page || (access == Access::Write && !c.writable) || (access == Access::Exec && c.nx)
    } else {
        let smap = c.smap && c.user_page && access != Access::Exec && (implicit || !c.ac);
        let write = access == Access::Write && !c.writable && c.wp;
        smap || write || (access == Access::Exec && (c.nx || (c.smep && c.user_page)))
    };
    let kind = match access {
        Access::Read => 0,
        Access::Write => 2,
        Access::Exec => 16,
    };
    bad.then_some(1 | kind | if user_mode { 4 } else { 0 })
}

#[test]
fn rights_matrix_with_wp_smep_smap_nx() {
    let mut r = Rig::new(Format::Long);
    for n in 0..256u32 {
        let bit = |i: u32| n >> i & 1 != 0;
        let cpl = if bit(3) { 3 } else { 0 };
        let c = Case {
            user_page: bit(0),
            writable: bit(1),
            nx: bit(2),
            cpl,
            wp: bit(4),
            smep: bit(5),
            smap: bit(6),
            ac: bit(7),
        };
        let leaf = [(c.user_page, U), (c.writable, W), (c.nx, NX)];
        let e = leaf.iter().filter(|l| l.0).fold(0x20_0000 | P, |e, l| e | l.1);
        r.map(0x40_0000, e);
        r.cpu.cr0 = r.cpu.cr0 & !cr0::WP | if c.wp { cr0::WP } else { 0 };
        r.cpu.cr4 = cr4::PAE | if c.smep { cr4::SMEP } else { 0 } | if c.smap { cr4::SMAP } else { 0 };
        r.cpu.flags.put(bit::AC, c.ac);
        r.set_cpl(cpl);
        for _twice in 0..2 {
            for access in [Access::Read, Access::Write, Access::Exec] {
                assert_eq!(r.error(0x40_0000, access), expected(c, access, false), "case {n} {access:?}");
            }
            assert_eq!(
                r.read_system(0x40_0000).err().map(|e| e.error),
                expected(c, Access::Read, true),
                "case {n}"
            );
        }
    }
}

#[test]
fn rights_combine_over_levels() {
    for f in PAGED {
        for level in 1..=f.top() {
            for (clear, access, cpl, error) in
                [(W, Access::Write, 0, 3), (U, Access::Read, 3, 5), (W, Access::Write, 3, 7)]
            {
                let mut r = Rig::new(f);
                r.map(0x40_0000, 0x20_0000 | P | W | U);
                r.set_cpl(cpl);
                assert_eq!(r.error(0x40_0000, access), None);
                let at = r.entry_at(0x40_0000, level);
                let e = r.peek(at);
                r.poke(at, e & !clear);
                assert_eq!(r.error(0x40_0000, access), Some(error), "{f:?} {level}");
            }
        }
    }
}

#[test]
fn nx_at_any_level_forbids_fetch() {
    for level in 1..=4 {
        let mut r = Rig::new(Format::Long);
        r.map(0x40_0000, 0x20_0000 | P | W | U);
        let at = r.entry_at(0x40_0000, level);
        let e = r.peek(at);
        r.poke(at, e | NX);
        assert_eq!(r.error(0x40_0000, Access::Exec), Some(17));
        assert_eq!(r.error(0x40_0000, Access::Read), None);
    }
}

#[test]
fn fetch_faults_have_id_bit_only_with_nxe_or_smep() {
    let mut r = Rig::new(Format::Legacy);
    assert_eq!(r.error(0x40_0000, Access::Exec), Some(0));
    r.cpu.cr4 |= cr4::SMEP;
    r.ctx().mmu_switch();
    assert_eq!(r.error(0x40_0000, Access::Exec), Some(16));
    let mut r = Rig::new(Format::Long);
    r.cpu.msr.efer &= !efer::NXE;
    r.ctx().mmu_switch();
    assert_eq!(r.error(0x40_0000, Access::Exec), Some(0));
}

#[test]
fn accessed_and_dirty_bits_are_set_as_used() {
    for f in PAGED {
        let mut r = Rig::new(f);
        let pt = r.map(0x40_0000, 0x20_0000 | P | W);
        let upper: Vec<u64> = (2..=f.top()).map(|l| r.entry_at(0x40_0000, l)).collect();
        assert!(upper.iter().all(|at| r.peek(*at) & (A | D) == 0));
        // A refused access sets nothing.
        r.set_cpl(3);
        assert!(r.error(0x40_0000, Access::Read).is_some());
        assert_eq!(r.peek(pt) & (A | D), 0);
        assert!(upper.iter().all(|at| r.peek(*at) & A == 0));
        r.set_cpl(0);
        r.ctx().translate_quiet(Gva(0x40_0000));
        assert_eq!(r.peek(pt) & (A | D), 0);
        r.read::<u8>(0x40_0000).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A, "{f:?}");
        assert!(upper.iter().all(|at| r.peek(*at) & (A | D) == A));
        r.write(0x40_0000, 1u8).unwrap();
        assert_eq!(r.peek(pt) & (A | D), A | D, "{f:?}");
        assert!(upper.iter().all(|at| r.peek(*at) & (A | D) == A));
    }
}

#[test]
fn probe_and_rmw_set_the_dirty_bit() {
    let mut r = Rig::new(Format::Long);
    let a = r.map(0x40_0000, 0x20_0000 | P | W);
    let b = r.map(0x41_0000, 0x21_0000 | P | W);
    let c = r.map(0x42_0000, 0x22_0000 | P);
    r.ctx().probe(3, 0x40_0000, 8, Access::Write).unwrap();
    r.ctx().load_rmw::<u32>(3, 0x41_0000).unwrap();
    assert_eq!(r.peek(a) & D, D);
    assert_eq!(r.peek(b) & D, D);
    assert_eq!(r.ctx().load_rmw::<u32>(3, 0x42_0000).unwrap_err().error, 3);
    assert_eq!(r.peek(c) & (A | D), 0);
}

#[test]
fn tables_outside_memory_read_as_ones() {
    // 32-bit: all ones is a present entry; 4-level: reserved bits.
    let mut r = Rig::new(Format::Long);
    r.cpu.cr3 = 0x7000_0000;
    r.ctx().mmu_switch();
    assert_eq!(r.error(0x1000, Access::Read), Some(9));
    let mut r = Rig::new(Format::Legacy);
    r.cpu.cr3 = 0x7000_0000;
    r.ctx().mmu_switch();
    assert_eq!(r.fetch(0x1000).unwrap(), 0xffff_f000);
    assert_eq!(r.sys.mmu.shadow().len(), 0);
}

#[test]
fn straddling_write_is_all_or_nothing() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    let second = r.map(0x40_1000, 0x30_0000 | P);
    assert_eq!(r.write(0x40_0ffd, u64::MAX).unwrap_err().addr, 0x40_1000);
    assert_eq!(r.read::<u16>(0x40_0ffe).unwrap(), 0);
    r.poke(second, 0x30_0000 | P | W);
    for n in 1..8u64 {
        let v = 0x1122_3344_5566_7788 + n;
        r.write(0x40_1000 - n, v).unwrap();
        assert_eq!(r.read::<u64>(0x40_1000 - n).unwrap(), v);
        assert_eq!(r.ctx().load_rmw::<u64>(3, 0x40_1000 - n).unwrap(), v);
    }
    r.write(0x40_0ff8, u128::MAX / 3).unwrap();
    assert_eq!(r.read::<u128>(0x40_0ff8).unwrap(), u128::MAX / 3);
}

#[test]
fn rom_writes_are_dropped_and_rom_reads() {
    let mut r = Rig::new(Format::Off);
    let slab = (16 << 20) as u64;
    r.sys.mem.map.map_rom(0xffff_0000, 0x10000, slab);
    r.sys.mem.map_changed();
    r.sys.mem.ram.write(slab as usize + 0x10, 0xabu8);
    assert_eq!(r.read::<u8>(0xffff_0010).unwrap(), 0xab);
    r.write(0xffff_0010, 1u8).unwrap();
    assert_eq!(r.read::<u8>(0xffff_0010).unwrap(), 0xab);
    assert_eq!(r.fetch(0xffff_0010).unwrap(), 0xffff_0010);
}

#[test]
fn read_only_ram_drops_writes_of_everybody() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P | W);
    r.write(0x40_0000, 5u8).unwrap();
    r.sys.mem.set_flags(0x200, page::ROM);
    r.write(0x40_0000, 6u8).unwrap();
    r.sys.mem.write_phys(Gpa(0x20_0000), &[7]);
    assert_eq!(r.read::<u8>(0x40_0000).unwrap(), 5);
    // Accessed bits in a read-only table are lost.
    r.poke(pt, 0x20_0000 | P | W);
    r.sys.mem.set_flags((pt >> 12) as usize, page::ROM);
    r.write(0x40_0000, 6u8).unwrap();
    assert_eq!(r.peek(pt) & (A | D), 0);
}

#[test]
fn device_memory_floats_and_ends_the_block() {
    let mut r = Rig::new(Format::Off);
    assert_eq!(r.read::<u32>(0xfed1_0020).unwrap(), u32::MAX);
    assert_eq!(r.sys.limit, 0);
    r.sys.limit = 1;
    r.write(0xfed1_0020, 0u128).unwrap();
    assert_eq!(r.sys.limit, 0);
}

#[test]
fn a20_mask_applies_after_paging() {
    let mut r = Rig::new(Format::Off);
    r.write(0x10_0500, 1u8).unwrap();
    r.write(0x500, 2u8).unwrap();
    r.sys.mem.set_a20(false);
    assert_eq!(r.read::<u8>(0x10_0500).unwrap(), 2);
    r.write(0x10_0500, 3u8).unwrap();
    r.sys.mem.set_a20(true);
    assert_eq!(r.read::<u8>(0x10_0500).unwrap(), 1);
    assert_eq!(r.read::<u8>(0x500).unwrap(), 3);
    // A mask set directly counts from the next switch on.
    r.sys.mem.a20_mask = !(1 << 20);
    r.ctx().mmu_switch();
    assert_eq!(r.read::<u8>(0x10_0500).unwrap(), 3);
}

#[test]
fn quiet_access_ignores_rights_and_stops_at_holes() {
    let mut r = Rig::new(Format::Long);
    let pt = r.map(0x40_0000, 0x20_0000 | P);
    r.map(0x40_1000, 0x30_0000 | P | NX);
    assert_eq!(r.ctx().write_quiet(Gva(0x40_0ffe), &[1, 2, 3, 4]), 4);
    let mut b = [0; 4];
    assert_eq!(r.ctx().read_quiet(Gva(0x40_0ffe), &mut b), 4);
    assert_eq!(b, [1, 2, 3, 4]);
    assert_eq!(r.sys.mem.ram.read::<u16>(0x30_0000), 0x0403);
    assert_eq!(r.ctx().read_quiet(Gva(0x40_1ffe), &mut b), 2);
    assert_eq!(r.ctx().read_quiet(Gva(0x8000_0000_0000), &mut b), 0);
    assert_eq!(r.peek(pt) & (A | D), 0);
    assert_eq!(r.sys.mmu.counters.misses, 0);
}

#[test]
fn views_show_address_spaces_and_shadow_paths() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W | U);
    r.read::<u8>(0x40_0000).unwrap();
    r.set_cpl(3);
    r.fetch(0x40_0000).unwrap();
    let spaces = r.sys.mmu.asids(&r.sys.mem);
    assert_eq!(spaces.len(), 1);
    assert_eq!((spaces[0].paging.root, spaces[0].entries), (ROOT, [1, 0, 0, 0]));
    assert_eq!(spaces[0].fetch_entries, [0, 1, 0, 0]);
    let usage = r.sys.mmu.usage();
    assert_eq!((usage.asids, usage.traced_pages, usage.nodes), (1, 4, 4));
    let path = r.sys.mmu.shadow_walk(spaces[0].asid, Gva(0x40_0000));
    assert_eq!(path[0].page, (ROOT >> 12) as usize);
    assert_eq!(path[3].entry, Some(0x20_0000 | P | W | U | A));
    assert_eq!(r.sys.mmu.shadow_walk(spaces[0].asid, Gva(0x40_1000))[3].entry, None);
    assert_eq!(r.sys.mmu.shadow().traced_pages(), 4);
}
