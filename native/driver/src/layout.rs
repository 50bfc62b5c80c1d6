//! Job: how packets are cut into descriptors.
//! Before: a test or a row of the benchmark chooses.
//! After: `guest` builds chains accordingly.
//! Rules: any cut is allowed by virtio 1.3 section 2.7.4.3, so any can be made here.

use crate::header::LEN;

/// How a packet from the guest lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxLayout {
    /// Header, then the payload in one piece: Linux up to 6.16, and later for up to 32 KiB.
    HeaderAndPayload,
    /// Header, then pieces of at most so many bytes: Linux from 6.17 for more than 32 KiB.
    HeaderAndPieces(usize),
    /// All in one piece: the standard asks for no boundary at the header.
    OnePiece,
    /// Pieces of these lengths in turn, from the first byte of the header on, the last length for all the rest.
    Cuts(Vec<usize>),
}

impl TxLayout {
    /// What Linux from 6.17 does: pages of 32 KiB.
    pub fn linux() -> Self {
        Self::HeaderAndPieces(32 * 1024)
    }

    /// The lengths of the pieces for `payload` bytes.
    pub fn lengths(&self, payload: usize) -> Vec<usize> {
        let total = LEN + payload;
        match self {
            Self::HeaderAndPayload if payload > 0 => vec![LEN, payload],
            Self::HeaderAndPayload => vec![LEN],
            Self::HeaderAndPieces(len) => cut(total, [LEN, *len]),
            Self::OnePiece => vec![total],
            Self::Cuts(lens) => cut(total, lens.iter().copied()),
        }
    }
}

/// How a receive buffer of the guest lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RxLayout {
    /// One piece of so many bytes.
    OnePiece(usize),
    /// Pieces of these lengths.
    Pieces(Vec<usize>),
}

impl RxLayout {
    /// What Linux posts: a page without the overhead of its own bookkeeping.
    pub fn linux() -> Self {
        Self::OnePiece(3776)
    }

    /// A header of its own, and so much room for payload: what Linux posted before 6.2.
    pub fn header_and(len: usize) -> Self {
        Self::Pieces(vec![LEN, len])
    }

    /// The lengths of the pieces.
    pub fn lengths(&self) -> Vec<usize> {
        match self {
            Self::OnePiece(len) => vec![*len],
            Self::Pieces(lens) => lens.clone(),
        }
    }

    /// The length of all pieces.
    pub fn total(&self) -> usize {
        self.lengths().iter().sum()
    }
}

/// Cuts `total` into the given lengths, the last one repeated.
fn cut(total: usize, lens: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut pieces = Vec::new();
    let mut left = total;
    let mut lens = lens.into_iter();
    let mut len = left;
    while left > 0 {
        len = lens.next().unwrap_or(len).max(1);
        pieces.push(len.min(left));
        left -= len.min(left);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_kib_in_the_layout_of_linux_have_three_pieces() {
        assert_eq!(TxLayout::linux().lengths(65536), [44, 32768, 32768]);
        assert_eq!(TxLayout::linux().lengths(0), [44]);
        assert_eq!(TxLayout::Cuts(vec![1, 2, 30]).lengths(10), [1, 2, 30, 21]);
    }
}
