//! FXSAVE, FXRSTOR and the XSAVE family for the x87 and SSE components.
//! Source: SDM vol. 1, 10.5 (FXSAVE area) and chapter 13 (XSAVE area).
//!
//! XINUSE is exact here: a component is in its initial configuration if its registers hold the initial values.
//! The modified optimisation of XSAVEOPT is not used (it is optional).

use super::insn::Insn;
use super::sse::native::mxcsr;
use super::x87::control::control_word;
use super::x87::convert::{from_bytes, to_bytes};
use super::{Row, row};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::mmu::{Access, Privilege};
use crate::vcpu::fpu::Fpu;
use crate::vcpu::{cr0, cr4, gpr};
use iced_x86::Code as C;

/// State-component bits of XCR0, XSTATE_BV and the requested-feature bitmap.
const X87: u64 = 1;
const SSE: u64 = 2;
/// XCOMP_BV bit 63: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// Offsets in the area.
const MXCSR: u64 = 24;
const REGISTERS: u64 = 32;
const XMM: u64 = 160;
const HEADER: u64 = 512;
const LEGACY_SIZE: u64 = 512;
const AREA_SIZE: u64 = 576;
const MXCSR_RESET: u32 = 0x1f80;

/// An area in guest memory: segment, offset of its first byte, address mask.
#[derive(Clone, Copy)]
struct Area {
    seg: u8,
    base: u64,
    mask: u64,
    /// REX.W form: 64-bit instruction and data pointers.
    wide: bool,
    /// Where it lies in the slab, if that is plain memory: the first bytes of it, how many they are, and the others.
    slab: Option<(usize, usize, usize)>,
}

impl Area {
    fn load(self, ctx: &mut Ctx<'_>, at: u64, bytes: &mut [u8]) -> Exec {
        if let Some(slab) = self.slab {
            let ((a, n), b) = pieces(slab, at as usize, bytes.len());
            ctx.sys.mem.ram.read_bytes(a, &mut bytes[..n]);
            if n < bytes.len() {
                ctx.sys.mem.ram.read_bytes(b, &mut bytes[n..]);
            }
            return Ok(());
        }
        ctx.load_block(self.seg, self.base.wrapping_add(at) & self.mask, self.mask, bytes)
    }
    fn store(self, ctx: &mut Ctx<'_>, at: u64, bytes: &[u8]) -> Exec {
        if let Some(slab) = self.slab {
            let ((a, n), b) = pieces(slab, at as usize, bytes.len());
            ctx.sys.mem.ram.write_bytes(a, &bytes[..n]);
            if n < bytes.len() {
                ctx.sys.mem.ram.write_bytes(b, &bytes[n..]);
            }
            return Ok(());
        }
        ctx.store_block(self.seg, self.base.wrapping_add(at) & self.mask, self.mask, bytes)
    }
}

/// The operand as an area of `size` bytes, aligned to `align`, all of it accessible.
fn area(
    ctx: &mut Ctx<'_>,
    i: &Insn,
    size: u64,
    align: u64,
    wide: bool,
    access: Access,
) -> Result<Area, Exception> {
    let base = ctx.ea(i);
    let lin = match access {
        Access::Write => ctx.linear::<true>(i.seg, base, size)?,
        _ => ctx.linear::<false>(i.seg, base, size)?,
    };
    if lin & (align - 1) != 0 {
        return Err(Exception::gp(0));
    }
    let slab = slab(ctx, lin, size, access);
    if slab.is_none() {
        ctx.probe(i.seg, base, size, access)?;
    }
    Ok(Area { seg: i.seg, base, mask: i.addr_mask, wide, slab })
}

/// Where an area of `size` bytes at `lin` lies in the slab, if it is plain memory and does not wrap.
fn slab(ctx: &mut Ctx<'_>, lin: u64, size: u64, access: Access) -> Option<(usize, usize, usize)> {
    let (first, left) = ctx.bulk_page(lin, access, Privilege::Current)?;
    if left as u64 >= size {
        return Some((first, left, 0));
    }
    let next = lin.checked_add(left as u64).filter(|n| *n <= ctx.cpu.mode.lin_mask)?;
    let (second, _) = ctx.bulk_page(next, access, Privilege::Current)?;
    // The second lookup may have revoked the first.
    let (again, _) = ctx.bulk_page(lin, access, Privilege::Current)?;
    (again == first).then_some((first, left, second))
}

