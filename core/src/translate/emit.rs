//! The emitter: host code for one block. Owns the state carried from instruction to instruction (where the guest's flags
//! are, the open window, whether the budget was checked) and the order of entries, body and cold code.

use super::recipe::Recipe;
use super::site::{FlagsAt, Site, What};
use super::unit::{Item, Unit};
use super::window::Window;
use super::x87::{Note, X87At};
use crate::engine::JitOptions;
use crate::isa::Translate;
use crate::isa::insn::Insn;
use crate::jit::frame::{ENTER_SSE, FLAGS_BELOW, LEAVE, RESUME, SLOW, SLOW_X87, SSE, SSE_READY};
use crate::jit::stubs::{HOST, IN_FRAME};
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmError, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::Encoder;
use std::cell::Cell;
use std::sync::Arc;

/// The emitter cannot express this operand combination: the instruction is to be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsupported;

/// Where the guest's arithmetic flags are now. At least one of the three holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlagState {
    /// In the host's RFLAGS.
    pub host: bool,
    /// Saved below the frame.
    pub saved: bool,
    /// Computable from registers.
    pub recipe: Option<Recipe>,
}

/// What a block wants of the flags at its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// It overwrites them before anyone can see them.
    Nothing,
    /// In the host's RFLAGS.
    Host,
    /// Saved.
    Saved,
}

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

/// How many instructions of a block became what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Became {
    pub identical: u32,
    pub emitted: u32,
    pub called: u32,
}

/// The host code of a block.
#[derive(Debug)]
pub struct Code {
    pub bytes: Vec<u8>,
    /// Offsets of the entries: flags in RFLAGS, flags saved.
    pub host_entry: usize,
    pub saved_entry: usize,
    pub need: Need,
    pub slots: Vec<Slot>,
    pub sites: Vec<Box<Site>>,
    /// Offset of the host code of each instruction, and of what is off the straight path.
    pub starts: Vec<usize>,
    pub cold: usize,
    pub became: Became,
}

/// A piece of code off the straight path.
enum Cold {
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
}

/// Where a slow path comes back to.
#[derive(Clone, Copy)]
struct Resume {
    to: DynamicLabel,
    offset: usize,
    /// The flags are in RFLAGS there.
    host: bool,
}

/// A slow path whose way back is not known yet.
struct Pending {
    /// The last instruction it executes.
    until: usize,
    cold: usize,
}

pub(crate) type Asm = VecAssembler<X64Relocation>;

/// Assembler and encoder, kept from block to block. The code of a block does not depend on where it lies.
pub struct Tools {
    asm: Asm,
    encoder: Encoder,
}

impl Default for Tools {
    fn default() -> Self {
        Self { asm: VecAssembler::new(0), encoder: Encoder::new(64) }
    }
}

/// Emits one block.
pub struct Emitter<'a> {
    pub(crate) a: &'a mut Asm,
    pub(super) unit: &'a Unit,
    pub(super) options: JitOptions,
    /// The host has BMI2.
    pub(super) bmi2: bool,
    insns: Arc<[Insn]>,
    pub(super) flags: FlagState,
    /// Number of the current instruction.
    pub(super) k: usize,
    /// Before which instruction the budget is checked; the number of instructions: at the end.
    budget_at: usize,
    budgeted: bool,
    /// Lookups later instructions share.
    pub(super) windows: Vec<Window>,
    /// The x87 state is known to be in host registers.
    pub(super) x87: bool,
    /// What has not been noted yet of the x87 instructions so far.
    pub(super) note: Note,
    pub(super) sites: Vec<Box<Site>>,
    slots: Vec<Slot>,
    cold: Vec<Cold>,
    pending: Vec<Pending>,
    pub(super) encoder: &'a mut Encoder,
    /// First link-slot number of the block.
    first_slot: u32,
    /// Fetch token of the second page, and the block's own.
    second_token: Option<u64>,
}

/// What the emitter needs besides the unit.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub options: JitOptions,
    pub first_slot: u32,
    pub second_token: Option<u64>,
}

/// Translates a unit. Fails only if an internal limit (a displacement) is exceeded.
pub fn translate(tools: &mut Tools, unit: &mut Unit, target: &Target) -> Result<Code, DynasmError> {
    if !target.options.identical {
        unit.items.iter_mut().filter(|it| !it.end).for_each(Item::make_call);
    }
    if !target.options.sse {
        unit.items.iter_mut().filter(|it| it.sse).for_each(Item::make_call);
    }
    loop {
        unit.place_sse();
        match attempt(tools, unit, target) {
            Ok(code) => return Ok(code),
            Err(Stop::Unsupported(k)) => {
                unit.items[k].make_call();
                *tools = Tools::default();
            }
            Err(Stop::Dynasm(e)) => return Err(e),
        }
    }
}

