//! Segment checks, canonicality, alignment checks.

use super::*;
use crate::exception::vector;
use crate::vcpu::flags::bit;
use crate::vcpu::{Seg, cr0};

const DS: u8 = Seg::Ds as u8;
const SS: u8 = Seg::Ss as u8;

fn set(r: &mut Rig, seg: u8, base: u64, limit: u32, extra: u32, remove: u32) {
    let s = &mut r.cpu.seg[seg as usize];
    s.base = base;
    s.limit = limit;
    s.attr = (s.attr | extra) & !remove;
    r.cpu.refresh();
}

/// Vector of the fault of a 4-byte load or store at `seg:off`.
fn probe(r: &mut Rig, seg: u8, off: u64, write: bool) -> Option<u8> {
    let e = match write {
        true => r.ctx().store(seg, off, 0u32).err(),
        false => r.ctx().load::<u32>(seg, off).err(),
    };
    assert!(e.is_none_or(|e| e.has_error && e.error == 0));
    e.map(|e| e.vector)
}

#[test]
fn limits_are_checked_to_the_last_byte() {
    let mut r = Rig::new(Format::Off);
    for (seg, v) in [(DS, vector::GP), (SS, vector::SS)] {
        set(&mut r, seg, 0x10_0000, 0xfff, 0, 0);
        assert_eq!(probe(&mut r, seg, 0xffc, false), None);
        assert_eq!(probe(&mut r, seg, 0xffd, false), Some(v));
        assert_eq!(probe(&mut r, seg, 0x1000, true), Some(v));
        assert_eq!(probe(&mut r, seg, 0xffff_fffe, true), Some(v));
    }
    r.ctx().store(DS, 0x10, 0x77u8).unwrap();
    assert_eq!(r.sys.mem.ram.read::<u8>(0x10_0010), 0x77);
}

#[test]
fn expand_down_limits_are_a_lower_bound() {
    let mut r = Rig::new(Format::Off);
    set(&mut r, DS, 0, 0xfff, attr::DC, 0);
    assert_eq!(probe(&mut r, DS, 0xfff, false), Some(vector::GP));
    assert_eq!(probe(&mut r, DS, 0x1000, false), None);
    assert_eq!(probe(&mut r, DS, 0xffff_fffc, false), None);
    assert_eq!(probe(&mut r, DS, 0xffff_fffd, false), Some(vector::GP));
    set(&mut r, DS, 0, 0xfff, 0, attr::DB);
    assert_eq!(probe(&mut r, DS, 0xfffc, false), None);
    assert_eq!(probe(&mut r, DS, 0xfffd, false), Some(vector::GP));
}

#[test]
fn types_are_checked() {
    let mut r = Rig::new(Format::Off);
    set(&mut r, DS, 0, u32::MAX, 0, attr::RW);
    assert_eq!(probe(&mut r, DS, 0, false), None);
    assert_eq!(probe(&mut r, DS, 0, true), Some(vector::GP));
    assert_eq!(probe(&mut r, Seg::Cs as u8, 0, false), None);
    assert_eq!(probe(&mut r, Seg::Cs as u8, 0, true), Some(vector::GP));
    set(&mut r, Seg::Cs as u8, 0, u32::MAX, 0, attr::RW);
    assert_eq!(probe(&mut r, Seg::Cs as u8, 0, false), Some(vector::GP));
    set(&mut r, DS, 0, u32::MAX, attr::UNUSABLE, 0);
    assert_eq!(probe(&mut r, DS, 0, false), Some(vector::GP));
}

#[test]
fn real_mode_has_64k_segments() {
    let mut r = Rig::new(Format::Off);
    r.cpu.cr0 = 0;
    r.cpu.seg = [Segment::real(0x1000); 6];
    r.cpu.refresh();
    r.ctx().mmu_switch();
    assert_eq!(probe(&mut r, DS, 0xfffc, true), None);
    assert_eq!(probe(&mut r, DS, 0xfffd, true), Some(vector::GP));
    assert_eq!(probe(&mut r, SS, 0xfffd, true), Some(vector::SS));
    assert_eq!(probe(&mut r, Seg::Cs as u8, 0, true), None);
}

