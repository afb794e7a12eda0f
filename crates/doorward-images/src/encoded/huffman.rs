//! JPEG's entropy coding (ITU-T T.81, annexes C and F), read to the last bit.
//!
//! Decoders differ most in what they make of damaged data, so there is nothing lenient here: data
//! that ends too early or too late, codes that stand for nothing and values that no picture gives
//! are errors.

/// A code table.
pub(super) struct Table {
    /// For the next eight bits, length and symbol of a code of at most eight bits; length 0:
    /// longer.
    short: [(u8, u8); 256],
    /// By length, from 1: one past the last code of that length, or 0, and what to add for its
    /// index.
    ends: [(u32, i32); 17],
    symbols: Vec<u8>,
}

/// The coefficients that a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The code lengths of a block's mean.
    Dc,
    /// The code lengths of all other coefficients.
    Ac,
}

/// Bits of one stretch between restart markers, without stuffing.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
    held: u64,
    count: u32,
}

/// Why data cannot be read.
pub(super) type Reason = &'static str;

// === impl Table ===

impl Table {
    /// A table from the content of its segment, and what follows it there.
    pub(super) fn read(class: Class, content: &[u8]) -> Result<(Self, &[u8]), Reason> {
        const CUT: Reason = "a Huffman table is short";
        let (counts, rest) = content.split_first_chunk::<16>().ok_or(CUT)?;
        let total = counts.iter().map(|&count| usize::from(count)).sum();
        let (symbols, rest) = rest.split_at_checked(total).ok_or(CUT)?;
        let known = |symbol: &u8| match class {
            Class::Dc => *symbol <= 11,
            // Zero bits only for the end of the block and for sixteen zeros.
            Class::Ac => matches!(symbol & 15, 1..=10) || matches!(symbol, 0 | 0xf0),
        };
        if !symbols.iter().all(known) {
            return Err("a Huffman table has symbols that baseline images do not have");
        }
        let mut table =
            Self { short: [(0, 0); 256], ends: [(0, 0); 17], symbols: symbols.to_vec() };
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            let count = usize::from(counts[length as usize - 1]);
            table.ends[length as usize].1 = index as i32 - code as i32;
            for _ in 0..count {
                if code >= 1 << length {
                    return Err("a Huffman table has more codes than fit");
                }
                if length <= 8 {
                    let first = (code << (8 - length)) as usize;
                    let entry = (length as u8, symbols[index]);
                    table.short[first..first + (1 << (8 - length))].fill(entry);
                }
                code += 1;
                index += 1;
            }
            table.ends[length as usize].0 = if count > 0 { code } else { 0 };
            code <<= 1;
        }
        Ok((table, rest))
    }
}

// === impl Bits ===

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, held: 0, count: 0 }
    }

    /// An error unless all that is left is padding.
    pub(super) fn end(&self) -> Result<(), Reason> {
        match self.next == self.bytes.len() && self.count < 8 {
            true => Ok(()),
            false => Err("its data goes on behind the last block"),
        }
    }

    /// Reads the coefficients of one block in zigzag order, the first one as a difference.
    pub(super) fn block(&mut self, dc: &Table, ac: &Table) -> Result<[i32; 64], Reason> {
        let mut block = [0; 64];
        let size = self.symbol(dc)?;
        block[0] = self.value(size)?;
        let mut at = 1;
        while at < 64 {
            let symbol = self.symbol(ac)?;
            let (zeros, size) = (usize::from(symbol >> 4), symbol & 15);
            if size == 0 {
                if zeros == 0 {
                    break;
                }
                at += 16;
                if at > 63 {
                    return Err("a block has more than 64 coefficients");
                }
                continue;
            }
            at += zeros;
            let value = self.value(size)?;
            *block.get_mut(at).ok_or("a block has more than 64 coefficients")? = value;
            at += 1;
        }
        Ok(block)
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, Reason> {
        const NONE: Reason = "its data has a code that stands for nothing, or ends too early";
        self.fill();
        let (length, symbol) = table.short[self.peek(8) as usize];
        if length > 0 {
            self.take(u32::from(length)).ok_or(NONE)?;
            return Ok(symbol);
        }
        for length in 9..=16 {
            let code = self.peek(length);
            let (end, offset) = table.ends[length as usize];
            if code < end {
                self.take(length).ok_or(NONE)?;
                let index = usize::try_from(code as i32 + offset).map_err(|_| NONE)?;
                return table.symbols.get(index).copied().ok_or(NONE);
            }
        }
        Err(NONE)
    }

    /// A value of so many bits, as its sign is coded.
    fn value(&mut self, size: u8) -> Result<i32, Reason> {
        if size == 0 {
            return Ok(0);
        }
        let size = u32::from(size);
        self.fill();
        let bits = self.take(size).ok_or("its data ends too early")? as i32;
        Ok(if bits < 1 << (size - 1) { bits - (1 << size) + 1 } else { bits })
    }

    /// At least 32 bits, if there are as many.
    fn fill(&mut self) {
        while self.count <= 32 && self.next < self.bytes.len() {
            self.held = self.held << 8 | u64::from(self.bytes[self.next]);
            self.next += 1;
            self.count += 8;
        }
    }

    /// The next bits, with zeros behind the last one.
    fn peek(&self, length: u32) -> u32 {
        let bits = match self.count.checked_sub(length) {
            Some(rest) => self.held >> rest,
            None => self.held << (length - self.count),
        };
        (bits & ((1 << length) - 1)) as u32
    }

    fn take(&mut self, length: u32) -> Option<u32> {
        let bits = self.peek(length);
        self.count = self.count.checked_sub(length)?;
        Some(bits)
    }
}