/// Why a translation was given up.
enum Stop {
    /// This instruction must be called, which the code before it did not reckon with.
    Unsupported(usize),
    Dynasm(DynasmError),
}

fn attempt(tools: &mut Tools, unit: &Unit, target: &Target) -> Result<Code, Stop> {
    let insns: Arc<[Insn]> = unit.items.iter().map(|it| it.insn).collect();
    let mut e = Emitter {
        a: &mut tools.asm,
        unit,
        options: target.options,
        bmi2: is_x86_feature_detected!("bmi2"),
        insns,
        flags: FlagState::default(),
        k: 0,
        budget_at: 0,
        budgeted: false,
        windows: Vec::new(),
        x87: false,
        note: Note::default(),
        sites: Vec::new(),
        slots: Vec::new(),
        cold: Vec::new(),
        pending: Vec::new(),
        encoder: &mut tools.encoder,
        first_slot: target.first_slot,
        second_token: target.second_token,
    };
    e.budget_at = e.place_budget();
    let need = e.need();
    let (host_entry, saved_entry) = e.entries(need);
    let mut became = Became::default();
    let mut starts = Vec::with_capacity(unit.items.len());
    for k in 0..unit.items.len() {
        e.k = k;
        starts.push(e.a.offset().0);
        e.item(&unit.items[k], &mut became).map_err(|Unsupported| Stop::Unsupported(k))?;
        e.resolve_pending(k);
    }
    if unit.items.last().is_none_or(|it| !it.end) {
        e.k = unit.items.len();
        e.check_budget_last();
        let last = e.note.insn();
        e.flush_all_notes().map_err(|Unsupported| Stop::Unsupported(last))?;
        let next = e.end_rip();
        e.jump_to(next);
    }
    let cold = e.a.offset().0;
    e.cold_code()?;
    let Emitter { a, slots, sites, .. } = e;
    let bytes = a.take().map_err(Stop::Dynasm)?;
    Ok(Code { bytes, host_entry, saved_entry, need, slots, sites, starts, cold, became })
}

