//! What the documents say is there.

use std::path::Path;

/// A row or step of `docs/design.md` names a file and a function in it.
#[test]
fn the_design_names_files_and_functions_that_exist() {
    let text = read(&root().join("docs/design.md"));
    let mut named = 0;
    for line in text.lines() {
        let quoted: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let [file, function] = quoted[..] else { continue };
        if !file.ends_with(".rs") {
            continue;
        }
        let folder = if line.starts_with('|') { "crates/doorward-detection/src" } else { "crates" };
        let code = read(&root().join(folder).join(file));
        let declared = ["(", "<"].iter().any(|end| code.contains(&format!("fn {function}{end}")));
        assert!(declared, "{file} has no function {function}");
        named += 1;
    }
    assert!(named > 40, "{named} functions are named");
}

/// Links between files of the repository.
#[test]
fn links_lead_to_files() {
    let mut documents = vec![root().to_owned(), root().join("docs")];
    let crates = std::fs::read_dir(root().join("crates")).expect("a folder");
    documents.extend(crates.map(|entry| entry.expect("an entry").path()));
    let mut links = 0;
    for folder in documents {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let file = entry.expect("an entry").path();
            if file.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            for link in read(&file).split("](").skip(1) {
                let link = link.split([')', '#']).next().unwrap_or_default();
                if link.is_empty() || link.contains("://") || link.contains(' ') {
                    continue;
                }
                links += 1;
                assert!(folder.join(link).exists(), "{}: no {link}", file.display());
            }
        }
    }
    assert!(links > 10, "{links} links");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
