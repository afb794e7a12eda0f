//! Reads the layers of the settings and merges them.
//!
//! Three layers, later ones win: the embedded `config/doorward.toml`, the user's file, environment
//! variables `DOORWARD_SECTION__KEY`. Each layer is checked against the known keys on its own, so
//! that an error names the file and line, or the variable, it came from.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::raw::RawConfig;
use super::value::invalid;
use super::{Config, Error, ImageProtocol, Result};

/// The shipped settings file: every key, its documentation and its default.
pub const EMBEDDED: &str = include_str!("../../config/doorward.toml");

/// The merged layers, before conversion.
#[derive(Clone, Debug)]
pub struct Settings {
    merged: Table,
}

// === impl Settings ===

impl Settings {
    /// Reads the user's file, if any, over the embedded one, and `environment` over both.
    pub fn load<I, K, V>(path: Option<&Path>, environment: I) -> Result<Self>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let Some(path) = path else {
            return Self::merge(None, environment);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::merge(Some((&path.display().to_string(), &text)), environment)
    }

    /// As [`Settings::load`], for the text of a file. `name` stands for the file in errors.
    pub fn parse<I, K, V>(name: &str, text: &str, environment: I) -> Result<Self>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Self::merge(Some((name, text)), environment)
    }

    /// The effective settings as a TOML file that gives the same settings again.
    pub fn to_toml(&self) -> String {
        // A table's `Display` is TOML.
        self.merged.to_string()
    }

    /// The keys whose values differ for a model, as `section.key`, in alphabetical order; `models`
    /// if there are more models or fewer.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ones, others) = (self.tables(), other.tables());
        let mut keys = Vec::new();
        if ones.len() != others.len() {
            keys.push(MODELS.to_owned());
        }
        for (one, other) in ones.iter().zip(&others) {
            differences("", one, other, &mut keys);
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// The typed settings of the one model.
    pub fn config(&self) -> Result<Config> {
        let mut configs = self.configs()?;
        match configs.pop() {
            Some(config) if configs.is_empty() => Ok(config),
            _ => invalid(MODELS, format!("{} models", configs.len() + 1), "one, or none of them"),
        }
    }

    /// The typed settings of each model: of every one of `[[models]]`, or of the only one.
    pub fn configs(&self) -> Result<Vec<Config>> {
        let tables = self.tables();
        let several = tables.len() > 1;
        let mut configs = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let config = deserialize("the merged settings", table).and_then(RawConfig::convert);
            configs.push(config.map_err(|source| match several {
                true => Error::Model { number: index + 1, source: Box::new(source) },
                false => source,
            })?);
        }
        if several {
            tell_apart(&configs)?;
        }
        Ok(configs)
    }

    /// The settings as each model has them.
    fn tables(&self) -> Vec<Table> {
        let mut shared = self.merged.clone();
        let models = match shared.remove(MODELS) {
            Some(Value::Array(models)) if !models.is_empty() => models,
            _ => return vec![shared],
        };
        let own = models.into_iter().map(|model| {
            let mut table = shared.clone();
            if let Value::Table(model) = model {
                overlay(&mut table, model);
            }
            table
        });
        own.collect()
    }

    fn merge<I, K, V>(file: Option<(&str, &str)>, environment: I) -> Result<Self>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let mut merged = layer("the embedded doorward.toml", EMBEDDED)?;
        if let Some((name, text)) = file {
            overlay(&mut merged, layer(name, text)?);
        }
        for (variable, value) in environment {
            if let Some(path) = key_path(variable.as_ref()) {
                let table = variable_layer(variable.as_ref(), &path, value.as_ref())?;
                overlay(&mut merged, table);
            }
        }
        Ok(Self { merged })
    }
}

// === impl Config ===

impl Config {
    /// Reads the user's file, if any, over the embedded one, and `environment` over both.
    pub fn load<I, K, V>(path: Option<&Path>, environment: I) -> Result<Self>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Settings::load(path, environment)?.config()
    }

    /// As [`Config::load`], for the text of a file. `name` stands for the file in errors.
    pub fn parse<I, K, V>(name: &str, text: &str, environment: I) -> Result<Self>
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Settings::parse(name, text, environment)?.config()
    }
}

