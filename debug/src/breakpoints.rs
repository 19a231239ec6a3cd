//! The breakpoints and watchpoints of all clients: a reference-counted set. A point is armed in the engine while
//! anybody wants it; it is an address, never a byte in guest memory, so it works before the code is loaded.

use retrovisor_core::Gva;
use retrovisor_core::engine::hooks::Watch;
use std::collections::{BTreeMap, BTreeSet};

/// Identifies an attached client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// Something to stop at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Point {
    /// Before the instruction at this linear address.
    Break(Gva),
    /// After an instruction that touches this place.
    Watch(Watch),
}

/// All points, with who wants each how often.
#[derive(Clone, Debug, Default)]
pub struct BreakpointSet {
    wanted: BTreeMap<Point, BTreeMap<ClientId, u32>>,
}

impl BreakpointSet {
    /// Adds one reference. True if the point was not armed before.
    pub fn insert(&mut self, client: ClientId, point: Point) -> bool {
        let owners = self.wanted.entry(point).or_default();
        let first = owners.is_empty();
        *owners.entry(client).or_insert(0) += 1;
        first
    }

    /// Drops one reference of `client`. False if it held none.
    pub fn remove(&mut self, client: ClientId, point: Point) -> bool {
        let Some(owners) = self.wanted.get_mut(&point) else { return false };
        let Some(count) = owners.get_mut(&client) else { return false };
        *count -= 1;
        if *count == 0 {
            owners.remove(&client);
        }
        if owners.is_empty() {
            self.wanted.remove(&point);
        }
        true
    }

    /// Drops everything `client` holds.
    pub fn remove_client(&mut self, client: ClientId) {
        self.wanted.retain(|_, owners| {
            owners.remove(&client);
            !owners.is_empty()
        });
    }

    /// Linear addresses to stop at.
    pub fn breakpoints(&self) -> BTreeSet<u64> {
        let address = |p: &Point| if let Point::Break(at) = p { Some(at.0) } else { None };
        self.wanted.keys().filter_map(address).collect()
    }

    /// Places to watch.
    pub fn watches(&self) -> Vec<Watch> {
        self.wanted.keys().filter_map(|p| if let Point::Watch(w) = p { Some(*w) } else { None }).collect()
    }

    /// Every point with the number of clients that hold it, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Point, usize)> + '_ {
        self.wanted.iter().map(|(p, owners)| (*p, owners.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    #[test]
    fn point_stays_until_last_client_removes_it() {
        let mut set = BreakpointSet::default();
        let p = Point::Break(Gva(0x1000));
        assert!(set.insert(A, p));
        assert!(!set.insert(B, p));
        assert!(set.remove(A, p));
        assert!(set.breakpoints().contains(&0x1000));
        assert!(!set.remove(A, p), "A holds no reference any more");
        assert!(set.remove(B, p));
        assert!(set.breakpoints().is_empty());
    }

    #[test]
    fn one_client_can_hold_a_point_twice() {
        let mut set = BreakpointSet::default();
        let p = Point::Break(Gva(1));
        set.insert(A, p);
        set.insert(A, p);
        set.remove(A, p);
        assert_eq!(set.breakpoints().len(), 1);
        set.remove(A, p);
        assert_eq!(set.breakpoints().len(), 0);
    }

    #[test]
    fn detaching_client_takes_only_its_own_points() {
        let mut set = BreakpointSet::default();
        set.insert(A, Point::Break(Gva(1)));
        set.insert(A, Point::Break(Gva(2)));
        set.insert(B, Point::Break(Gva(2)));
        set.remove_client(A);
        assert_eq!(set.breakpoints().into_iter().collect::<Vec<_>>(), [2]);
    }
}