/// Slab offset and length of the first piece of `len` bytes at offset `at` of an area that lies as [`Area::slab`] says, and
/// the offset of the second.
fn pieces((first, left, second): (usize, usize, usize), at: usize, len: usize) -> ((usize, usize), usize) {
    match at.checked_sub(left) {
        Some(at) => ((second + at, len), 0),
        None => ((first + at, len.min(left - at)), second),
    }
}

/// Bytes 0..24: control, status, abridged tags, opcode and pointers.
fn head(f: &Fpu, wide: bool) -> [u8; 24] {
    let mut b = [0; 24];
    b[0..2].copy_from_slice(&f.fcw.to_le_bytes());
    b[2..4].copy_from_slice(&f.fsw.to_le_bytes());
    b[4] = f.ftw;
    b[6..8].copy_from_slice(&f.fop.to_le_bytes());
    b[8..16].copy_from_slice(&f.fip.to_le_bytes());
    b[16..24].copy_from_slice(&f.fdp.to_le_bytes());
    if !wide {
        b[12..16].copy_from_slice(&u32::from(f.fcs).to_le_bytes());
        b[20..24].copy_from_slice(&u32::from(f.fds).to_le_bytes());
    }
    b
}

/// Bytes 32..160: ST(0) to ST(7), sixteen bytes each.
fn registers(f: &Fpu) -> [u8; 128] {
    let mut b = [0; 128];
    let (slots, _) = b.as_chunks_mut::<16>();
    for (n, slot) in (0..8).zip(slots) {
        slot[..10].copy_from_slice(&to_bytes(f.st(n)));
    }
    b
}

fn word(b: &[u8; 24], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn quad(b: &[u8; 24], at: usize) -> u64 {
    (0..8).rev().fold(0, |r, n| r << 8 | u64::from(b[at + n]))
}

/// Takes over bytes 0..24 and 32..160.
fn set_x87(f: &mut Fpu, b: &[u8; 24], registers: &[u8; 128], wide: bool) {
    f.fcw = control_word(word(b, 0));
    f.fsw = word(b, 2);
    f.ftw = b[4];
    f.fop = word(b, 6) & 0x7ff;
    if wide {
        (f.fip, f.fcs, f.fdp, f.fds) = (quad(b, 8), 0, quad(b, 16), 0);
    } else {
        (f.fip, f.fcs) = (quad(b, 8) & 0xffff_ffff, word(b, 12));
        (f.fdp, f.fds) = (quad(b, 16) & 0xffff_ffff, word(b, 20));
    }
    let (slots, _) = registers.as_chunks::<16>();
    for (n, slot) in (0..8).zip(slots) {
        let p = f.physical(n);
        let [image @ .., _, _, _, _, _, _] = *slot;
        f.r[p] = from_bytes(&image);
    }
    f.summarize();
}

/// XMM registers an area holds in this mode.
fn xmm_count(ctx: &Ctx<'_>) -> usize {
    if ctx.cpu.mode.is64() { 16 } else { 8 }
}

fn save_x87(ctx: &mut Ctx<'_>, a: Area) -> Exec {
    let (h, r) = (head(&ctx.cpu.fpu, a.wide), registers(&ctx.cpu.fpu));
    a.store(ctx, 0, &h)?;
    a.store(ctx, REGISTERS, &r)
}

fn save_xmm(ctx: &mut Ctx<'_>, a: Area) -> Exec {
    let mut b = [0; 256];
    let (slots, _) = b.as_chunks_mut::<16>();
    for (slot, v) in slots.iter_mut().zip(&ctx.cpu.fpu.xmm) {
        *slot = v.to_le_bytes();
    }
    a.store(ctx, XMM, &b[..16 * xmm_count(ctx)])
}

/// MXCSR and MXCSR_MASK.
fn save_mxcsr(ctx: &mut Ctx<'_>, a: Area) -> Exec {
    let v = u64::from(ctx.cpu.fpu.mxcsr) | u64::from(mxcsr::VALID) << 32;
    a.store(ctx, MXCSR, &v.to_le_bytes())
}

fn load_xmm(ctx: &mut Ctx<'_>, a: Area) -> Result<[u128; 16], Exception> {
    let (mut xmm, mut b, n) = (ctx.cpu.fpu.xmm, [0; 256], xmm_count(ctx));
    a.load(ctx, XMM, &mut b[..16 * n])?;
    let (slots, _) = b.as_chunks::<16>();
    for (x, slot) in xmm.iter_mut().zip(slots).take(n) {
        *x = u128::from_le_bytes(*slot);
    }
    Ok(xmm)
}

/// MXCSR from the area; #GP(0) if a reserved bit is set.
fn load_mxcsr(ctx: &mut Ctx<'_>, a: Area) -> Result<u32, Exception> {
    let mut b = [0; 4];
    a.load(ctx, MXCSR, &mut b)?;
    let v = u32::from_le_bytes(b);
    if v & !mxcsr::VALID != 0 { Err(Exception::gp(0)) } else { Ok(v) }
}

fn load_x87(ctx: &mut Ctx<'_>, a: Area) -> Result<([u8; 24], [u8; 128]), Exception> {
    let (mut h, mut r) = ([0; 24], [0; 128]);
    a.load(ctx, 0, &mut h)?;
    a.load(ctx, REGISTERS, &mut r)?;
    Ok((h, r))
}

fn fxsave<const WIDE: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_available()?;
    let a = area(ctx, i, LEGACY_SIZE, 16, WIDE, Access::Write)?;
    save_x87(ctx, a)?;
    save_mxcsr(ctx, a)?;
    save_xmm(ctx, a)
}