impl Emitter<'_> {
    pub(super) fn items(&self) -> &[Item] {
        &self.unit.items
    }

    pub(super) fn is64(&self) -> bool {
        self.unit.key.mode.is64()
    }

    /// RIP behind the block.
    fn end_rip(&self) -> u64 {
        self.unit.items.last().map_or(self.unit.key.rip, |it| it.next(self.unit.key.mode))
    }

    /// Where to check the budget: where flags are clobbered anyway, or before the last instruction that overwrites them
    /// all.
    fn place_budget(&self) -> usize {
        if self.unit.second.is_some() {
            return 0;
        }
        // Before anything can leave the block.
        let side = self.items().iter().position(|it| it.i.is_jcc_short_or_near());
        let items = side.map_or(self.items(), |k| &self.items()[..=k]);
        if let Some(k) = items.iter().position(Item::is_site) {
            return k;
        }
        let end = items.len() - usize::from(side.is_some() || items.last().is_some_and(|it| it.end));
        items.iter().rposition(|it| it.full && it.reads == 0).unwrap_or(end)
    }

    /// What the block wants of the flags.
    fn need(&self) -> Need {
        for (k, it) in self.items().iter().enumerate() {
            if it.is_site() || k == self.budget_at {
                return Need::Saved;
            }
            if it.reads != 0 || it.writes != 0 && !it.full {
                return Need::Host;
            }
            if it.full {
                return Need::Nothing;
            }
        }
        Need::Saved
    }

    /// Emits the entries: offsets of the one for flags in RFLAGS and of the one for saved flags.
    fn entries(&mut self, need: Need) -> (usize, usize) {
        let first = self.a.offset().0;
        let entries = match need {
            Need::Nothing => {
                self.flags = FlagState { host: true, saved: true, recipe: None };
                (first, first)
            }
            Need::Saved => {
                self.emit_save();
                self.flags = FlagState { host: false, saved: true, recipe: None };
                (first, self.a.offset().0)
            }
            Need::Host => {
                self.emit_restore();
                self.flags = FlagState { host: true, saved: false, recipe: None };
                (self.a.offset().0, first)
            }
        };
        if let (Some(token), Some(_)) = (self.second_token, self.unit.second) {
            self.check_second_page(token);
        }
        entries
    }

    pub(super) fn emit_save(&mut self) {
        dynasm!(self.a ; .arch x64 ; pushfq ; lea rsp, [BYTE rsp + 8]);
    }

    fn emit_restore(&mut self) {
        dynasm!(self.a ; .arch x64
            ; mov rax, [BYTE rsp + FLAGS_BELOW]
            ; xchg al, ah
            ; add al, 0x76
            ; sahf
        );
    }

    /// Makes the flags be in RFLAGS. RAX is lost.
    pub(crate) fn need_host(&mut self) {
        if !self.flags.host {
            self.emit_restore();
            self.flags.host = true;
        }
    }

    /// Makes CF be in RFLAGS, for an instruction that overwrites all other flags.
    pub(super) fn need_carry(&mut self) {
        if !self.flags.host {
            dynasm!(self.a ; .arch x64 ; bt DWORD [BYTE rsp + FLAGS_BELOW], 0);
        }
    }

    /// Before code that clobbers RFLAGS.
    pub(crate) fn before_clobber(&mut self) {
        let f = self.flags;
        if f.host && !f.saved {
            let usable = f.recipe.filter(|r| self.options.lazy_flags && self.recipe_suffices(r));
            if usable.is_none() {
                self.emit_save();
                self.flags.saved = true;
            }
        }
        self.flags.host = false;
    }

    /// Are the flags, computable by `r` now, overwritten before anyone but a fault or an exit needs them, and stay
    /// computable until then?
    fn recipe_suffices(&self, r: &Recipe) -> bool {
        for it in &self.items()[self.k.min(self.items().len())..] {
            if it.reads != 0 {
                return false;
            }
            if it.full {
                return true;
            }
            if it.writes != 0 || r.uses(it.gpr_written) {
                return false;
            }
        }
        false
    }

    /// Will nobody see the flags instruction `k` leaves?
    pub(crate) fn unobserved(&self, k: usize) -> bool {
        for (n, it) in self.items().iter().enumerate().skip(k + 1) {
            if it.is_site() || it.reads != 0 || n == self.budget_at {
                return false;
            }
            if it.full {
                return true;
            }
        }
        false
    }

    /// After an instruction that wrote flags into RFLAGS.
    pub(crate) fn flags_written(&mut self, recipe: Option<Recipe>) {
        self.flags = FlagState { host: true, saved: false, recipe };
    }

    /// General registers in `mask` were written: recipes that need their old values are void.
    pub(super) fn registers_written(&mut self, mask: u16) {
        if self.flags.recipe.is_some_and(|r| r.uses(mask)) {
            self.flags.recipe = None;
        }
    }

    fn item(&mut self, it: &Item, became: &mut Became) -> Result<(), Unsupported> {
        self.flush_notes(it)?;
        if self.k == self.budget_at && !it.is_site() {
            self.check_budget();
        }
        if it.enters_sse {
            self.enter_sse();
        }
        match it.translate {
            Translate::Call => {
                self.call(it);
                became.called += 1;
            }
            Translate::Identical => {
                self.identical(it)?;
                became.identical += 1;
            }
            Translate::Emit(f) => {
                f(self, it)?;
                became.emitted += 1;
            }
        }
        if !it.is_call() && it.writes == 0 {
            self.registers_written(it.gpr_written);
        }
        self.move_notes(it);
        self.close_windows();
        Ok(())
    }

    /// The block calls the interpreter for this instruction.
    fn call(&mut self, it: &Item) {
        self.windows.clear();
        self.before_clobber();
        self.check_budget_here();
        let what = if it.end { What::Finish { count: 1 } } else { What::Execute { count: 1 } };
        let site = self.site(what);
        self.call_x87(it, site);
        self.go_slow(site);
        self.flags = FlagState { host: false, saved: true, recipe: None };
    }

    /// A label that leads out of the block, to the engine.
    pub(super) fn leave_label(&mut self) -> DynamicLabel {
        let site = self.site(What::Budget);
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        from
    }

    /// Straight-line way to a slow path and back to the next instruction.
    fn go_slow(&mut self, site: usize) {
        let address = std::ptr::from_ref(&*self.sites[site]) as i64;
        dynasm!(self.a ; .arch x64 ; mov rax, QWORD address);
        match self.sites[site].x87 {
            X87At::Stays => dynasm!(self.a ; .arch x64 ; jmp QWORD [BYTE rsp + SLOW]),
            _ => dynasm!(self.a ; .arch x64 ; jmp QWORD [rsp + SLOW_X87]),
        }
        self.sites[site].resume = self.a.offset().0 as u64;
    }

    /// A site before the current instruction.
    pub(super) fn site(&mut self, what: What) -> usize {
        let k = self.k;
        let rip = self.items().get(k).map_or_else(|| self.end_rip(), |it| it.rip);
        let flags = match self.flags {
            FlagState { saved: true, .. } => FlagsAt::Saved,
            FlagState { recipe: Some(r), .. } => FlagsAt::Recipe(r),
            _ => FlagsAt::Saved,
        };
        let done = if self.budgeted { self.items().len() as i64 } else { 0 };
        self.sites.push(Box::new(Site {
            insns: Arc::clone(&self.insns),
            index: k as u32,
            what,
            rip,
            delta: k as i64 - done,
            flags,
            lookup: false,
            block: self.unit.key,
            futile: Cell::new(0),
            note: self.note,
            x87: self.x87_at(what),
            resume: 0,
        }));
        self.sites.len() - 1
    }

    /// A label that leads to a slow path executing instructions up to number `until`, and back behind them.
    pub(super) fn slow_label(&mut self, until: usize) -> DynamicLabel {
        let count = (until - self.k + 1) as u32;
        let ends = self.items()[until].end;
        let what = if ends { What::Finish { count } } else { What::Execute { count } };
        let site = self.site(what);
        self.sites[site].lookup = self.items()[self.k].mem.is_some();
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        if !ends {
            self.pending.push(Pending { until, cold: self.cold.len() - 1 });
        }
        from
    }

    /// The slow path made last is not taken for want of a TLB entry.
    pub(super) fn not_a_lookup(&mut self) {
        if let Some(s) = self.sites.last_mut() {
            s.lookup = false;
        }
    }

    /// Gives slow paths that executed up to instruction `k` their way back.
    fn resolve_pending(&mut self, k: usize) {
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

    fn check_budget(&mut self) {
        if self.budgeted {
            return;
        }
        self.before_clobber();
        self.check_budget_here();
    }

    /// The budget check, where RFLAGS may be clobbered. Does nothing the second time.
    pub(super) fn check_budget_here(&mut self) {
        if self.budgeted {
            return;
        }
        let site = self.site(What::Budget);
        // What the site knows holds before the subtraction; the jump is after it.
        self.sites[site].delta -= self.items().len() as i64;
        self.budgeted = true;
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        let n = self.items().len() as i8;
        const { assert!(super::MAX_INSNS <= i8::MAX as usize) };
        dynasm!(self.a ; .arch x64 ; sub r12, BYTE n ; js =>from);
    }

    /// At the end of a block without any better place.
    pub(crate) fn check_budget_last(&mut self) {
        self.check_budget();
    }

    /// Makes sure the guest's SSE registers are in the host's. Windows stay.
    fn enter_sse(&mut self) {
        self.before_clobber();
        self.check_budget_here();
        let rest = (self.items().len() - self.k) as u32;
        let site = self.site(What::Finish { count: rest });
        let (from, back) = (self.a.new_dynamic_label(), self.a.new_dynamic_label());
        self.cold.push(Cold::Sse { from, site, back });
        dynasm!(self.a ; .arch x64 ; cmp DWORD [rsp + SSE], 0 ; je =>from ; =>back);
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
            self.slots[slot].token = Some(self.token_check(rip, from));
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
            self.slots[slot].token = Some(self.token_check(rip, exit));
        }
        dynasm!(self.a ; .arch x64 ; jmp =>exit);
        self.slots[slot].jump = self.a.offset().0 - 4;
        self.cold_exit(exit, slot);
        Ok(())
    }

    /// Stores what is not noted yet, on the way out through `slot`.
    fn store_notes(&mut self, note: Note, slot: usize) -> Result<(), Unsupported> {
        let Slot { host, saved, .. } = self.slots[slot];
        (self.note, self.flags) = (note, FlagState { host, saved, recipe: None });
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

    fn cold_code(&mut self) -> Result<(), Stop> {
        for n in 0..self.cold.len() {
            match self.cold[n] {
                Cold::Slow { from, site, resume } => self.cold_slow(from, site, resume),
                Cold::Sse { from, site, back } => self.cold_sse(from, site, back),
                Cold::Exit { from, slot } => self.cold_exit(from, slot),
                Cold::Side { from, slot, rest, note } => self.cold_side(from, slot, rest, note)?,
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

/// The host register of guest register `r`, if it has one.
pub(crate) fn host(r: u8) -> Option<u8> {
    HOST.get(usize::from(r)).copied().filter(|h| *h != IN_FRAME)
}
