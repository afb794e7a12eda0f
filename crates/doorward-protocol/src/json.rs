//! Strict JSON: no duplicate keys at any depth, and tensors read straight into numbers.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Reads any JSON value and refuses duplicate keys.
pub(super) struct Strict;

/// Reads a JSON object and refuses duplicate keys.
pub(super) struct StrictObject;

/// Numbers in nested arrays, as they lie in the text, and the lengths of the arrays.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// The numbers, in order.
    pub(super) values: Vec<f64>,
    /// Lengths of the arrays, outermost first. Arrays of one depth have one length.
    pub(super) lengths: Vec<usize>,
    /// True if each number is written as an integer, and one that FP32 holds exactly.
    pub(super) integers: bool,
}

/// Reads [`Numbers`], of at most `limit` values.
pub(super) struct NumbersSeed {
    pub(super) limit: usize,
}

/// No tensor of the protocol's models is deeper; it also bounds the recursion.
const MAX_DEPTH: usize = 4;

/// Integers up to this one are FP32 numbers.
const EXACT: f64 = 16_777_216.0;

/// Reads one array at `depth`, or the numbers in it.
pub(super) struct Level<'a> {
    pub(super) numbers: &'a mut Partial,
    pub(super) depth: usize,
}

/// Numbers that are still being read.
#[derive(Debug)]
pub(super) struct Partial {
    values: Vec<f64>,
    limit: usize,
    /// Length of the first finished array of each depth.
    lengths: [Option<usize>; MAX_DEPTH],
    /// The number of arrays enclose each number.
    leaf_depth: Option<usize>,
    integers: bool,
}

/// Numbers as text: integers for the datatypes that have nothing else.
#[derive(Clone, Copy)]
pub(super) struct EncodedNumbers<'a> {
    pub(super) values: &'a [f32],
    pub(super) integers: bool,
}

// === impl Strict ===

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Value, A::Error> {
        StrictObject.visit_map(entries).map(Value::Object)
    }
}

// === impl StrictObject ===

impl<'de> DeserializeSeed<'de> for StrictObject {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for StrictObject {
    type Value = Map<String, Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict)?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            object.insert(key, value);
        }
        Ok(object)
    }
}

// === impl NumbersSeed ===

impl<'de> DeserializeSeed<'de> for NumbersSeed {
    type Value = Numbers;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Numbers, D::Error> {
        let mut partial = Partial::new(self.limit);
        deserializer.deserialize_seq(Level { numbers: &mut partial, depth: 0 })?;
        Ok(partial.finish())
    }
}

// === impl Partial ===

impl Partial {
    /// Nothing yet, and at most `limit` values.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            values: Vec::new(),
            limit,
            lengths: [None; MAX_DEPTH],
            leaf_depth: None,
            integers: true,
        }
    }

    /// An array of `length` items at `depth` ends here; an error if another one there is not as
    /// long.
    pub(super) fn close<E: Error>(&mut self, depth: usize, length: usize) -> Result<(), E> {
        let expected = *self.lengths[depth].get_or_insert(length);
        if expected != length {
            return Err(E::custom(format_args!(
                "ragged data: arrays of {expected} and of {length} at one depth"
            )));
        }
        Ok(())
    }

    /// All there is.
    pub(super) fn finish(self) -> Numbers {
        Numbers {
            values: self.values,
            lengths: self.lengths.into_iter().map_while(|length| length).collect(),
            integers: self.integers,
        }
    }
}

// === impl Level ===

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.depth {
            0 => "an array of numbers",
            _ => "a number or an array of numbers",
        })
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64, true)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64, true)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.number(value, false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { numbers, depth } = self;
        if depth == MAX_DEPTH {
            return Err(A::Error::custom("arrays nested too deep"));
        }
        let mut length = 0;
        let below = depth + 1;
        while items.next_element_seed(Level { numbers: &mut *numbers, depth: below })?.is_some() {
            length += 1;
        }
        numbers.close(depth, length)
    }
}

impl Level<'_> {
    fn number<E: Error>(self, value: f64, integer: bool) -> Result<(), E> {
        let Self { numbers, depth } = self;
        if *numbers.leaf_depth.get_or_insert(depth) != depth {
            return Err(E::custom("numbers and arrays are mixed"));
        }
        if numbers.values.len() == numbers.limit {
            return Err(E::custom(format_args!("more than {} values", numbers.limit)));
        }
        numbers.integers &= integer && value.abs() <= EXACT;
        numbers.values.push(value);
        Ok(())
    }
}

// === impl EncodedNumbers ===

impl Serialize for EncodedNumbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.integers {
            serializer.collect_seq(self.values.iter().map(|&value| value as i64))
        } else {
            serializer.collect_seq(self.values)
        }
    }
}
