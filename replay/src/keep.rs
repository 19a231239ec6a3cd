//! Checkpoints of a machine that nothing else keeps the history of: taking them, and putting the machine back to them.

use crate::format::TraceError;
use crate::history::{Checkpoint, Stretch};
use crate::output::OutputDigest;
use crate::pages::{PAGE, Page, PageMap, PageStore, Unpacker};
use crate::timeline::TimelineError;
use retrovisor_core::machine::vm::Vm;
use std::sync::Arc;

/// Gives memory, which held `base` when it was last looked at, the contents of `pages`: what differs, and what was written
/// since. `base` is then what it holds, also after an error.
pub(crate) fn restore_memory(
    vm: &mut Vm,
    base: &mut PageMap,
    pages: &PageMap,
    unpacker: &mut Unpacker,
) -> Result<(), TraceError> {
    let mut todo: Vec<(usize, Option<Arc<Page>>)> = Vec::new();
    base.diff(pages, &mut |n, page| todo.push((n, page.cloned())));
    let known = todo.len();
    let written = vm.take_written();
    let also = written.iter().filter(|n| todo[..known].binary_search_by_key(*n, |t| t.0).is_err());
    let also: Vec<_> = also.map(|n| (*n, pages.get(*n).cloned())).collect();
    todo.extend(also);
    todo.sort_by_key(|(_, page)| page.as_ref().and_then(|p| p.place()));
    *base = pages.clone();
    let (mut contents, mut result) = ([0; PAGE], Ok(()));
    for (n, page) in todo {
        contents.fill(0);
        if let Some(Err(e)) = page.map(|p| p.read(unpacker, &mut contents)) {
            contents.fill(0);
            base.set(n, None);
            result = result.and(Err(e));
        }
        vm.restore_page(n, &contents);
    }
    vm.take_footprint();
    result
}

/// Takes checkpoints of one machine, and restores them into it.
pub struct Keeper {
    /// What memory held when it was last looked at.
    base: PageMap,
    store: PageStore,
    open: Stretch,
    unpacker: Unpacker,
}

impl Keeper {
    /// For `vm`, of which no checkpoint was taken yet.
    pub fn new(vm: &Vm) -> Self {
        Self::holding(vm, PageMap::new(vm.sys.mem.flags.len()))
    }

    /// For `vm`, whose memory was given the contents of `pages`, and in which nothing else is looked at.
    pub fn holding(vm: &Vm, pages: PageMap) -> Self {
        Self {
            base: pages,
            store: PageStore::default(),
            open: Stretch::begin(vm.when().icount),
            unpacker: Unpacker::new(),
        }
    }

    /// What accounts for pages.
    pub fn store(&self) -> &PageStore {
        &self.store
    }

    /// A checkpoint of `vm`, which has just arrived where it stands.
    pub fn capture(&mut self, vm: &mut Vm, output: &OutputDigest) -> Checkpoint {
        let at = vm.when();
        let written = vm.take_written();
        for page in &written {
            self.base.set(*page, self.store.page(vm.sys.mem.ram.page(*page)));
        }
        self.store.hand_on();
        self.open.add(&written, &vm.take_footprint());
        Checkpoint {
            at,
            state: vm.save_state().into(),
            pages: self.base.clone(),
            output: output.snapshot(),
            stretch: std::mem::replace(&mut self.open, Stretch::begin(at.icount)),
            dense: false,
            proven: true,
        }
    }

    /// Gives `vm` the memory and the state of a checkpoint; its port and its output are its owner's business.
    ///
    /// # Errors
    /// If they are no state of this machine, or in a file that cannot be read.
    pub fn restore(&mut self, vm: &mut Vm, to: &Checkpoint) -> Result<(), TimelineError> {
        restore_memory(vm, &mut self.base, &to.pages, &mut self.unpacker)?;
        self.open = Stretch::begin(to.at.icount);
        Ok(vm.load_state(&to.state)?)
    }
}
