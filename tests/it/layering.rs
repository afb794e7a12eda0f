//! The rules of the house that cargo cannot see: arrows between the modules of a crate, and words
//! that belong to one room.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use source::{Path as Names, Source, strings};

/// Modules that still share and drive. The list only shrinks.
const SHARE_AND_DRIVE: &[&str] = &[
    "doorward-images/encoded",
    "doorward-proxy/proxy/grpc",
    "doorward-proxy/telemetry/audit",
    "doorward-proxy/telemetry/spans",
    "doorward/cli",
    "doorward/config",
    "doorward/demo",
    "doorward/report",
    "doorward/storage",
];

/// String literals of library crates that still name a command. The list only shrinks.
const ADVICE: &[&str] = &["doorward-detection/error", "doorward-injector/refusal"];

/// Modules of the program other than `config` that still know TOML. The list only shrinks.
const KNOW_TOML: &[&str] = &["demo"];

/// Crates that are synchronous and silent.
const SILENT: [&str; 3] = ["doorward-detection", "doorward-engine", "doorward-images"];

const NOISY: [&str; 4] = ["axum", "hyper", "prometheus", "tokio"];

#[test]
fn no_circle_runs_among_the_modules_of_a_folder() {
    let circles: Vec<String> = crates().iter().flat_map(House::circles).collect();
    assert_eq!(circles, Vec::<String>::new());
}

#[test]
fn a_module_with_children_shares_or_drives() {
    let both: Vec<String> = crates().iter().flat_map(House::share_and_drive).collect();
    assert_known(&both, SHARE_AND_DRIVE);
}

#[test]
fn detection_and_below_are_synchronous_and_silent() {
    for house in crates() {
        if !SILENT.contains(&house.name.as_str()) {
            continue;
        }
        for noisy in NOISY {
            assert!(!house.depends_on(noisy), "{} depends on {noisy}", house.name);
        }
    }
}

#[test]
fn candle_is_unknown_to_the_protocol_and_toml_to_all_but_config() {
    let mut know_toml = Vec::new();
    for house in crates() {
        if house.name == "doorward-protocol" {
            assert!(!house.depends_on("candle"), "the protocol depends on candle");
        }
        if house.name == "doorward" {
            for (module, source) in &house.modules {
                let knows = source.paths.iter().any(|path| path.names[0] == "toml");
                let config = module.first().is_some_and(|first| first == "config");
                if knows && !config {
                    know_toml.push(module.join("/"));
                }
            }
        } else {
            assert!(!house.depends_on("toml"), "{} depends on toml", house.name);
        }
    }
    assert_known(&know_toml, KNOW_TOML);
}

#[test]
fn libraries_do_not_name_commands() {
    let mut naming = Vec::new();
    for house in crates().iter().filter(|house| house.name != "doorward") {
        for (module, source) in &house.modules {
            if source.strings.iter().any(|literal| literal.contains("`doorward ")) {
                naming.push(format!("{}/{}", house.name, module.join("/")));
            }
        }
    }
    assert_known(&naming, ADVICE);
}

