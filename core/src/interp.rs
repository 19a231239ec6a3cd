//! The interpreter: the reference engine. Executes rows' `exec`, one instruction at a time or from decoded blocks.

use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::isa;

impl Ctx<'_> {
    /// Fetches, decodes and executes one instruction at RIP, without delivering anything. On a fault RIP is restored.
    pub fn step_insn(&mut self) -> Result<(), Exception> {
        let rip = self.cpu.rip;
        let cs_base = self.cpu.seg[1].lin_base;
        let mut buf = [0u8; 15];
        let mut n = 0;
        let decoded = loop {
            // One page's worth first: the next page is fetched only if the instruction really needs it.
            let lin = cs_base.wrapping_add(rip + n as u64) & self.cpu.mode.lin_mask;
            let gpa = self.translate_fetch(lin)?;
            let take = (15 - n).min((4096 - (lin & 4095)) as usize);
            self.sys.mem.read_phys(gpa, &mut buf[n..n + take]);
            n += take;
            if let Some(d) = isa::decode(&buf[..n], self.cpu.mode.bits, rip) {
                break d;
            }
        };
        self.cpu.insn_rip = rip;
        self.cpu.rip = rip.wrapping_add(u64::from(decoded.insn.len));
        let r = (decoded.insn.exec)(self, &decoded.insn);
        if r.is_err() {
            self.cpu.rip = rip;
        }
        r
    }
}
