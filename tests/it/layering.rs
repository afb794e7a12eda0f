//! Imports point only downward.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A module may use modules of a lower rank, and itself.
const RANKS: [(&str, u8); 8] = [
    ("config", 1),
    ("report", 2),
    ("storage", 2),
    ("watch", 2),
    ("demo", 3),
    ("cli", 4),
    ("main", 5),
    // Only lists the modules.
    ("lib", 6),
];

/// Ranks up to this one are synchronous and silent.
const SILENT: u8 = 1;

const NOISY_CRATES: [&str; 5] = ["axum", "hyper", "prometheus", "tokio", "tower"];

#[test]
fn imports_point_downward() {
    let ranks = BTreeMap::from(RANKS);
    let mut wrong = Vec::new();
    for (file, module) in sources() {
        let rank = ranks.get(module.as_str());
        let rank = rank.unwrap_or_else(|| panic!("{}: no rank for {module}", file.display()));
        for used in crate_paths(&code(&file)) {
            let below = ranks.get(used.as_str()).is_some_and(|below| below < rank);
            if used != module && !below {
                wrong.push(format!("{}: {module} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lower_ranks_are_synchronous_and_silent() {
    let ranks = BTreeMap::from(RANKS);
    let mut wrong = Vec::new();
    for (file, module) in sources() {
        if ranks[module.as_str()] > SILENT {
            continue;
        }
        let code = code(&file);
        for noisy in NOISY_CRATES {
            if code.contains(&format!("{noisy}::")) {
                wrong.push(format!("{}: uses {noisy}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_are_found_in_every_spelling() {
    let code = "use crate::a::B; use crate::{c, d::{E, F}, g}; fn x() -> crate::h::I {} \
        use crate :: j; pub(in crate::k) fn l() {} $crate::m!()";
    assert_eq!(crate_paths(code), ["a", "c", "d", "g", "h", "j", "k", "m"]);
}

/// Every source file with its top-level module.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).expect("inside").with_extension("");
                let first = relative.components().next().expect("a name");
                let module = first.as_os_str().to_string_lossy().into_owned();
                sources.push((path, module));
            }
        }
    }
    assert!(sources.len() > 10, "the sources are not where they were");
    sources
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("readable");
    let lines = text.lines().map(|line| match line.find("//") {
        Some(start) => &line[..start],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that `crate::` paths start with.
fn crate_paths(code: &str) -> Vec<String> {
    let compact: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let compact = compact.replace(" :: ", "::");
    let mut found = Vec::new();
    for (start, _) in compact.match_indices("crate::") {
        let rest = &compact[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.extend(identifier(rest)),
        }
    }
    found
}

/// The first identifiers of the items in a `use` group.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut at_head = true;
    for (position, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            _ if at_head && !character.is_whitespace() => {
                heads.extend(identifier(&group[position..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> Option<String> {
    let end = text
        .find(|character: char| !(character.is_alphanumeric() || character == '_'))
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}
