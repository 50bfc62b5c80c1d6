//! Job: a table whose entries are found by index and never mistaken for a later tenant of the same index.
//! Before, after: `mux` keeps connections in one, `device` the sockets of host applications in another.
//! Rules: an [`Id`] names one tenant; once that is removed, the id finds nothing, for ever.

/// Names one entry of a [`Slab`], through its index and a count of the tenants before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Place in the table.
    pub index: u32,
    /// How many tenants the place had before.
    pub generation: u32,
}

/// One place of the table.
#[derive(Debug)]
struct Place<T> {
    /// Tenants that left so far.
    generation: u32,
    /// The tenant, if there is one.
    value: Option<T>,
}

impl Id {
    /// Both numbers in one, for those who keep a single one: the kernel, and the control plane.
    pub fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    /// Back from one number.
    pub fn from_u64(number: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        Self { index: u32::from_le_bytes([a, b, c, d]), generation: u32::from_le_bytes([e, f, g, h]) }
    }
}

/// A growing table with reuse of free places.
#[derive(Debug)]
pub struct Slab<T> {
    /// All places, taken and free.
    places: Vec<Place<T>>,
    /// Indices of the free ones, the last freed on top.
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id that the next [`insert`](Self::insert) returns.
    pub fn next_id(&self) -> Id {
        match self.free.last() {
            Some(&index) => Id { index, generation: self.places[index as usize].generation },
            None => Id {
                index: u32::try_from(self.places.len()).expect("file descriptors run out before 2^32 entries"),
                generation: 0,
            },
        }
    }

    /// Adds an entry.
    pub fn insert(&mut self, value: T) -> Id {
        let id = self.next_id();
        if self.free.pop().is_some() {
            self.places[id.index as usize].value = Some(value);
        } else {
            self.places.push(Place { generation: 0, value: Some(value) });
        }
        id
    }

    /// The entry, unless it was removed.
    pub fn get(&self, id: Id) -> Option<&T> {
        self.places.get(id.index as usize).filter(|place| place.generation == id.generation)?.value.as_ref()
    }

    /// The entry to change, unless it was removed.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.places.get_mut(id.index as usize).filter(|place| place.generation == id.generation)?.value.as_mut()
    }

    /// Takes the entry out; its id is dead from now on.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let place = self.places.get_mut(id.index as usize).filter(|place| place.generation == id.generation)?;
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    /// The ids of all entries.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        self.places
            .iter()
            .zip(0..)
            .filter(|(place, _)| place.value.is_some())
            .map(|(place, index)| Id { index, generation: place.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing_after_its_place_was_reused() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(first.index, second.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.ids().collect::<Vec<_>>(), [second]);
    }
}
