//! The interpreter: the reference engine. Executes rows' `exec` from a cache of decoded blocks; instructions that
//! straddle pages or reach past the code segment's limit go one at a time.

mod cache;

pub use cache::{BlockCache, CacheStats};

use crate::ctx::Ctx;
use crate::engine::filter::AddressFilter;
use crate::exception::Exception;
use crate::isa::{self, Decoded};
use crate::vcpu::Seg;

/// Why the block loop returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// `icount >= limit`: the budget is used up or a slow path asked for the dispatcher.
    Budget,
    /// The next instruction has a breakpoint.
    Breakpoint,
    /// The instruction at RIP raised an exception that is yet to be delivered.
    Fault(Exception),
    /// The exception an instruction raised was delivered, which shut the vCPU down.
    TripleFault,
}

impl Ctx<'_> {
    /// Linear address of the next instruction.
    #[inline(always)]
    pub fn code_lin(&self) -> u64 {
        self.cpu.seg[Seg::Cs as usize].lin_base.wrapping_add(self.cpu.rip) & self.cpu.mode.lin_mask
    }

    /// Last code-segment offset that may be fetched.
    #[inline(always)]
    fn code_limit(&self) -> u64 {
        if self.cpu.mode.is64() { u64::MAX } else { u64::from(self.cpu.seg[Seg::Cs as usize].limit) }
    }

    /// Fetches, decodes and executes one instruction at RIP, without delivering anything. On a fault RIP is restored.
    pub fn step_insn(&mut self) -> Result<(), Exception> {
        let decoded = self.fetch_decode()?;
        self.execute(&decoded.insn)?;
        self.note_interrupts();
        Ok(())
    }

    /// Executes a decoded instruction that stands at RIP; counts it.
    #[inline(always)]
    pub(crate) fn execute(&mut self, insn: &isa::insn::Insn) -> Result<(), Exception> {
        let rip = self.cpu.rip;
        self.cpu.insn_rip = rip;
        self.cpu.rip = rip.wrapping_add(u64::from(insn.len)) & self.cpu.mode.lin_mask;
        let r = (insn.exec)(self, insn);
        match r {
            Ok(()) => self.sys.icount += 1,
            Err(_) => self.cpu.rip = self.cpu.insn_rip,
        }
        r
    }

    /// Fetches byte by page: the second page is touched only if the instruction reaches into it, and fetching past
    /// the segment limit is #GP(0).
    fn fetch_decode(&mut self) -> Result<Decoded, Exception> {
        let rip = self.cpu.rip;
        let limit = self.code_limit();
        let mut buf = [0u8; 15];
        let mut n = 0usize;
        loop {
            let at = rip.wrapping_add(n as u64);
            if at > limit || n == 15 {
                return Err(Exception::gp(0));
            }
            let lin = self.cpu.seg[Seg::Cs as usize].lin_base.wrapping_add(at) & self.cpu.mode.lin_mask;
            let gpa = self.translate_fetch(lin)?;
            let room = (4096 - (lin & 4095)).min((limit - at).saturating_add(1));
            let take = (15 - n).min(room as usize);
            if !self.sys.mem.read_phys(gpa, &mut buf[n..n + take]) {
                // Fetching from device memory: all ones, as an unclaimed bus cycle gives.
                buf[n..n + take].fill(0xff);
            }
            n += take;
            if let Some(d) = isa::decode(&buf[..n], self.cpu.mode.bits, rip, self.cpu.model) {
                return Ok(d);
            }
        }
    }

    /// Runs decoded blocks until the budget is used up. With `BREAK`, stops before addresses in `breakpoints`
    /// (except at the very first instruction if `skip_first`), and notes what changes IF.
    pub fn run_blocks<const BREAK: bool>(
        &mut self,
        cache: &mut BlockCache,
        breakpoints: &AddressFilter,
        skip_first: bool,
    ) -> Leave {
        let mut skip = skip_first;
        while self.sys.icount < self.sys.limit {
            let Some(block) = self.find_block(cache) else {
                if BREAK && !skip && breakpoints.contains(self.code_lin()) {
                    return Leave::Breakpoint;
                }
                skip = false;
                match self.step_insn() {
                    Ok(()) => continue,
                    Err(e) => return Leave::Fault(e),
                }
            };
            for insn in cache.insns(block) {
                if BREAK && !skip && breakpoints.contains(self.code_lin()) {
                    return Leave::Breakpoint;
                }
                skip = false;
                if let Err(e) = self.execute(insn) {
                    return Leave::Fault(e);
                }
                if BREAK {
                    self.note_interrupts();
                }
                if self.sys.icount >= self.sys.limit {
                    break;
                }
            }
        }
        Leave::Budget
    }

    /// The cached block at RIP, decoding it if need be; `None` if the instruction there must go one at a time.
    #[inline(always)]
    fn find_block(&mut self, cache: &mut BlockCache) -> Option<u32> {
        let lin = self.code_lin();
        let gpa = self.translate_fetch(lin).ok()?;
        let key = cache::Key { gpa, rip: self.cpu.rip, bits: self.cpu.mode.bits };
        let block = match cache.find(key) {
            Some(b) => b,
            None => self.build_block(cache, key)?,
        };
        if let Some(second) = cache.second(block)
            && self.translate_fetch(next_page(lin) & self.cpu.mode.lin_mask).ok()? != second
        {
            // The second page is mapped elsewhere now.
            return None;
        }
        (cache.last_rip(block) <= self.code_limit()).then_some(block)
    }

    #[cold]
    #[inline(never)]
    fn build_block(&mut self, cache: &mut BlockCache, key: cache::Key) -> Option<u32> {
        if let Some(b) = cache.build(key, &mut self.sys.mem) {
            return Some(b);
        }
        // The next page may be touched only by an instruction that reaches into it.
        if !cache.straddles(key, &self.sys.mem) {
            return None;
        }
        let second = self.translate_fetch(next_page(self.code_lin()) & self.cpu.mode.lin_mask).ok()?;
        cache.build_straddling(key, second, &mut self.sys.mem)
    }
}

/// Linear address of the page after the one that holds `lin`.
fn next_page(lin: u64) -> u64 {
    (lin | 4095).wrapping_add(1)
}
