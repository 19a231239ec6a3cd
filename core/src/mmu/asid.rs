//! The pool of address spaces. An ASID names a set of TLB arrays and the shadow roots of one [`Paging`] value:
//! table base, paging mode and the control bits that decide rights. The guest's PCIDs need no ASIDs of their own:
//! the TLB is coherent, so two PCIDs with the same tables may share all entries.
//!
//! Bounded; the least recently used space that no vCPU runs in is recycled.

use super::shadow::NodeId;
use super::walk::{Format, Paging};
use crate::addr::Asid;

/// Address spaces, the first of which is never used: it is the one a vCPU has before its first switch.
pub const ASIDS: usize = 64;

/// One address space.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub paging: Paging,
    /// Shadow roots; PAE mode has one per PDPTE register.
    pub roots: [Option<NodeId>; 4],
    /// When it was last switched to.
    used: u64,
}

/// The pool.
pub struct Spaces {
    spaces: Vec<Space>,
    clock: u64,
}

impl Default for Spaces {
    fn default() -> Self {
        Self { spaces: vec![Space { paging: Paging::default(), roots: [None; 4], used: 0 }], clock: 0 }
    }
}

impl Spaces {
    pub fn get(&self, asid: Asid) -> &Space {
        &self.spaces[asid.0 as usize]
    }

    /// The live address spaces.
    pub fn iter(&self) -> impl Iterator<Item = (Asid, &Space)> {
        self.spaces.iter().enumerate().skip(1).map(|(i, s)| (Asid(i as u16), s))
    }

    /// When `asid` was last switched to, in switches.
    pub fn last_used(&self, asid: Asid) -> u64 {
        self.get(asid).used
    }

    /// The ASID of `paging`, if it has one; marks it used.
    pub fn find(&mut self, paging: &Paging) -> Option<Asid> {
        let (asid, _) = self.iter().find(|(_, s)| s.paging == *paging)?;
        self.touch(asid);
        Some(asid)
    }

    /// Marks a space used now.
    pub fn touch(&mut self, asid: Asid) {
        self.clock += 1;
        self.spaces[asid.0 as usize].used = self.clock;
    }

    /// The ASID to recycle for one more space: `None` while the pool may still grow. `busy`: ASIDs vCPUs run in.
    pub fn victim(&self, busy: u64) -> Option<Asid> {
        if self.spaces.len() < ASIDS {
            return None;
        }
        let free = |(asid, _): &(Asid, &Space)| busy >> asid.0 & 1 == 0;
        let least = self.iter().filter(free).min_by_key(|(_, s)| s.used);
        // With every space busy (as many vCPUs as ASIDs), take any.
        Some(least.map_or(Asid(1), |(asid, _)| asid))
    }

    /// Gives `paging` the recycled `asid`, or a new one. The caller has emptied what the old space had.
    pub fn assign(&mut self, asid: Option<Asid>, paging: Paging) -> Asid {
        self.clock += 1;
        let space = Space { paging, roots: [None; 4], used: self.clock };
        match asid {
            Some(a) => {
                self.spaces[a.0 as usize] = space;
                a
            }
            None => {
                self.spaces.push(space);
                Asid(self.spaces.len() as u16 - 1)
            }
        }
    }

    /// Which root of a space `lin` starts at.
    pub const fn root_index(format: Format, lin: u64) -> usize {
        match format {
            Format::Pae => (lin >> 30) as usize & 3,
            _ => 0,
        }
    }

    pub fn set_root(&mut self, asid: Asid, index: usize, node: Option<NodeId>) {
        self.spaces[asid.0 as usize].roots[index & 3] = node;
    }

    /// Removes `node` from the roots of `asid`.
    pub fn unroot(&mut self, asid: Asid, node: NodeId) {
        for r in &mut self.spaces[asid.0 as usize].roots {
            if *r == Some(node) {
                *r = None;
            }
        }
    }

    /// Forgets all shadow roots.
    pub fn forget_roots(&mut self) {
        for s in &mut self.spaces {
            s.roots = [None; 4];
        }
    }

    /// Linear bases at which `node` is a root of `asid`.
    pub fn bases(&self, asid: Asid, node: NodeId) -> impl Iterator<Item = u64> {
        let roots = self.get(asid).roots;
        (0..4u64).filter(move |i| roots[*i as usize] == Some(node)).map(|i| i << 30)
    }
}
