//! The JSON document of an Open Inference Protocol request, each key known and at most once.
//!
//! The visitors take objects only as objects: derived ones would also read an array as a struct.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::datatype::Datatype;
use super::json::{Numbers, NumbersSeed, StrictObject};

/// The request as it lies in the text; each key at most once.
#[derive(Default)]
pub(super) struct Document {
    pub(super) id: Option<String>,
    pub(super) parameters: Option<Map<String, Value>>,
    pub(super) input: Option<Input>,
    pub(super) outputs: Option<Vec<Value>>,
}

pub(super) struct Input {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) datatype: String,
    pub(super) parameters: Option<Map<String, Value>>,
    pub(super) numbers: Option<Numbers>,
}

pub(super) struct DocumentSeed {
    pub(super) limit: usize,
}

/// Reads `inputs`: an array of exactly one tensor.
pub(super) struct InputsSeed {
    pub(super) limit: usize,
}

pub(super) struct InputSeed {
    pub(super) limit: usize,
}

/// Reads `outputs`: an array of objects.
struct OutputsSeed;

/// Reads `null` as absence.
pub(super) struct Nullable<S>(pub(super) S);

/// The keys of one object so far.
#[derive(Default)]
pub(super) struct Seen(u32);

// === impl DocumentSeed ===

impl<'de> DeserializeSeed<'de> for DocumentSeed {
    type Value = Document;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Document, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DocumentSeed {
    type Value = Document;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
        const KEYS: &[&str] = &["id", "parameters", "inputs", "outputs"];
        let mut seen = Seen::default();
        let mut document = Document::default();
        while let Some(key) = entries.next_key::<String>()? {
            match seen.check(KEYS, &key)? {
                "id" => document.id = entries.next_value()?,
                "parameters" => {
                    document.parameters = entries.next_value_seed(Nullable(StrictObject))?
                }
                "inputs" => {
                    let seed = InputsSeed { limit: self.limit };
                    document.input = Some(entries.next_value_seed(seed)?);
                }
                _ => document.outputs = entries.next_value_seed(Nullable(OutputsSeed))?,
            }
        }
        Ok(document)
    }
}

// === impl InputsSeed ===

impl<'de> DeserializeSeed<'de> for InputsSeed {
    type Value = Input;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for InputsSeed {
    type Value = Input;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of one tensor")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let seed = InputSeed { limit: self.limit };
        let Some(input) = items.next_element_seed(seed)? else {
            return Err(A::Error::custom("inputs is empty, expected one tensor"));
        };
        if items.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("inputs holds more than one tensor"));
        }
        Ok(input)
    }
}

// === impl InputSeed ===

impl<'de> DeserializeSeed<'de> for InputSeed {
    type Value = Input;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for InputSeed {
    type Value = Input;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a tensor object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Input, A::Error> {
        const KEYS: &[&str] = &["name", "shape", "datatype", "parameters", "data"];
        let mut seen = Seen::default();
        let (mut name, mut shape) = (None, None);
        let mut datatype: Option<String> = None;
        let (mut parameters, mut numbers) = (None, None);
        while let Some(key) = entries.next_key::<String>()? {
            match seen.check(KEYS, &key)? {
                "name" => name = Some(entries.next_value()?),
                "shape" => shape = Some(entries.next_value()?),
                "datatype" => datatype = Some(entries.next_value()?),
                "parameters" => parameters = entries.next_value_seed(Nullable(StrictObject))?,
                // The datatype is about to be refused; an error about its data would hide that.
                _ if datatype.as_deref().is_some_and(|name| Datatype::parse(name).is_none()) => {
                    entries.next_value::<IgnoredAny>()?;
                }
                _ => {
                    let seed = NumbersSeed { limit: self.limit };
                    numbers = Some(entries.next_value_seed(seed)?);
                }
            }
        }
        Ok(Input {
            name: name.ok_or_else(|| A::Error::missing_field("name"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            datatype: datatype.ok_or_else(|| A::Error::missing_field("datatype"))?,
            parameters,
            numbers,
        })
    }
}

// === impl OutputsSeed ===

impl<'de> DeserializeSeed<'de> for OutputsSeed {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OutputsSeed {
    type Value = Vec<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of output objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Value>, A::Error> {
        let mut outputs = Vec::new();
        while let Some(output) = items.next_element_seed(StrictObject)? {
            outputs.push(Value::Object(output));
        }
        Ok(outputs)
    }
}

// === impl Nullable ===

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value or null")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

// === impl Seen ===

impl Seen {
    /// The known key that `key` is; each at most once.
    pub(super) fn check<E: Error>(
        &mut self,
        known: &'static [&'static str],
        key: &str,
    ) -> Result<&'static str, E> {
        let Some(position) = known.iter().position(|&known| known == key) else {
            return Err(E::unknown_field(key, known));
        };
        let bit = 1 << position;
        if self.0 & bit != 0 {
            return Err(E::duplicate_field(known[position]));
        }
        self.0 |= bit;
        Ok(known[position])
    }
}
