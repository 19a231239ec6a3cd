//! Translation and memory access without side effects, for debuggers: no A/D bits, no fills, no faults.

use super::walk::walk;
use super::{Paging, access::canonical};
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::ctx::Ctx;

impl Ctx<'_> {
    /// Translates without any side effect (no A/D bits, no fills, no faults): for debuggers. `None` if unmapped.
    /// Rights are not checked.
    pub fn translate_quiet(&self, lin: Gva) -> Option<Gpa> {
        if !canonical(lin.0, 1) {
            return None;
        }
        walk(&self.sys.mem, &Paging::of(self.cpu), lin.0).ok().map(|w| w.gpa)
    }

    /// The guest-physical pieces `[lin, lin + len)` consists of, up to the first unmapped page.
    pub fn pieces_quiet(&self, lin: Gva, len: u64) -> Vec<(Gpa, u64)> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < len {
            let g = lin + at;
            let n = (len - at).min(PAGE_SIZE - g.offset());
            let Some(gpa) = self.translate_quiet(g) else { break };
            out.push((gpa, n));
            at += n;
        }
        out
    }

    /// Reads RAM and ROM by virtual address; returns how many bytes from the start could be read (device memory and
    /// unmapped pages stop it).
    pub fn read_quiet(&self, lin: Gva, buf: &mut [u8]) -> usize {
        let mut done = 0;
        for (gpa, n) in self.pieces_quiet(lin, buf.len() as u64) {
            let n = n as usize;
            if !self.sys.mem.read_phys(gpa, &mut buf[done..done + n]) {
                break;
            }
            done += n;
        }
        done
    }

    /// Writes RAM by virtual address whatever the page's rights; returns how many bytes from the start were written.
    /// This changes guest state: callers log it as an input.
    pub fn write_quiet(&mut self, lin: Gva, bytes: &[u8]) -> usize {
        let mut done = 0;
        for (gpa, n) in self.pieces_quiet(lin, bytes.len() as u64) {
            let n = n as usize;
            if !self.sys.mem.write_phys(gpa, &bytes[done..done + n]) {
                break;
            }
            done += n;
        }
        done
    }
}