fn fxrstor<const WIDE: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_available()?;
    let a = area(ctx, i, LEGACY_SIZE, 16, WIDE, Access::Read)?;
    let v = load_mxcsr(ctx, a)?;
    let (h, r) = load_x87(ctx, a)?;
    let xmm = load_xmm(ctx, a)?;
    let f = &mut ctx.cpu.fpu;
    (f.mxcsr, f.xmm) = (v, xmm);
    set_x87(f, &h, &r, WIDE);
    Ok(())
}

/// #UD or #NM if the XSAVE family may not be used.
fn xsave_ready(ctx: &Ctx<'_>) -> Exec {
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    if ctx.cpu.cr0 & cr0::TS != 0 { Err(Exception::nm()) } else { Ok(()) }
}

/// The requested-feature bitmap: EDX:EAX and XCR0.
fn requested(ctx: &Ctx<'_>) -> u64 {
    let asked = (ctx.cpu.gpr[gpr::RDX] << 32) | (ctx.cpu.gpr[gpr::RAX] & 0xffff_ffff);
    asked & ctx.cpu.xcr0 & (X87 | SSE)
}

/// XINUSE: components not in their initial configuration.
fn in_use(f: &Fpu) -> u64 {
    let mut initial = *f;
    initial.init();
    initial.r = [(0, 0); 8];
    let x87 = if *f == initial { 0 } else { X87 };
    let sse = if f.xmm == [0; 16] { 0 } else { SSE };
    x87 | sse
}

/// XSAVE, and with `OPT` XSAVEOPT: components in their initial configuration are not written.
fn xsave<const WIDE: bool, const OPT: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    xsave_ready(ctx)?;
    let a = area(ctx, i, AREA_SIZE, 64, WIDE, Access::Write)?;
    let (wanted, used) = (requested(ctx), in_use(&ctx.cpu.fpu));
    let mut b = [0; 8];
    a.load(ctx, HEADER, &mut b)?;
    let written = if OPT { wanted & used } else { wanted };
    if written & X87 != 0 {
        save_x87(ctx, a)?;
    }
    if wanted & SSE != 0 {
        save_mxcsr(ctx, a)?;
    }
    if written & SSE != 0 {
        save_xmm(ctx, a)?;
    }
    let bv = u64::from_le_bytes(b) & !wanted | used & wanted;
    a.store(ctx, HEADER, &bv.to_le_bytes())
}

/// XSAVEC: compacted format, components in their initial configuration are not written.
fn xsavec<const WIDE: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    xsave_ready(ctx)?;
    let a = area(ctx, i, AREA_SIZE, 64, WIDE, Access::Write)?;
    let wanted = requested(ctx);
    let mut used = in_use(&ctx.cpu.fpu);
    if ctx.cpu.fpu.mxcsr != MXCSR_RESET {
        used |= SSE;
    }
    if wanted & used & X87 != 0 {
        save_x87(ctx, a)?;
    }
    if wanted & used & SSE != 0 {
        save_mxcsr(ctx, a)?;
        save_xmm(ctx, a)?;
    }
    let header = u128::from(wanted & used) | u128::from(COMPACTED | wanted) << 64;
    a.store(ctx, HEADER, &header.to_le_bytes())
}

