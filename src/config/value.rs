//! Conversions of single values; each error names the key, what was received and what is expected.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use doorward_proxy::NoAddress;

use super::{Error, Location, Probability, Result};

/// One value, or an array of them.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected one value or an array of values")]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

// === impl OneOrMany ===

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

pub(super) fn required<T>(key: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or(Error::Missing { key })
}

pub(super) fn invalid<T>(
    key: &'static str,
    received: impl ToString,
    expected: &'static str,
) -> Result<T> {
    Err(Error::Invalid { key, received: received.to_string(), expected })
}

pub(super) fn address(key: &'static str, value: Option<String>) -> Result<SocketAddr> {
    let value = required(key, value)?;
    match value.parse() {
        Ok(address) => Ok(address),
        Err(_) => invalid(key, format!("{value:?}"), "an address and port such as 127.0.0.1:8080"),
    }
}

/// An address of a kind of its own.
pub(super) fn endpoint<T: FromStr<Err = NoAddress>>(
    key: &'static str,
    value: Option<String>,
) -> Result<T> {
    let value = required(key, value)?;
    match value.parse() {
        Ok(address) => Ok(address),
        Err(NoAddress { expected }) => invalid(key, format!("{value:?}"), expected),
    }
}

pub(super) fn file(key: &'static str, value: Option<PathBuf>) -> Result<PathBuf> {
    let path = required(key, value)?;
    if path.as_os_str().is_empty() {
        return invalid(key, "\"\"", "a path");
    }
    Ok(path)
}

pub(super) fn location(key: &'static str, value: Option<String>) -> Result<Location> {
    let value = required(key, value)?;
    let location = Location::parse(&value);
    location.map_or_else(
        || invalid(key, format!("{value:?}"), "a path, file:///PATH or s3://BUCKET/KEY"),
        Ok,
    )
}

/// A digest as `sha256sum` prints it.
pub(super) fn sha256(key: &'static str, value: String) -> Result<String> {
    if value.len() != 64 || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return invalid(key, format!("{value:?}"), "64 hexadecimal digits");
    }
    Ok(value.to_ascii_lowercase())
}

pub(super) fn model_name(name: String) -> Result<String> {
    if name.is_empty() {
        return invalid("model.name", "\"\"", "a name, or no such key to take any name");
    }
    Ok(name)
}

pub(super) fn model_version(version: String) -> Result<String> {
    if version.is_empty() {
        let expected = "a version, or no such key to take requests that name none";
        return invalid("model.version", "\"\"", expected);
    }
    Ok(version)
}

/// Networks, or single addresses.
pub(super) fn networks(key: &'static str, values: Vec<String>) -> Result<Vec<IpNet>> {
    let network = |value: String| {
        let single = || value.parse::<IpAddr>().map(IpNet::from);
        value.parse().or_else(|_| single()).or_else(|_| {
            invalid(key, format!("{value:?}"), "networks such as 10.0.0.0/8, or addresses")
        })
    };
    values.into_iter().map(network).collect()
}

pub(super) fn channels(key: &'static str, value: Option<OneOrMany<f64>>) -> Result<Vec<f32>> {
    let values = required(key, value)?.into_vec();
    let narrowed: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    if narrowed.is_empty() || narrowed.iter().any(|value| !value.is_finite()) {
        return invalid(key, format!("{values:?}"), "one finite number, or one per channel");
    }
    Ok(narrowed)
}

pub(super) fn scales(key: &'static str, value: Option<OneOrMany<f64>>) -> Result<Vec<f32>> {
    let values = channels(key, value)?;
    if values.iter().any(|&value| value <= 0.0) {
        return invalid(key, format!("{values:?}"), "numbers above 0");
    }
    Ok(values)
}

pub(super) fn count(key: &'static str, value: Option<i64>) -> Result<NonZeroUsize> {
    let value = required(key, value)?;
    match usize::try_from(value).ok().and_then(NonZeroUsize::new) {
        Some(count) => Ok(count),
        None => invalid(key, value, "an integer of 1 or more"),
    }
}

pub(super) fn duration(key: &'static str, value: Option<f64>) -> Result<Duration> {
    let value = required(key, value)?;
    match Duration::try_from_secs_f64(value) {
        // A deadline is a point in time; a century is within every clock's range.
        Ok(duration) if !duration.is_zero() && value <= 3.2e9 => Ok(duration),
        _ => invalid(key, value, "a number of seconds above 0"),
    }
}

pub(super) fn probability(key: &'static str, value: Option<f64>) -> Result<Probability> {
    let value = required(key, value)?;
    match Probability::new(value) {
        Some(probability) => Ok(probability),
        None => invalid(key, value, "a number from 0 to 1"),
    }
}

/// A probability above zero.
pub(super) fn share(key: &'static str, value: Option<f64>) -> Result<Probability> {
    let share = probability(key, value)?;
    if share.value() == 0.0 {
        return invalid(key, 0, "a number above 0, up to 1");
    }
    Ok(share)
}

pub(super) fn positive(key: &'static str, value: Option<f64>) -> Result<f32> {
    let value = required(key, value)?;
    let narrowed = value as f32;
    if !(narrowed.is_finite() && narrowed > 0.0) {
        return invalid(key, value, "a finite number above 0");
    }
    Ok(narrowed)
}
