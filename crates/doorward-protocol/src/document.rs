//! The JSON document of an Open Inference Protocol request, each key at most once.
//!
//! Keys that the protocol does not have are dropped and named. The visitors are written by hand:
//! derived ones read an array as a struct, and see neither the names nor the repetition of keys that
//! they do not know.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::datatype::Datatype;
use super::json::{Numbers, NumbersSeed, StrictObject};

/// The request as it lies in the text; each key at most once.
#[derive(Default)]
pub(super) struct Document {
    pub(super) id: Option<String>,
    /// The model, as KServe's clients name it here once more.
    pub(super) model_name: Option<Box<RawValue>>,
    pub(super) model_version: Option<Box<RawValue>>,
    pub(super) parameters: Option<Map<String, Value>>,
    pub(super) input: Option<Input>,
    pub(super) outputs: Option<Vec<Value>>,
    /// Paths of the keys that were dropped.
    pub(super) dropped: Vec<String>,
}

pub(super) struct Input {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) datatype: String,
    pub(super) parameters: Option<Map<String, Value>>,
    pub(super) numbers: Option<Numbers>,
    unknown: Vec<String>,
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
pub(super) struct Seen {
    known: u32,
    /// The others, in their order.
    pub(super) unknown: Vec<String>,
}

/// The outputs that a client asks for, and the paths of keys in them that were dropped.
type Outputs = (Vec<Value>, Vec<String>);

/// Most keys of one object that the protocol does not have: each is remembered.
const MOST_UNKNOWN: usize = 64;

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
        const KEYS: &[&str] =
            &["id", "model_name", "model_version", "parameters", "inputs", "outputs"];
        let mut seen = Seen::default();
        let mut document = Document::default();
        let mut in_outputs = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            match seen.check(KEYS, key)? {
                Some("id") => document.id = entries.next_value()?,
                Some("model_name") => document.model_name = entries.next_value()?,
                Some("model_version") => document.model_version = entries.next_value()?,
                Some("parameters") => {
                    document.parameters = entries.next_value_seed(Nullable(StrictObject))?
                }
                Some("inputs") => {
                    let seed = InputsSeed { limit: self.limit };
                    document.input = Some(entries.next_value_seed(seed)?);
                }
                Some(_) => {
                    let outputs: Option<Outputs> =
                        entries.next_value_seed(Nullable(OutputsSeed))?;
                    document.outputs = outputs.map(|(outputs, dropped)| {
                        in_outputs = dropped;
                        outputs
                    });
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        document.dropped = seen.unknown;
        let in_input = document.input.iter_mut().flat_map(|input| input.unknown.drain(..));
        document.dropped.extend(in_input.map(|key| format!("inputs[0].{key}")));
        document.dropped.append(&mut in_outputs);
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
            match seen.check(KEYS, key)? {
                Some("name") => name = Some(entries.next_value()?),
                Some("shape") => shape = Some(entries.next_value()?),
                Some("datatype") => datatype = Some(entries.next_value()?),
                Some("parameters") => {
                    parameters = entries.next_value_seed(Nullable(StrictObject))?;
                }
                // The datatype is about to be refused; an error about its data would hide that.
                Some(_) if datatype.as_deref().is_none_or(is_judged) => {
                    let seed = NumbersSeed { limit: self.limit };
                    numbers = entries.next_value_seed(Nullable(seed))?;
                }
                Some(_) | None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Input {
            name: name.ok_or_else(|| A::Error::missing_field("name"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            datatype: datatype.ok_or_else(|| A::Error::missing_field("datatype"))?,
            parameters,
            numbers,
            unknown: seen.unknown,
        })
    }
}

// === impl OutputsSeed ===

impl<'de> DeserializeSeed<'de> for OutputsSeed {
    type Value = Outputs;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Outputs, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OutputsSeed {
    type Value = Outputs;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of output objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Outputs, A::Error> {
        const KEYS: &[&str] = &["name", "parameters"];
        let (mut outputs, mut dropped) = (Vec::new(), Vec::new());
        while let Some(mut output) = items.next_element_seed(StrictObject)? {
            output.retain(|key, _| {
                let known = KEYS.contains(&key.as_str());
                // One that repeats from output to output is named once.
                let path = format!("outputs[].{key}");
                if !known && dropped.len() < MOST_UNKNOWN && !dropped.contains(&path) {
                    dropped.push(path);
                }
                known
            });
            outputs.push(Value::Object(output));
        }
        Ok((outputs, dropped))
    }
}

/// True if the datatype is one whose values are judged.
fn is_judged(datatype: &str) -> bool {
    Datatype::parse(datatype).is_some()
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
    /// The known key that `key` is, `None` for any other; each at most once, whatever it is.
    pub(super) fn check<E: Error>(
        &mut self,
        known: &'static [&'static str],
        key: String,
    ) -> Result<Option<&'static str>, E> {
        let Some(position) = known.iter().position(|&known| known == key) else {
            if self.unknown.contains(&key) {
                return Err(E::custom(format_args!("duplicate key {key:?}")));
            }
            if self.unknown.len() == MOST_UNKNOWN {
                return Err(E::custom(format_args!(
                    "more than {MOST_UNKNOWN} keys that the protocol does not have, the last is {key:?}"
                )));
            }
            self.unknown.push(key);
            return Ok(None);
        };
        let bit = 1 << position;
        if self.known & bit != 0 {
            return Err(E::duplicate_field(known[position]));
        }
        self.known |= bit;
        Ok(Some(known[position]))
    }
}
