//! JSON objects and arrays as pieces of their text: what is not changed stays as it is spelt.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object's members in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Members<'a>(pub(super) Vec<(String, Cow<'a, str>)>);

/// The members of an object's text.
pub(super) fn members(text: &str) -> serde_json::Result<Members<'_>> {
    serde_json::from_str(text)
}

/// The items of an array's text.
pub(super) fn items(text: &str) -> serde_json::Result<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text)?;
    Ok(items.into_iter().map(RawValue::get).collect())
}

/// The text of an array.
pub(super) fn array(items: &[&str]) -> String {
    format!("[{}]", items.join(","))
}

/// An array with more items, given as text, at its end.
pub(super) fn extended(array: &str, more: &str) -> Option<String> {
    let items = array.strip_suffix(']')?;
    let separator = if more.is_empty() || items.trim_end().ends_with('[') { "" } else { "," };
    Some([items, separator, more, "]"].concat())
}

// === impl Members ===

impl<'a> Members<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// Replaces the value of a member that is there.
    pub(super) fn set(&mut self, key: &str, value: String) {
        if let Some((_, old)) = self.0.iter_mut().find(|(name, _)| name == key) {
            *old = Cow::Owned(value);
        }
    }

    /// The text of the object.
    pub(super) fn text(&self) -> String {
        let length = self.0.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
        let mut text = String::with_capacity(length);
        for (index, (key, value)) in self.0.iter().enumerate() {
            text.push(if index == 0 { '{' } else { ',' });
            text.push_str(&serde_json::Value::from(key.as_str()).to_string());
            text.push(':');
            text.push_str(value);
        }
        if self.0.is_empty() {
            text.push('{');
        }
        text.push('}');
        text
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    members.push((key, Cow::Borrowed(value.get())));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_keeps_its_spelling() {
        let text = r#"{"a":1.50,"b" : [ 1e0, 2 ],"c":{"d":"\u0061"}}"#;
        let mut found = members(text).unwrap();
        found.set("b", "[3]".to_owned());
        found.set("absent", "0".to_owned());
        assert_eq!(found.text(), r#"{"a":1.50,"b":[3],"c":{"d":"\u0061"}}"#);
        assert_eq!(items("[ 1.50, [2] ]").unwrap(), ["1.50", "[2]"]);
        assert_eq!(extended("[1.50]", "2,3").unwrap(), "[1.50,2,3]");
        assert_eq!(extended("[ ]", "2").unwrap(), "[ 2]");
        assert_eq!(extended("[1.50]", "").unwrap(), "[1.50]");
        assert_eq!(members("{}").unwrap().text(), "{}");
        assert!(members("[1]").is_err());
    }
}