#[test]
fn arrows_are_found_in_every_spelling() {
    let house = House::from_texts(&[
        (
            "",
            "mod a; mod b; mod c; mod d; mod e; pub use b::{B as Bee, inner}; #[cfg(test)] mod t;",
        ),
        (
            "a",
            "use crate::{b::{self, B}, c}; fn f() { super :: d::g() } #[cfg(test)] use crate::e;",
        ),
        ("b", "use super::c as other; // crate::a\nconst X: &str = \"crate::a\"; fn f<'a>() {}"),
        ("c", "use crate::Bee; fn f() -> char { '\"' }"),
        ("d", "fn g() { crate::a::f::<u8>(); } mod inner; use inner::I; fn h() -> I {} struct S;"),
        ("d/inner", "use super::S; macro_rules! m { () => { $crate::e::f() } }"),
        (
            "e",
            "fn f() { self::x() } mod i { use super::super::b; use super::X; } #[cfg(test)] mod tests { use crate::a; }",
        ),
        ("t", "use crate::a;"),
    ]);
    let arrows = house.arrows();
    let root = &arrows[&Vec::<String>::new()];
    let to = |from: &str| root.get(from).map(|to| to.iter().cloned().collect::<Vec<_>>());
    assert_eq!(to("a").expect("arrows"), ["b", "c", "d"]);
    assert_eq!(to("b").expect("arrows"), ["c"]);
    assert_eq!(to("c").expect("arrows"), ["b"]);
    assert_eq!(to("d").expect("arrows"), ["a", "e"]);
    assert_eq!(to("e").expect("arrows"), ["b"]);
    assert_eq!(to("t"), None);
    assert_eq!(house.circles(), ["test: a d", "test: b c"]);
    assert_eq!(house.share_and_drive(), ["test/d"]);
    assert_eq!(strings("f(\"a\\\"b\", r#\"c\"d\"#, '\"') // \"e\""), ["a\\\"b", "c\"d"]);
}

/// Asserts that the lists hold the same.
fn assert_known(today: &[String], known: &[&str]) {
    assert!(known.is_sorted(), "keep the list sorted");
    let new: Vec<_> = today.iter().filter(|line| !known.contains(&line.as_str())).collect();
    let gone: Vec<_> = known.iter().filter(|line| !today.iter().any(|t| t == *line)).collect();
    assert!(new.is_empty() && gone.is_empty(), "new: {new:#?}\nno longer needed: {gone:#?}");
}

/// A crate: its modules, by the names on the way to them; the crate's own file has none.
struct House {
    name: String,
    manifest: String,
    modules: BTreeMap<Vec<String>, Source>,
}

type Arrows = BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>>;

fn crates() -> Vec<House> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.to_owned()];
    let entries = std::fs::read_dir(root.join("crates")).expect("a folder");
    folders.extend(entries.map(|entry| entry.expect("an entry").path()));
    folders.sort();
    assert!(folders.len() == 7, "the crates are not where they were");
    folders.iter().map(|folder| House::read(folder)).collect()
}

// === impl House ===

impl House {
    fn read(folder: &Path) -> Self {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("readable");
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name");
        let name = name.trim_matches('"').to_owned();
        let src = folder.join("src");
        let texts = files(&src).into_iter().filter_map(|file| {
            let relative = file.strip_prefix(&src).expect("inside").with_extension("");
            let mut names: Vec<String> =
                relative.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            match names.last().map(String::as_str) {
                // A crate of its own, which nobody imports.
                Some("main") => return None,
                Some("lib" | "mod") => drop(names.pop()),
                _ => {}
            }
            Some((names, std::fs::read_to_string(&file).expect("readable")))
        });
        Self::new(name, manifest.clone(), texts.collect())
    }

    fn from_texts(texts: &[(&str, &str)]) -> Self {
        let texts = texts.iter().map(|(path, text)| {
            let names = path.split('/').filter(|name| !name.is_empty());
            (names.map(str::to_owned).collect(), (*text).to_owned())
        });
        Self::new("test".to_owned(), String::new(), texts.collect())
    }

    /// Without the modules that are for tests.
    fn new(name: String, manifest: String, texts: BTreeMap<Vec<String>, String>) -> Self {
        let read = |(names, text): (Vec<String>, String)| (names, Source::read(&text));
        let mut modules: BTreeMap<_, _> = texts.into_iter().map(read).collect();
        let mut for_tests = Vec::new();
        for (names, source) in &modules {
            for module in &source.test_modules {
                for_tests.push([names.clone(), vec![module.clone()]].concat());
            }
        }
        modules.retain(|names, _| !for_tests.iter().any(|module| names.starts_with(module)));
        Self { name, manifest, modules }
    }