/// The key of the models that one process protects.
const MODELS: &str = "models";

// === models ===

/// Requests tell models apart by their names, and each has an artifact of its own.
fn tell_apart(configs: &[Config]) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut names = BTreeSet::new();
    let mut artifacts = BTreeSet::new();
    for Config { server, artifact, .. } in configs {
        let (model, images) = (&server.model, &server.images);
        let name = model.name.as_deref().unwrap_or_default();
        if name.is_empty() || !name.chars().all(plain) || !names.insert(name) {
            let expected =
                "a name for each of [[models]], another one, of ASCII letters, digits, -, _ and .";
            return invalid("model.name", format!("{name:?}"), expected);
        }
        if !artifacts.insert(&artifact.location) {
            let received = format!("{:?}", artifact.location.to_string());
            return invalid(
                "calibration.artifact",
                received,
                "another file for each of [[models]]",
            );
        }
        let named = [ImageProtocol::KserveV1, ImageProtocol::TorchServe];
        if images.protocols.iter().any(|protocol| !named.contains(protocol)) {
            let received = "requests that name no model, with [[models]]";
            return invalid("images.protocols", received, "\"torchserve\" and \"kserve_v1\" only");
        }
    }
    Ok(())
}

// === layers ===

/// A checked file: its keys are known and have the right types.
fn layer(file: &str, text: &str) -> Result<Table> {
    let in_file =
        |error: toml::de::Error| Error::Parse { file: file.to_owned(), reason: error.to_string() };
    // From the text, not from the table, for the sake of line numbers in the error.
    toml::from_str::<RawConfig>(text).map_err(in_file)?;
    toml::from_str(text).map_err(in_file)
}

/// Sections and key that a variable names. A variable without two underscores is not ours:
/// Kubernetes sets `DOORWARD_PORT` and the like for a service called doorward.
fn key_path(variable: &str) -> Option<Vec<String>> {
    let path = variable.strip_prefix("DOORWARD_")?;
    path.contains("__").then(|| path.split("__").map(str::to_lowercase).collect())
}

fn variable_layer(variable: &str, path: &[String], value: &str) -> Result<Table> {
    let string = Value::String(value.to_owned());
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        // More keys than one: the value holds a line break and was no value.
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    let table = nest(path, parsed.unwrap_or_else(|| string.clone()));
    let error = match deserialize(variable, table.clone()) {
        Ok(RawConfig { .. }) => return Ok(table),
        Err(error) => error,
    };
    // A model may be called `1`: what is no valid number here may be a valid string.
    let table = nest(path, string);
    if deserialize::<RawConfig>(variable, table.clone()).is_ok() {
        return Ok(table);
    }
    Err(Error::Environment {
        variable: variable.to_owned(),
        received: value.to_owned(),
        reason: error.to_string(),
    })
}

fn nest(path: &[String], value: Value) -> Table {
    let mut value = value;
    for key in path.iter().skip(1).rev() {
        value = Value::Table(Table::from_iter([(key.clone(), value)]));
    }
    Table::from_iter(path.first().map(|key| (key.clone(), value)))
}

fn overlay(base: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn differences(section: &str, one: &Table, other: &Table, keys: &mut Vec<String>) {
    let nothing = Table::new();
    for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match (one.get(key), other.get(key)) {
            (one, other) if one == other => {}
            (Some(Value::Table(one)), Some(Value::Table(other))) => {
                differences(&path, one, other, keys);
            }
            (Some(Value::Table(table)), None) | (None, Some(Value::Table(table))) => {
                differences(&path, table, &nothing, keys);
            }
            _ => keys.push(path),
        }
    }
}

fn deserialize<T: for<'de> Deserialize<'de>>(origin: &str, table: Table) -> Result<T> {
    table.try_into().map_err(|error: toml::de::Error| Error::Parse {
        file: origin.to_owned(),
        reason: error.to_string(),
    })
}
