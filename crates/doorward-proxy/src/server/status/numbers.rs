//! Numbers and times as the page and the history write them.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// Requests by how they ended.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// A point in time, to the second.
pub(super) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// `12345` as `12,345`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}