    /// True if a crate, or one whose name begins so, is among the dependencies that are not for
    /// tests alone.
    fn depends_on(&self, name: &str) -> bool {
        let (_, behind) = self.manifest.split_once("\n[dependencies]").expect("dependencies");
        let section = behind.split("\n[").next().unwrap_or_default();
        section.lines().any(|line| match line.strip_prefix(name) {
            Some(rest) => rest.starts_with(['.', ' ', '-']),
            None => false,
        })
    }

    /// The module that a path in `module` leads to, and whether an item of its own is meant.
    fn resolve(&self, module: &[String], path: &Names) -> Option<(Vec<String>, bool)> {
        let mut names = self.absolute(module, &path.names)?;
        // As often as names are passed on.
        for _ in 0..16 {
            let mut at = Vec::new();
            let mut rest = names.as_slice();
            while let [first, behind @ ..] = rest {
                let child = [at.clone(), vec![first.clone()]].concat();
                if !self.modules.contains_key(&child) {
                    break;
                }
                (at, rest) = (child, behind);
            }
            let Some(item) = rest.first() else { return Some((at, false)) };
            let passed_on = self.modules[&at].imports.iter().find(|(name, _)| name == item);
            match passed_on {
                Some((_, import)) if at != module => {
                    let mut next = self.absolute(&at, import)?;
                    next.extend_from_slice(&rest[1..]);
                    names = next;
                }
                _ => return Some((at, true)),
            }
        }
        panic!("{}: {:?} goes in a circle", self.name, path.names)
    }

    /// A path from the crate's root; `None` for another crate's.
    fn absolute(&self, module: &[String], names: &[String]) -> Option<Vec<String>> {
        let (first, rest) = names.split_first()?;
        let mut from = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module.split_last()?.1.to_vec(),
            _ => {
                let child = [module, std::slice::from_ref(first)].concat();
                return self.modules.contains_key(&child).then(|| [child, rest.to_vec()].concat());
            }
        };
        for name in rest {
            match name.as_str() {
                "super" => drop(from.pop()),
                _ => from.push(name.clone()),
            }
        }
        Some(from)
    }

    /// The arrows between modules of one folder, by folder.
    fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (module, source) in &self.modules {
            for path in &source.paths {
                let Some((to, _)) = self.resolve(module, path) else { continue };
                let shared = module.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(shared), to.get(shared)) {
                    let folder = arrows.entry(module[..shared].to_vec()).or_default();
                    folder.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        arrows
    }

    /// Each set of modules of one folder that reach each other.
    fn circles(&self) -> Vec<String> {
        let mut circles = BTreeSet::new();
        for (folder, arrows) in self.arrows() {
            let reached: BTreeMap<_, _> =
                arrows.keys().map(|from| (from, reachable(&arrows, from))).collect();
            for (from, all) in &reached {
                let back = |to: &&String| reached.get(to).is_some_and(|all| all.contains(*from));
                let circle: Vec<_> = all.iter().filter(back).map(|name| name.as_str()).collect();
                if circle.len() > 1 {
                    circles.insert(format!("{}: {}", self.title(&folder), circle.join(" ")));
                }
            }
        }
        circles.into_iter().collect()
    }

    /// Modules whose items their children use, and that use their children.
    fn share_and_drive(&self) -> Vec<String> {
        let (mut share, mut drive) = (BTreeSet::new(), BTreeSet::new());
        for (module, source) in &self.modules {
            for path in &source.paths {
                let Some((to, item)) = self.resolve(module, path) else { continue };
                if module.len() > to.len() && module.starts_with(&to) && item {
                    share.insert(to);
                } else if to.len() > module.len() && to.starts_with(module) && !path.passes_on {
                    drive.insert(module.clone());
                }
            }
        }
        share.intersection(&drive).map(|module| self.title(module)).collect()
    }

    fn title(&self, module: &[String]) -> String {
        [std::slice::from_ref(&self.name), module].concat().join("/")
    }
}

fn reachable(arrows: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for to in arrows.get(module).into_iter().flatten() {
            if all.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
