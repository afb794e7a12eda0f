//! Sizes that a graph computes with, the batch a symbol among them.

/// A size as nodes of a graph name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// This many times the batch.
    Batches(usize),
    /// A number; what zero and negative ones stand for is the operator's to say.
    Fixed(i64),
}

/// Stands for the batch among the integers that constant nodes compute with: a prime, so that
/// multiples of it are recognised after any arithmetic, and larger than any size.
pub(crate) const BATCH: i64 = 2_147_483_647;

// === impl Size ===

impl Size {
    /// Reads an integer of the graph.
    pub(crate) fn of_integer(integer: i64) -> Self {
        match usize::try_from(integer / BATCH) {
            Ok(count) if count > 0 && integer % BATCH == 0 => Self::Batches(count),
            _ => Self::Fixed(integer),
        }
    }

    /// Reads integers of the graph.
    pub(crate) fn of_integers(integers: &[i64]) -> Vec<Self> {
        integers.iter().map(|&integer| Self::of_integer(integer)).collect()
    }

    /// The integer that stands for the size in the graph.
    pub(crate) fn integer(self) -> i64 {
        match self {
            Self::Batches(count) => BATCH.saturating_mul(count as i64),
            Self::Fixed(size) => size,
        }
    }

    /// The size of all axes joined; `None` where it overflows.
    pub(crate) fn product(sizes: &[Self]) -> Option<Self> {
        let product = sizes.iter().try_fold(1i64, |all, size| all.checked_mul(size.integer()))?;
        Some(Self::of_integer(product))
    }

    /// The coefficient of a multiple of the batch.
    pub(crate) fn batches(self) -> Option<usize> {
        match self {
            Self::Batches(count) => Some(count),
            Self::Fixed(_) => None,
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batches(1) => f.write_str("batch"),
            Self::Batches(count) => write!(f, "{count} * batch"),
            Self::Fixed(size) => write!(f, "{size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_of_the_batch_stay_multiples() {
        let heads = Size::product(&[Size::Batches(3), Size::Fixed(4)]).unwrap();
        assert_eq!((heads, heads.to_string()), (Size::Batches(12), "12 * batch".into()));
        assert_eq!(Size::of_integer(heads.integer() / 6), Size::Batches(2));
        for size in [-1, 0, 1, 224, i64::MAX] {
            assert_eq!(Size::of_integer(size), Size::Fixed(size));
        }
        assert_eq!(Size::product(&[Size::Fixed(i64::MAX), Size::Fixed(2)]), None);
    }
}
