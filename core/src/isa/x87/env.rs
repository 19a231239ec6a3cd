//! FNSTENV, FLDENV, FNSAVE, FRSTOR: the x87 environment in its four memory layouts.
//! Source: SDM vol. 1, figures 8-9 to 8-12.

use super::control::control_word;
use super::convert::{from_bytes, to_bytes};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row};
use crate::vcpu::fpu::{Fpu, sw};
use iced_x86::Code as C;

/// Bytes of the environment with 16- and 32-bit operand size.
const ENV16: usize = 14;
const ENV32: usize = 28;

/// The seven fields, in order, as the layout's words or doublewords hold them.
fn fields(f: &Fpu, wide: bool, protected: bool) -> [u32; 7] {
    let (ip, dp) = (f.fip as u32, f.fdp as u32);
    let upper = if wide { 0xffff_0000 } else { 0 };
    let head = [upper | u32::from(f.fcw), upper | u32::from(f.fsw), upper | u32::from(f.tag_word())];
    let tail = if protected {
        let opcode = if wide { u32::from(f.fop) << 16 } else { 0 };
        [ip, u32::from(f.fcs) | opcode, dp, upper | u32::from(f.fds)]
    } else {
        // Real and virtual-8086 mode: linear addresses, their upper part from bit 12 of the next field on.
        let ip = ip.wrapping_add(u32::from(f.fcs) << 4);
        let dp = dp.wrapping_add(u32::from(f.fds) << 4);
        [ip & 0xffff, ip >> 16 << 12 | u32::from(f.fop), dp & 0xffff, dp >> 16 << 12]
    };
    let [a, b, c] = head;
    let [d, e, g, h] = tail;
    [a, b, c, d, e, g, h]
}

/// Takes over the fields.
fn set_fields(f: &mut Fpu, v: [u32; 7], wide: bool, protected: bool) {
    let [fcw, fsw, ftw, ip, cs, dp, ds] = v;
    f.fcw = control_word(fcw as u16);
    f.fsw = fsw as u16;
    f.set_tag_word(ftw as u16);
    if protected {
        (f.fip, f.fcs) = (ip.into(), cs as u16);
        (f.fdp, f.fds) = (dp.into(), ds as u16);
        f.fop = if wide { (cs >> 16) as u16 & 0x7ff } else { 0 };
    } else {
        (f.fip, f.fcs) = (u64::from(ip & 0xffff | cs >> 12 << 16), 0);
        (f.fdp, f.fds) = (u64::from(dp & 0xffff | ds >> 12 << 16), 0);
        f.fop = cs as u16 & 0x7ff;
    }
    f.summarize();
}

fn encode(f: &Fpu, wide: bool, protected: bool, out: &mut Vec<u8>) {
    for v in fields(f, wide, protected) {
        if wide { out.extend(v.to_le_bytes()) } else { out.extend((v as u16).to_le_bytes()) }
    }
}

fn decode(f: &mut Fpu, wide: bool, protected: bool, bytes: &[u8]) {
    let mut v = [0; 7];
    let size = if wide { 4 } else { 2 };
    for (field, b) in v.iter_mut().zip(bytes.chunks_exact(size)) {
        *field = b.iter().rev().fold(0, |r, b| r << 8 | u32::from(*b));
    }
    set_fields(f, v, wide, protected);
}

impl Ctx<'_> {
    /// Is the protected-mode layout in use? (64-bit mode uses the 32-bit protected one.)
    fn protected_layout(&self) -> bool {
        self.cpu.mode.protected
    }

    fn store_state<const WIDE: bool, const REGISTERS: bool>(&mut self, i: &Insn) -> Exec {
        self.x87_available()?;
        let mut bytes = Vec::with_capacity(108);
        encode(&self.cpu.fpu, WIDE, self.protected_layout(), &mut bytes);
        if REGISTERS {
            (0..8).for_each(|n| bytes.extend(to_bytes(self.cpu.fpu.st(n))));
        }
        let ea = self.ea(i);
        self.store_block(i.seg, ea, i.addr_mask, &bytes)?;
        if REGISTERS {
            self.cpu.fpu.init();
        } else {
            self.cpu.fpu.fcw |= sw::FLAGS;
            self.cpu.fpu.summarize();
        }
        Ok(())
    }

    fn load_state<const WIDE: bool, const REGISTERS: bool>(&mut self, i: &Insn) -> Exec {
        self.x87_ready()?;
        let env = if WIDE { ENV32 } else { ENV16 };
        let mut buffer = [0u8; 108];
        let bytes = &mut buffer[..if REGISTERS { env + 80 } else { env }];
        let ea = self.ea(i);
        self.load_block(i.seg, ea, i.addr_mask, bytes)?;
        let protected = self.protected_layout();
        let f = &mut self.cpu.fpu;
        decode(f, WIDE, protected, bytes);
        if REGISTERS {
            let (images, _) = bytes[env..].as_chunks::<10>();
            for (n, image) in (0..8).zip(images) {
                let p = f.physical(n);
                f.r[p] = from_bytes(image);
            }
        }
        Ok(())
    }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Fnstenv_m14byte, |c, i| c.store_state::<false, false>(i)),
    row(C::Fnstenv_m28byte, |c, i| c.store_state::<true, false>(i)),
    row(C::Fnsave_m94byte, |c, i| c.store_state::<false, true>(i)),
    row(C::Fnsave_m108byte, |c, i| c.store_state::<true, true>(i)),
    row(C::Fldenv_m14byte, |c, i| c.load_state::<false, false>(i)),
    row(C::Fldenv_m28byte, |c, i| c.load_state::<true, false>(i)),
    row(C::Frstor_m94byte, |c, i| c.load_state::<false, true>(i)),
    row(C::Frstor_m108byte, |c, i| c.load_state::<true, true>(i)),
];
