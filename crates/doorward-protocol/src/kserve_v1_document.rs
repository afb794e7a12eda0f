//! The JSON document of a V1 prediction request, each key at most once.
//!
//! The visitors are written by hand for the reasons that those of V2 have (`document`), and because
//! an instance is an array, an object of one, or encoded bytes.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::document::Seen;
use super::json::{Level, Numbers, Partial};

/// The request as it lies in the text.
pub(super) struct Document {
    pub(super) signature_name: Option<String>,
    /// The model, as clients may name it here once more.
    pub(super) model_name: Option<Box<RawValue>>,
    pub(super) model_version: Option<Box<RawValue>>,
    pub(super) form: Form,
    /// The input's name, where rows or columns are objects.
    pub(super) name: Option<String>,
    pub(super) numbers: Numbers,
    /// Encoded bytes that stand for numbers.
    pub(super) images: Vec<String>,
    /// The keys that were dropped.
    pub(super) dropped: Vec<String>,
}

/// The place of the rows in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `inputs`: one tensor.
    Columns,
    /// `instances`: an array of rows.
    Rows,
}

pub(super) struct DocumentSeed {
    pub(super) limit: usize,
}

/// The content of `instances` or `inputs`.
struct Tensor {
    numbers: Partial,
    /// The lengths of the first row; the others have the same.
    name: Option<Option<String>>,
    images: Vec<String>,
}

/// Reads the array of `instances`.
struct RowsSeed<'a>(&'a mut Tensor);

/// Reads an array at a depth, or an object of one.
struct NamedSeed<'a> {
    tensor: &'a mut Tensor,
    depth: usize,
}

// === impl Form ===

impl Form {
    /// The key of the document.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Columns => "inputs",
            Self::Rows => "instances",
        }
    }
}

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
            &["model_name", "model_version", "signature_name", "instances", "inputs"];
        let mut seen = Seen::default();
        let (mut signature_name, mut model_name, mut model_version) = (None, None, None);
        let mut content: Option<(Form, Tensor)> = None;
        while let Some(key) = entries.next_key::<String>()? {
            let mut tensor = Tensor::new(self.limit);
            let form = match seen.check(KEYS, key)? {
                Some("model_name") => {
                    model_name = entries.next_value()?;
                    None
                }
                Some("model_version") => {
                    model_version = entries.next_value()?;
                    None
                }
                Some("signature_name") => {
                    signature_name = entries.next_value()?;
                    None
                }
                Some(_) if content.is_some() => {
                    return Err(A::Error::custom(
                        "both instances and inputs, expected one of them",
                    ));
                }
                Some("instances") => {
                    entries.next_value_seed(RowsSeed(&mut tensor))?;
                    Some(Form::Rows)
                }
                Some(_) => {
                    entries.next_value_seed(NamedSeed { tensor: &mut tensor, depth: 0 })?;
                    Some(Form::Columns)
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                    None
                }
            };
            if let Some(form) = form {
                content = Some((form, tensor));
            }
        }
        let (form, tensor) =
            content.ok_or_else(|| A::Error::custom("neither instances nor inputs"))?;
        Ok(Document {
            signature_name,
            model_name,
            model_version,
            form,
            name: tensor.name.flatten(),
            numbers: tensor.numbers.finish(),
            images: tensor.images,
            dropped: seen.unknown,
        })
    }
}

// === impl RowsSeed ===

impl<'de> DeserializeSeed<'de> for RowsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RowsSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of instances")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut rows = 0;
        while items.next_element_seed(NamedSeed { tensor: &mut *self.0, depth: 1 })?.is_some() {
            rows += 1;
        }
        self.0.numbers.close(0, rows)
    }
}

// === impl NamedSeed ===

impl<'de> DeserializeSeed<'de> for NamedSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NamedSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of numbers, or an object of one such array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        self.tensor.called(None)?;
        Level { numbers: &mut self.tensor.numbers, depth: self.depth }.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some(name) = entries.next_key::<String>()? else {
            return Err(A::Error::custom("an object without an input"));
        };
        if name == "b64" {
            self.tensor.called(None)?;
            self.tensor.images.push(entries.next_value()?);
        } else {
            self.tensor.called(Some(name))?;
            entries.next_value_seed(Array { tensor: self.tensor, depth: self.depth })?;
        }
        match entries.next_key::<String>()? {
            None => Ok(()),
            Some(key) => Err(A::Error::custom(format_args!(
                "an object with more than one input, the second is {key:?}"
            ))),
        }
    }
}

/// Reads the array inside of an object; in it, `{"b64": ...}` stands for bytes.
struct Array<'a> {
    tensor: &'a mut Tensor,
    depth: usize,
}

// === impl Array ===

impl<'de> DeserializeSeed<'de> for Array<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        Level { numbers: &mut self.tensor.numbers, depth: self.depth }.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        match entries.next_key::<String>()?.as_deref() {
            Some("b64") => self.tensor.images.push(entries.next_value()?),
            key => {
                return Err(A::Error::custom(format_args!("{key:?} in an input, expected b64")));
            }
        }
        match entries.next_key::<String>()? {
            None => Ok(()),
            Some(key) => Err(A::Error::custom(format_args!("b64 and {key:?}, expected b64 alone"))),
        }
    }
}

// === impl Tensor ===

impl Tensor {
    fn new(limit: usize) -> Self {
        Self { numbers: Partial::new(limit), name: None, images: Vec::new() }
    }

    /// A row has this name, or none; an error if another row's is different.
    fn called<E: Error>(&mut self, name: Option<String>) -> Result<(), E> {
        let first = self.name.get_or_insert_with(|| name.clone());
        if *first != name {
            return Err(E::custom(format_args!(
                "the input is called {first:?} and {name:?}, expected one name"
            )));
        }
        Ok(())
    }
}