#[test]
fn non_canonical_addresses_fault_by_segment() {
    let mut r = Rig::new(Format::Long);
    r.map(0x7fff_ffff_f000, 0x20_0000 | P | W);
    for off in [0x8000_0000_0000, 0x7fff_ffff_fffd, 0xffff_7fff_ffff_fffc, 1 << 63] {
        for write in [false, true] {
            assert_eq!(probe(&mut r, DS, off, write), Some(vector::GP), "{off:#x}");
            assert_eq!(probe(&mut r, SS, off, write), Some(vector::SS));
        }
    }
    assert_eq!(probe(&mut r, DS, 0x7fff_ffff_fffc, true), None);
    assert_eq!(r.fetch(0x8000_0000_0000).unwrap_err(), Exception::gp(0));
}

#[test]
fn segment_bases_count_only_for_fs_and_gs_in_64_bit_mode() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W);
    r.map(0x41_0000, 0x21_0000 | P | W);
    set(&mut r, DS, 0x1_0000, 0, 0, 0);
    set(&mut r, Seg::Gs as u8, 0x1_0000, 0, 0, 0);
    r.ctx().store(DS, 0x40_0000, 1u8).unwrap();
    r.ctx().store(Seg::Gs as u8, 0x40_0000, 2u8).unwrap();
    assert_eq!(r.sys.mem.ram.read::<u8>(0x20_0000), 1);
    assert_eq!(r.sys.mem.ram.read::<u8>(0x21_0000), 2);
}

#[test]
fn linear_addresses_wrap_at_4g() {
    let mut r = Rig::new(Format::Off);
    set(&mut r, DS, 0xffff_f000, u32::MAX, 0, 0);
    r.ctx().store(DS, 0x2000, 9u8).unwrap();
    assert_eq!(r.sys.mem.ram.read::<u8>(0x1000), 9);
}

#[test]
fn alignment_is_checked_for_user_accesses_with_am_and_ac() {
    let mut r = Rig::new(Format::Long);
    r.map(0x40_0000, 0x20_0000 | P | W | U);
    for (am, ac, cpl) in [(true, true, 3), (false, true, 3), (true, false, 3), (true, true, 0)] {
        r.cpu.cr0 = r.cpu.cr0 & !cr0::AM | if am { cr0::AM } else { 0 };
        r.cpu.flags.put(bit::AC, ac);
        r.set_cpl(cpl);
        let checked = am && ac && cpl == 3;
        for _twice in 0..2 {
            let fault = |e: Exception| (e.vector, e.error) == (vector::AC, 0);
            assert_eq!(r.read::<u32>(0x40_0002).is_err_and(fault), checked);
            assert_eq!(r.write(0x40_0001, 0u16).is_err_and(fault), checked);
            assert!(r.read::<u8>(0x40_0003).is_ok());
            assert!(r.write(0x40_0008, 0u64).is_ok());
            assert_eq!(r.ctx().load_rmw::<u64>(DS, 0x40_0004).is_err_and(fault), checked);
            // Implicit accesses are never checked.
            assert!(r.ctx().read_lin::<u32>(0x40_0001, Privilege::System).is_ok());
        }
    }
}

#[test]
fn string_windows_touch_nothing_under_alignment_checks() {
    let mut r = Rig::new(Format::Long);
    let entry = r.map(0x40_0000, 0x20_0000 | P | W | U);
    r.cpu.cr0 |= cr0::AM;
    r.cpu.flags.put(bit::AC, true);
    r.set_cpl(3);
    // How much a string instruction may do at once is no reason for an accessed bit: a misaligned element faults
    // before the page is looked up.
    for access in [Access::Read, Access::Write] {
        assert_eq!(r.ctx().bulk_page(0x40_0001, access, Privilege::Current), None);
    }
    assert_eq!(r.peek(entry) & (A | D), 0);
}
