//! Job: bytes of a fuzzer to decisions.
//! Before: libFuzzer, a file of the corpus, or proptest.
//! After: the targets.
//! Rules: every sequence of bytes means something, and always the same: files of the corpus depend on it. Beyond the end
//! there are zeroes.

/// Bytes that were not used yet.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether there is nothing more to decide by.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// The next `N` bytes.
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A number of 8 bits.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Yes or no.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `end`, which is 65536 at the most and not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(if end <= 256 { u16::from(self.u8()) } else { self.u16() }) % end
    }

    /// A length: mostly small, sometimes as large as `most`, seldom 0.
    pub fn length(&mut self, most: usize) -> usize {
        let raw = usize::from(self.u16());
        // The lowest two bits choose the size, the others the number.
        let number = raw >> 2;
        match raw & 3 {
            0 => number % 200,
            1 => number % 5000,
            2 => number * 8,
            _ => most.saturating_sub(number % 8),
        }
        .min(most)
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
