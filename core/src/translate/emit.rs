//! The emitter: host code for one block. Owns the state carried from instruction to instruction (where the guest's flags
//! are, the open windows, whether the budget was checked) and the order of entries, body and cold code.

use super::exits::{Cold, Pending, Slot};
use super::hot::{Hot, Plan};
use super::recipe::Recipe;
use super::site::{FlagsAt, Site, What};
use super::unit::{Item, Unit};
use super::window::Window;
use super::x87::Note;
use crate::engine::JitOptions;
use crate::isa::Translate;
use crate::isa::insn::Insn;
use crate::jit::frame::{FLAGS_BELOW, SSE};
use crate::jit::stubs::{HOST, IN_FRAME};
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmError, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Encoder, Mnemonic};
use std::cell::Cell;
use std::ops::Range;
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
    /// If `saved`: that was in a loop's first iteration, in later ones they are computed so.
    pub later: Option<Recipe>,
}

impl FlagState {
    pub const SAVED: Self = Self { host: false, saved: true, recipe: None, later: None };
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
    /// Lines of the frame it uses.
    pub lines: Range<u32>,
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
    pub(super) slots: Vec<Slot>,
    pub(super) cold: Vec<Cold>,
    pub(super) pending: Vec<Pending>,
    pub(super) encoder: &'a mut Encoder,
    /// First link-slot number of the block.
    pub(super) first_slot: u32,
    /// The block is translated for speed.
    pub(super) hot: Option<Hot>,
}

/// What the emitter needs besides the unit.
#[derive(Clone, Debug)]
pub struct Target {
    pub options: JitOptions,
    pub first_slot: u32,
    /// The block is to be translated for speed.
    pub hot: Option<Plan>,
}

/// Translates a unit. Fails only if an internal limit (a displacement) is exceeded.
pub fn translate(tools: &mut Tools, unit: &mut Unit, target: &Target) -> Result<Code, DynasmError> {
    if !target.options.identical {
        unit.items.iter_mut().filter(|it| !it.end).for_each(Item::make_call);
    }
    if !target.options.system {
        unit.items.iter_mut().filter(|it| it.system).for_each(Item::make_call);
    }
    if !target.options.sse {
        unit.items.iter_mut().filter(|it| it.sse).for_each(Item::make_call);
    }
    loop {
        unit.place_sse(target.hot.is_some());
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
pub(super) enum Stop {
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
        hot: target.hot.as_ref().and_then(|p| Hot::new(unit, &target.options, p)),
    };
    e.budget_at = e.place_budget();
    let need = if e.hot.is_some() { Need::Saved } else { e.need() };
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
        e.check_budget();
        let last = e.note.insn();
        e.flush_all_notes().map_err(|Unsupported| Stop::Unsupported(last))?;
        let next = e.end_rip();
        e.jump_to(next);
    }
    let cold = e.a.offset().0;
    e.cold_code()?;
    let Emitter { a, slots, sites, hot, .. } = e;
    let bytes = a.take().map_err(Stop::Dynasm)?;
    let lines = hot.as_ref().map_or(0..0, Hot::used);
    Ok(Code { bytes, host_entry, saved_entry, need, slots, sites, starts, cold, became, lines })
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
                self.flags = FlagState { host: true, ..FlagState::SAVED };
                (first, first)
            }
            Need::Saved => {
                self.emit_save();
                self.flags = FlagState::SAVED;
                (first, self.a.offset().0)
            }
            Need::Host => {
                self.emit_restore();
                self.flags = FlagState { host: true, ..FlagState::default() };
                (self.a.offset().0, first)
            }
        };
        if let Some(second) = self.unit.second {
            self.check_second_page(second);
        }
        if self.hot.is_some() {
            self.top();
        }
        entries
    }

    pub(super) fn emit_save(&mut self) {
        dynasm!(self.a ; .arch x64 ; pushfq ; lea rsp, [BYTE rsp + 8]);
    }

    pub(super) fn emit_restore(&mut self) {
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
                (self.flags.saved, self.flags.later) = (true, None);
            }
        }
        self.flags.host = false;
    }

    /// Are the flags, computable by `r` now, overwritten before anyone but a fault or an exit needs them, and stay
    /// computable until then?
    pub(super) fn recipe_suffices(&self, r: &Recipe) -> bool {
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
        self.flags = FlagState { host: true, recipe, ..FlagState::default() };
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
        // A block translated for speed has done this at its top.
        if it.enters_sse && !(self.k == 0 && self.hot.is_some()) {
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
        // The interrupt STI enables comes behind the next instruction.
        let last = it.end || it.i.mnemonic() == Mnemonic::Sti;
        let what = if last { What::Finish { count: 1 } } else { What::Execute { count: 1 } };
        let site = self.site(what);
        self.call_x87(it, site);
        self.go_slow(site);
        self.flags = FlagState::SAVED;
    }

    /// A site before the current instruction.
    pub(super) fn site(&mut self, what: What) -> usize {
        let k = self.k;
        let rip = self.items().get(k).map_or_else(|| self.end_rip(), |it| it.rip);
        let flags = match self.flags {
            FlagState { saved: true, later: Some(r), .. } => FlagsAt::Loop(r),
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
            line: None,
            since: Cell::new(0),
            note: self.note,
            x87: self.x87_at(what),
            resume: 0,
        }));
        self.sites.len() - 1
    }

    /// The budget check.
    fn check_budget(&mut self) {
        if !self.budgeted {
            self.before_clobber();
            self.check_budget_here();
        }
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

    /// Makes sure the guest's SSE registers are in the host's. Windows stay.
    pub(super) fn enter_sse(&mut self) {
        self.before_clobber();
        self.check_budget_here();
        let rest = (self.items().len() - self.k) as u32;
        let site = self.site(What::Finish { count: rest });
        let (from, back) = (self.a.new_dynamic_label(), self.a.new_dynamic_label());
        self.cold.push(Cold::Sse { from, site, back });
        dynasm!(self.a ; .arch x64 ; cmp DWORD [rsp + SSE], 0 ; je =>from ; =>back);
    }
}

/// The host register of guest register `r`, if it has one.
pub(crate) fn host(r: u8) -> Option<u8> {
    HOST.get(usize::from(r)).copied().filter(|h| *h != IN_FRAME)
}
