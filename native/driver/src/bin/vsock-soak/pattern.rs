//! Job: the bytes of a stream, made from its seed, and checked against it.
//! Before: a conversation says which stream, and where in it.
//! After: bytes to send, or the place of the first wrong one.
//! Rules: any byte that is missing, twice or of another stream is noticed within eight bytes.

/// Bytes made at once.
const WORD: usize = 8;

/// A source of numbers that look random and are the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next number of a range, the end excluded.
    pub fn within(&mut self, range: std::ops::Range<u32>) -> u32 {
        let span = u64::from(range.end - range.start);
        range.start + u32::try_from(self.next() % span).expect("less than a span of u32")
    }
}

/// The last step of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of one direction of one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    /// The eight bytes that begin at `index * 8`.
    fn word(self, index: u64) -> [u8; WORD] {
        mix(self.0 ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
    }

    /// Fills `bytes` with those from `at` on.
    pub fn fill(self, at: u64, bytes: &mut [u8]) {
        self.walk(at, bytes.len(), |place, word| {
            bytes[place..place + word.len()].copy_from_slice(word);
            true
        });
    }

    /// Where `bytes` first differ from those at `at`, if they do.
    pub fn wrong(self, at: u64, bytes: &[u8]) -> Option<u64> {
        let mut wrong = None;
        self.walk(at, bytes.len(), |place, word| {
            let differs = bytes[place..place + word.len()].iter().zip(word).position(|(a, b)| a != b);
            wrong = differs.map(|offset| at + (place + offset) as u64);
            wrong.is_none()
        });
        wrong
    }

    /// Goes through `len` bytes from `at` on, for as long as `each` wants.
    fn walk(self, at: u64, len: usize, mut each: impl FnMut(usize, &[u8]) -> bool) {
        let mut place = 0;
        while place < len {
            let here = at + place as u64;
            let skip = usize::try_from(here % WORD as u64).expect("less than eight");
            let word = self.word(here / WORD as u64);
            let part = &word[skip..WORD.min(skip + len - place)];
            if !each(place, part) {
                return;
            }
            place += part.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_stream_are_the_stream() {
        let mut whole = [0; 100];
        Pattern(7).fill(3, &mut whole);
        for cut in 0..100 {
            let mut pieces = [0; 100];
            Pattern(7).fill(3, &mut pieces[..cut]);
            Pattern(7).fill(3 + cut as u64, &mut pieces[cut..]);
            assert_eq!(pieces, whole);
            assert_eq!(Pattern(7).wrong(3 + cut as u64, &whole[cut..]), None);
        }
    }

    #[test]
    fn a_wrong_byte_and_a_lost_byte_are_found() {
        let mut bytes = [0; 100];
        Pattern(7).fill(0, &mut bytes);
        assert!(Pattern(7).wrong(1, &bytes).is_some());
        assert!(Pattern(8).wrong(0, &bytes).is_some());
        bytes[41] ^= 1;
        assert_eq!(Pattern(7).wrong(0, &bytes), Some(41));
    }
}