/// The checks on the header (SDM vol. 1, 13.8): XSTATE_BV and whether the area is compacted, or #GP(0).
fn check_header(xcr0: u64, header: &[u8; 64]) -> Result<(u64, bool), Exception> {
    let field = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |r, b| r << 8 | u64::from(*b));
    let (state, comp) = (field(0), field(8));
    let compacted = comp & COMPACTED != 0;
    let bad = if compacted {
        comp & !COMPACTED & !xcr0 != 0 || state & !comp != 0 || header[16..].iter().any(|b| *b != 0)
    } else {
        state & !xcr0 != 0 || comp != 0 || field(16) != 0
    };
    if bad { Err(Exception::gp(0)) } else { Ok((state, compacted)) }
}

fn xrstor<const WIDE: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    xsave_ready(ctx)?;
    let a = area(ctx, i, AREA_SIZE, 64, WIDE, Access::Read)?;
    let mut header = [0; 64];
    a.load(ctx, HEADER, &mut header)?;
    let (state, compacted) = check_header(ctx.cpu.xcr0, &header)?;
    let wanted = requested(ctx);
    let restored = wanted & state;
    // Everything that may fault comes before the first change.
    let control = match wanted & SSE != 0 {
        true if compacted && state & SSE == 0 => Some(MXCSR_RESET),
        true => Some(load_mxcsr(ctx, a)?),
        false => None,
    };
    let x87 = if restored & X87 != 0 { Some(load_x87(ctx, a)?) } else { None };
    let xmm = if restored & SSE != 0 { Some(load_xmm(ctx, a)?) } else { None };
    let count = xmm_count(ctx);
    let f = &mut ctx.cpu.fpu;
    if let Some(v) = control {
        f.mxcsr = v;
    }
    if wanted & X87 != 0 {
        f.init();
        f.r = [(0, 0); 8];
    }
    if let Some((h, r)) = x87 {
        set_x87(f, &h, &r, WIDE);
    }
    match xmm {
        Some(xmm) => f.xmm = xmm,
        None if wanted & SSE != 0 => f.xmm.iter_mut().take(count).for_each(|x| *x = 0),
        None => {}
    }
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Fxsave_m512byte, fxsave::<false>),
    row(C::Fxsave64_m512byte, fxsave::<true>),
    row(C::Fxrstor_m512byte, fxrstor::<false>),
    row(C::Fxrstor64_m512byte, fxrstor::<true>),
    row(C::Xsave_mem, xsave::<false, false>),
    row(C::Xsave64_mem, xsave::<true, false>),
    row(C::Xsaveopt_mem, xsave::<false, true>),
    row(C::Xsaveopt64_mem, xsave::<true, true>),
    row(C::Xsavec_mem, xsavec::<false>),
    row(C::Xsavec64_mem, xsavec::<true>),
    row(C::Xrstor_mem, xrstor::<false>),
    row(C::Xrstor64_mem, xrstor::<true>),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::isa::sse::testing::{DATA, Machine};
    use crate::vcpu::fpu::INDEFINITE;
    use iced_x86::code_asm::*;

    fn filled() -> Machine {
        let mut m = Machine::new();
        let f = &mut m.cpu.fpu;
        f.push((1 << 63, 0x3fff));
        f.push(INDEFINITE);
        (f.fop, f.fip, f.fcs, f.fdp, f.fds) = (0x123, 0x1122_3344, 8, 0x5566_7788, 32);
        f.mxcsr = 0x1fa0;
        for n in 0..8 {
            f.xmm[n] = 0x1111 * (n as u128 + 1);
        }
        m
    }

    #[test]
    fn fxsave_layout() {
        let mut m = filled();
        m.write(DATA, &[0xcc; 512]);
        m.run(|a| a.fxsave(ptr(DATA)).unwrap()).unwrap();
        let b: [u8; 512] = m.read(DATA);
        assert_eq!(b[0..8], [0x7f, 0x03, 0x00, 0x30, 0xc0, 0, 0x23, 0x01]);
        assert_eq!(b[8..16], [0x44, 0x33, 0x22, 0x11, 8, 0, 0, 0]);
        assert_eq!(b[16..24], [0x88, 0x77, 0x66, 0x55, 32, 0, 0, 0]);
        assert_eq!(b[24..32], [0xa0, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
        assert_eq!(b[32..48], [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(b[56..58], [0xff, 0x3f]);
        assert_eq!(b[176..178], [0x22, 0x22]);
        // Outside 64-bit mode XMM8-15 are not written; the software area never is.
        assert_eq!(b[288..], [0xcc; 224]);
    }

    #[test]
    fn fxrstor_restores_what_fxsave_saved() {
        let mut m = filled();
        let before = m.cpu.fpu;
        m.run(|a| a.fxsave(ptr(DATA)).unwrap()).unwrap();
        m.cpu.fpu = Fpu::new();
        m.run(|a| a.fxrstor(ptr(DATA)).unwrap()).unwrap();
        assert_eq!(m.cpu.fpu, before);
    }

    #[test]
    fn misaligned_area_and_reserved_mxcsr_bits_fault() {
        let mut m = filled();
        let before = m.cpu.fpu;
        assert_eq!(m.run(|a| a.fxsave(ptr(DATA + 8)).unwrap()), Err(Exception::gp(0)));
        assert_eq!(m.run(|a| a.xsave(ptr(DATA + 32)).unwrap()), Err(Exception::gp(0)));
        m.write(DATA + 24, &0x1_0000u32.to_le_bytes());
        assert_eq!(m.run(|a| a.fxrstor(ptr(DATA)).unwrap()), Err(Exception::gp(0)));
        assert_eq!(m.cpu.fpu, before);
    }

    fn ask(m: &mut Machine, mask: u64) {
        m.cpu.gpr[gpr::RAX] = mask;
        m.cpu.gpr[gpr::RDX] = 0;
    }

    #[test]
    fn xsave_and_xrstor_of_each_component() {
        let mut m = filled();
        let before = m.cpu.fpu;
        ask(&mut m, SSE);
        m.run(|a| a.xsave(ptr(DATA)).unwrap()).unwrap();
        assert_eq!(m.read::<16>(DATA + 512), u128::from(SSE).to_le_bytes());
        assert_eq!(m.read::<24>(DATA), [0; 24]);
        ask(&mut m, X87 | SSE);
        m.cpu.fpu.xmm = [u128::MAX; 16];
        m.run(|a| a.xrstor(ptr(DATA)).unwrap()).unwrap();
        assert_eq!(m.cpu.fpu.xmm[..8], before.xmm[..8]);
        // x87 was asked for but absent: initial configuration.
        assert_eq!((m.cpu.fpu.fcw, m.cpu.fpu.ftw, m.cpu.fpu.r), (0x37f, 0, [(0, 0); 8]));
    }

    #[test]
    fn xsavec_compacts_and_omits_initial_state() {
        let mut m = Machine::new();
        m.write(DATA, &[0; 576]);
        ask(&mut m, X87 | SSE);
        m.run(|a| a.xsavec(ptr(DATA)).unwrap()).unwrap();
        assert_eq!(m.read::<16>(DATA + 512), (u128::from(COMPACTED | 3) << 64).to_le_bytes());
        assert_eq!(m.read::<4>(DATA + 24), [0; 4]);
        m.cpu.fpu.mxcsr = 0x1fbf;
        m.run(|a| a.xrstor(ptr(DATA)).unwrap()).unwrap();
        assert_eq!(m.cpu.fpu.mxcsr, MXCSR_RESET);
    }

    #[test]
    fn bad_headers() {
        let h = |state: u64, comp: u64, at: usize, v: u8| {
            let mut b = [0; 64];
            b[..8].copy_from_slice(&state.to_le_bytes());
            b[8..16].copy_from_slice(&comp.to_le_bytes());
            b[at] |= v;
            check_header(3, &b)
        };
        let gp = Err(Exception::gp(0));
        assert_eq!(h(3, 0, 0, 0), Ok((3, false)));
        assert_eq!(h(4, 0, 0, 0), gp);
        assert_eq!(h(3, 1, 0, 0), gp);
        assert_eq!(h(3, 0, 23, 1), gp);
        assert_eq!(h(3, 0, 24, 1), Ok((3, false)));
        assert_eq!(h(3, COMPACTED | 3, 0, 0), Ok((3, true)));
        assert_eq!(h(3, COMPACTED | 1, 0, 0), gp);
        assert_eq!(h(0, COMPACTED | 4, 0, 0), gp);
        assert_eq!(h(3, COMPACTED | 3, 63, 1), gp);
    }

    #[test]
    fn xsave_is_undefined_without_osxsave() {
        let mut m = filled();
        m.cpu.cr4 &= !cr4::OSXSAVE;
        assert_eq!(m.run(|a| a.xsave(ptr(DATA)).unwrap()), Err(Exception::ud()));
        m.cpu.cr4 |= cr4::OSXSAVE;
        m.cpu.cr0 |= cr0::TS;
        assert_eq!(m.run(|a| a.xsave(ptr(DATA)).unwrap()), Err(Exception::nm()));
    }
}
