//! The ways out of a block: links to other blocks, branches out of its middle, slow paths and the ways back from them. Owns
//! the code off the straight path.

use super::emit::{Emitter, FlagState, Stop, Unsupported};
use super::hot::{Entered, Refill};
use super::site::What;
use super::window::Constant;
use super::x87::{Note, X87At};
use crate::jit::frame::{ENTER_SSE, LEAVE, RESUME, SLOW, SLOW_X87, SSE_READY};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

/// The fetch token of a way out that is not linked yet: no TLB entry holds it.
const UNLINKED: u64 = 0;

/// A way out of a block to a known RIP.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// RIP it leads to.
    pub rip: u64,
    /// Offset in the block's code of the 32-bit displacement of the jump to patch, and the way out it points to at first.
    pub jump: usize,
    pub cold: usize,
    /// Offset of the 64-bit fetch token to patch, if the target is in another page.
    pub token: Option<usize>,
    /// Flags at the jump: in the host's RFLAGS, saved.
    pub host: bool,
    pub saved: bool,
}

/// A piece of code off the straight path.
pub(super) enum Cold {
    Slow {
        from: DynamicLabel,
        site: usize,
        resume: Option<Resume>,
    },
    /// Loads the SSE state and goes back; if SSE cannot be used natively now, the site is performed.
    Sse {
        from: DynamicLabel,
        site: usize,
        back: DynamicLabel,
    },
    Exit {
        from: DynamicLabel,
        slot: usize,
    },
    /// A branch out of the middle of the block, which gives back the budget of the `rest`.
    Side {
        from: DynamicLabel,
        slot: usize,
        rest: i32,
        note: Note,
    },
    /// The stamp of what is remembered is another.
    Forget {
        from: DynamicLabel,
        back: DynamicLabel,
        site: usize,
    },
    Refill(Refill),
    Entered(Entered),
    /// The host address of an address known now is to be found again.
    Constant {
        from: DynamicLabel,
        back: DynamicLabel,
        line: u32,
        lookup: Constant,
    },
}

/// Where a slow path comes back to.
#[derive(Clone, Copy)]
pub(super) struct Resume {
    to: DynamicLabel,
    offset: usize,
    /// The flags are in RFLAGS there.
    host: bool,
}

/// A slow path whose way back is not known yet.
pub(super) struct Pending {
    /// The last instruction it executes.
    until: usize,
    cold: usize,
}

