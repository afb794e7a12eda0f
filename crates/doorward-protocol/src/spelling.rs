//! JSON in the firewall's own spelling, quick where numbers repeat: an eight-bit image has at most
//! 256 of them a channel.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CompactFormatter, Formatter};

/// Bytes that a number takes, about.
const NUMBER: usize = 12;

/// The longest text that is remembered: longer than any `f32` in its fewest digits.
const LONGEST: usize = 24;

/// Numbers that are remembered, as a power of two.
const PLACES: u32 = 12;

/// Writes what `serde_json` does, and remembers how numbers were spelled, from the first one on.
#[derive(Default)]
struct Speller(Vec<Spelled>);

/// A number and its text; no number has an empty one.
#[derive(Clone, Copy)]
struct Spelled {
    bits: u32,
    length: u8,
    text: [u8; LONGEST],
}

/// `value`, which holds about `numbers` numbers, as JSON. Each has the fewest digits that give the
/// same `f32` again.
pub(super) fn to_vec(value: &impl Serialize, numbers: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(numbers * NUMBER);
    value
        .serialize(&mut Serializer::with_formatter(&mut body, Speller::default()))
        .expect("keys are strings and writing to memory cannot fail");
    body
}

// === impl Speller ===

impl Formatter for Speller {
    fn write_f32<W: ?Sized + Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        if self.0.is_empty() {
            self.0 = vec![Spelled { bits: 0, length: 0, text: [0; LONGEST] }; 1 << PLACES];
        }
        let bits = value.to_bits();
        // Fibonacci hashing: neighbours of a scale get places of their own.
        let place = bits.wrapping_mul(0x9e37_79b1) >> (u32::BITS - PLACES);
        let spelled = &mut self.0[place as usize];
        if spelled.length == 0 || spelled.bits != bits {
            let mut rest = spelled.text.as_mut_slice();
            CompactFormatter.write_f32(&mut rest, value)?;
            spelled.length = (LONGEST - rest.len()) as u8;
            spelled.bits = bits;
        }
        writer.write_all(&spelled.text[..usize::from(spelled.length)])
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Compares with `serde_json`, which has no memory: numbers that repeat, that take a place from
    /// each other, and at the ends.
    #[test]
    fn numbers_are_spelled_as_without_a_memory() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut values = vec![0.0, -0.0, 0.0, f32::MIN, f32::MAX, f32::MIN_POSITIVE, f32::EPSILON];
        values.extend([f32::from_bits(1), -f32::from_bits(1), 16_777_216.0, 1e-5, -1.234_567_8e-5]);
        values.extend((0..3).flat_map(|_| (0..=255).map(|pixel| pixel as f32 / 255.0)));
        values.extend(
            (0..200_000).map(|_| f32::from_bits(rng.random())).filter(|value| value.is_finite()),
        );
        values.extend_from_within(..1000);
        assert_eq!(to_vec(&values, values.len()), serde_json::to_vec(&values).expect("numbers"));
    }
}
