//! Job: the lengths of messages that wait, in as few bytes as they need.
//! Before: `messages` has one more whole message.
//! After: it sends them one by one.
//! Rules: never more bytes than the messages themselves have, so that many short ones cost little beyond the guest's credit.

use super::stream::NoMemory;
use std::collections::VecDeque;

/// Bits of a length in each byte; the highest bit says that more bytes follow.
const BITS: u32 = 7;
/// The most bytes that one takes.
const MOST: usize = usize::BITS.div_ceil(BITS) as usize;
/// More bytes follow.
const MORE: u8 = 1 << BITS;

/// Lengths in order, the lowest bits of each first.
#[derive(Debug, Default)]
pub struct Lengths(VecDeque<u8>);

impl Lengths {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes room for one more.
    pub fn make_room(&mut self) -> Result<(), NoMemory> {
        self.0.try_reserve(MOST).map_err(|_| NoMemory)
    }

    /// Adds one.
    pub fn push(&mut self, mut length: usize) {
        while length >= usize::from(MORE) {
            self.0.push_back(length.to_le_bytes()[0] | MORE);
            length >>= BITS;
        }
        self.0.push_back(length.to_le_bytes()[0]);
    }

    /// The first one, and how many bytes it takes here.
    fn first(&self) -> Option<(usize, usize)> {
        let mut length = 0;
        for (count, byte) in (0..).zip(&self.0) {
            length |= usize::from(byte & !MORE) << (BITS * count);
            if byte & MORE == 0 {
                return Some((length, count as usize + 1));
            }
        }
        None
    }

    /// The first one.
    pub fn front(&self) -> Option<usize> {
        self.first().map(|(length, _)| length)
    }

    /// Takes the first one out.
    pub fn pop(&mut self) {
        let bytes = self.first().map_or(0, |(_, bytes)| bytes);
        self.0.drain(..bytes);
        if self.0.is_empty() {
            self.clear();
        }
    }

    /// Forgets all, and gives the memory back.
    pub fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What goes in comes out, in order, and takes no more bytes than the messages.
        #[test]
        fn lengths_come_back_in_order_and_in_no_more_bytes_than_the_messages(
            given in proptest::collection::vec(prop_oneof![1_usize..300, 1_usize..1 << 20, Just(usize::MAX)], 1..50),
        ) {
            let mut lengths = Lengths::default();
            for &length in &given {
                let before = lengths.0.len();
                lengths.push(length);
                prop_assert!(lengths.0.len() - before <= length);
            }
            for &length in &given {
                prop_assert_eq!(lengths.front(), Some(length));
                lengths.pop();
            }
            prop_assert!(lengths.is_empty() && lengths.front().is_none());
        }
    }
}