impl Emitter<'_> {
    /// A label that leads out of the block, to the engine.
    pub(super) fn leave_label(&mut self) -> DynamicLabel {
        self.site_label(What::Budget)
    }

    /// A label that leads out of the block, to a site before the current instruction.
    pub(super) fn site_label(&mut self, what: What) -> DynamicLabel {
        let site = self.site(what);
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        from
    }

    /// Straight-line way to a slow path and back to the next instruction.
    pub(super) fn go_slow(&mut self, site: usize) {
        let address = std::ptr::from_ref(&*self.sites[site]) as i64;
        dynasm!(self.a ; .arch x64 ; mov rax, QWORD address);
        match self.sites[site].x87 {
            X87At::Stays => dynasm!(self.a ; .arch x64 ; jmp QWORD [BYTE rsp + SLOW]),
            _ => dynasm!(self.a ; .arch x64 ; jmp QWORD [rsp + SLOW_X87]),
        }
        self.sites[site].resume = self.a.offset().0 as u64;
    }

    /// A label that leads to a slow path executing instructions up to number `until`, and back behind them.
    pub(super) fn slow_label(&mut self, until: usize) -> DynamicLabel {
        let count = (until - self.k + 1) as u32;
        let ends = self.items()[until].end;
        let what = if ends { What::Finish { count } } else { What::Execute { count } };
        let site = self.site(what);
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        if !ends {
            self.pending.push(Pending { until, cold: self.cold.len() - 1 });
        }
        from
    }

    /// [`Emitter::slow_label`] for a lookup that misses.
    pub(super) fn miss_label(&mut self, until: usize) -> DynamicLabel {
        let from = self.slow_label(until);
        if let Some(s) = self.sites.last_mut() {
            s.lookup = true;
        }
        from
    }

    /// Gives slow paths that executed up to instruction `k` their way back.
    pub(super) fn resolve_pending(&mut self, k: usize) {
        let here = self.pending.iter().any(|p| p.until == k);
        if !here {
            return;
        }
        let to = self.a.new_dynamic_label();
        dynasm!(self.a ; .arch x64 ; =>to);
        let back = Resume { to, offset: self.a.offset().0, host: self.flags.host };
        for p in self.pending.extract_if(.., |p| p.until == k) {
            if let Cold::Slow { resume, .. } = &mut self.cold[p.cold] {
                *resume = Some(back);
            }
        }
    }

    /// A slow path that comes back here, with the flags saved.
    pub(super) fn slow_and_back(&mut self, from: DynamicLabel, site: usize) {
        let to = self.a.new_dynamic_label();
        dynasm!(self.a ; .arch x64 ; =>to);
        let resume = Some(Resume { to, offset: self.a.offset().0, host: false });
        self.cold.push(Cold::Slow { from, site, resume });
    }

    /// Leaves for `rip` through a link slot.
    pub(crate) fn jump_to(&mut self, rip: u64) {
        if self.leaves_page(rip) && !self.flags.saved {
            self.before_clobber();
        }
        let slot = self.new_slot(rip);
        let from = self.a.new_dynamic_label();
        if self.leaves_page(rip) {
            self.flags.host = false;
            self.slots[slot].host = false;
            self.slots[slot].token = Some(self.token_check(rip, UNLINKED, from));
        }
        dynasm!(self.a ; .arch x64 ; jmp =>from);
        self.slots[slot].jump = self.a.offset().0 - 4;
        self.cold.push(Cold::Exit { from, slot });
    }

    /// Branches to `rip` on condition `cc` (flags in RFLAGS), else falls through.
    pub(crate) fn branch_to(&mut self, cc: u8, rip: u64) {
        let flags = self.flags;
        if self.leaves_page(rip) {
            let over = self.a.new_dynamic_label();
            self.jcc(cc ^ 1, over);
            self.jump_to(rip);
            dynasm!(self.a ; .arch x64 ; =>over);
            self.flags = flags;
            return;
        }
        let slot = self.new_slot(rip);
        let from = self.a.new_dynamic_label();
        self.jcc(cc, from);
        self.slots[slot].jump = self.a.offset().0 - 4;
        self.cold.push(Cold::Exit { from, slot });
    }

    /// Branches to `rip` out of the middle of the block on condition `cc` (flags in RFLAGS).
    pub(crate) fn side_exit(&mut self, cc: u8, rip: u64) {
        let slot = self.new_slot(rip);
        let from = self.a.new_dynamic_label();
        self.jcc(cc, from);
        let rest = (self.items().len() - self.k - 1) as i32;
        self.cold.push(Cold::Side { from, slot, rest, note: self.note });
    }

    fn cold_side(&mut self, from: DynamicLabel, slot: usize, rest: i32, note: Note) -> Result<(), Stop> {
        dynasm!(self.a ; .arch x64 ; =>from ; lea r12, [r12 + rest]);
        self.store_notes(note, slot).map_err(|Unsupported| Stop::Unsupported(note.insn()))?;
        let exit = self.a.new_dynamic_label();
        let Slot { rip, host, saved, .. } = self.slots[slot];
        if self.leaves_page(rip) {
            if host && !saved {
                self.emit_save();
            }
            (self.slots[slot].host, self.slots[slot].saved) = (false, true);
            self.slots[slot].token = Some(self.token_check(rip, UNLINKED, exit));
        }
        dynasm!(self.a ; .arch x64 ; jmp =>exit);
        self.slots[slot].jump = self.a.offset().0 - 4;
        self.cold_exit(exit, slot);
        Ok(())
    }

    /// Stores what is not noted yet, on the way out through `slot`.
    fn store_notes(&mut self, note: Note, slot: usize) -> Result<(), Unsupported> {
        let Slot { host, saved, .. } = self.slots[slot];
        (self.note, self.flags) = (note, FlagState { host, saved, ..FlagState::default() });
        self.flush_all_notes()?;
        (self.slots[slot].host, self.slots[slot].saved) = (self.flags.host, self.flags.saved);
        Ok(())
    }

    pub(crate) fn jcc(&mut self, cc: u8, to: DynamicLabel) {
        match cc {
            0 => dynasm!(self.a ; .arch x64 ; jo =>to),
            1 => dynasm!(self.a ; .arch x64 ; jno =>to),
            2 => dynasm!(self.a ; .arch x64 ; jb =>to),
            3 => dynasm!(self.a ; .arch x64 ; jae =>to),
            4 => dynasm!(self.a ; .arch x64 ; je =>to),
            5 => dynasm!(self.a ; .arch x64 ; jne =>to),
            6 => dynasm!(self.a ; .arch x64 ; jbe =>to),
            7 => dynasm!(self.a ; .arch x64 ; ja =>to),
            8 => dynasm!(self.a ; .arch x64 ; js =>to),
            9 => dynasm!(self.a ; .arch x64 ; jns =>to),
            10 => dynasm!(self.a ; .arch x64 ; jp =>to),
            11 => dynasm!(self.a ; .arch x64 ; jnp =>to),
            12 => dynasm!(self.a ; .arch x64 ; jl =>to),
            13 => dynasm!(self.a ; .arch x64 ; jge =>to),
            14 => dynasm!(self.a ; .arch x64 ; jle =>to),
            _ => dynasm!(self.a ; .arch x64 ; jg =>to),
        }
    }

    fn new_slot(&mut self, rip: u64) -> usize {
        let FlagState { host, saved, .. } = self.flags;
        self.slots.push(Slot { rip, jump: 0, cold: 0, token: None, host, saved });
        self.slots.len() - 1
    }

    /// Is `rip` in another page than the block's code, or the block in two?
    fn leaves_page(&self, rip: u64) -> bool {
        rip >> 12 != self.unit.key.rip >> 12 || self.unit.second.is_some()
    }

    pub(super) fn cold_code(&mut self) -> Result<(), Stop> {
        for c in std::mem::take(&mut self.cold) {
            match c {
                Cold::Slow { from, site, resume } => self.cold_slow(from, site, resume),
                Cold::Sse { from, site, back } => self.cold_sse(from, site, back),
                Cold::Exit { from, slot } => self.cold_exit(from, slot),
                Cold::Side { from, slot, rest, note } => self.cold_side(from, slot, rest, note)?,
                Cold::Forget { from, back, site } => self.cold_forget(from, back, site),
                Cold::Refill(r) => self.cold_refill(&r),
                Cold::Entered(e) => self.cold_entered(&e),
                Cold::Constant { from, back, line, lookup } => self.cold_constant(from, back, line, &lookup),
            }
        }
        Ok(())
    }

    fn cold_slow(&mut self, from: DynamicLabel, site: usize, resume: Option<Resume>) {
        dynasm!(self.a ; .arch x64 ; =>from);
        self.go_slow(site);
        match resume {
            Some(Resume { to, host: true, .. }) => {
                self.emit_restore();
                dynasm!(self.a ; .arch x64 ; jmp =>to);
            }
            Some(r) => self.sites[site].resume = r.offset as u64,
            None => {}
        }
    }

    fn cold_sse(&mut self, from: DynamicLabel, site: usize, back: DynamicLabel) {
        let slow = self.a.new_dynamic_label();
        dynasm!(self.a ; .arch x64
            ; =>from
            ; cmp DWORD [rsp + SSE_READY], 0
            ; je =>slow
            ; lea rax, [=>back]
            ; mov [rsp + RESUME], rax
            ; jmp QWORD [rsp + ENTER_SSE]
            ; =>slow
        );
        self.go_slow(site);
    }

    fn cold_exit(&mut self, from: DynamicLabel, slot: usize) {
        self.slots[slot].cold = self.a.offset().0;
        dynasm!(self.a ; .arch x64 ; =>from);
        let Slot { host, saved, .. } = self.slots[slot];
        if host && !saved {
            self.emit_save();
        }
        let number = (self.first_slot + slot as u32) as i32;
        dynasm!(self.a ; .arch x64 ; mov eax, number ; jmp QWORD [BYTE rsp + LEAVE]);
    }
}
