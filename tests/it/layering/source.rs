//! The paths and string literals of a source file.

/// What the rules ask of a file, without the parts that are for tests.
pub(super) struct Source {
    /// Every path of two names or more, and what `use` brings in.
    pub(super) paths: Vec<Path>,
    /// Names that `use` brings in, each with its path.
    pub(super) imports: Vec<(String, Vec<String>)>,
    /// Modules declared for tests.
    pub(super) test_modules: Vec<String>,
    /// String literals.
    pub(super) strings: Vec<String>,
}

/// Names joined by `::`.
pub(super) struct Path {
    pub(super) names: Vec<String>,
    /// True if `use` brings the name in for others: the file does not use it itself.
    pub(super) passes_on: bool,
}

/// The modules within a file that a place lies in.
#[derive(Default)]
struct Inner {
    braces: usize,
    /// The braces around each of them.
    modules: Vec<usize>,
}

// === impl Source ===

impl Source {
    pub(super) fn read(text: &str) -> Self {
        let (tokens, test_modules) = without_tests(&tokens(text));
        let mut source = Self {
            paths: Vec::new(),
            imports: Vec::new(),
            test_modules,
            strings: tokens.iter().filter_map(|token| literal(token)).collect(),
        };
        let mut words = Vec::new();
        let mut inner = Inner::default();
        let mut at = 0;
        while at < tokens.len() {
            inner.enter_or_leave(&tokens, at);
            // Not `+ use<'_>`, which is no import.
            if tokens[at] == "use" && tokens[at + 1] != "<" {
                let outside = source.imports.len();
                at = source.import(&tokens, at + 1, &[]);
                if inner.depth() > 0 {
                    let imports = source.imports.drain(outside..);
                    let paths = imports.filter_map(|(_, names)| inner.seen_from_file(names));
                    source.paths.extend(paths.map(|names| Path { names, passes_on: false }));
                }
            } else if is_name(&tokens[at]) && !matches!(before(&tokens, at), "::" | "." | "mod") {
                let mut names = vec![tokens[at].clone()];
                while at + 2 < tokens.len() && tokens[at + 1] == "::" && is_name(&tokens[at + 2]) {
                    names.push(tokens[at + 2].clone());
                    at += 2;
                }
                words.push(names[0].clone());
                if names.len() > 1 {
                    let names = inner.seen_from_file(names);
                    source.paths.extend(names.map(|names| Path { names, passes_on: false }));
                }
            }
            at += 1;
        }
        for (name, names) in &source.imports {
            let passes_on = !words.contains(name);
            source.paths.push(Path { names: names.clone(), passes_on });
        }
        source
    }

    /// Reads a tree of `use` whose first names are `prefix`; returns the place behind it.
    fn import(&mut self, tokens: &[String], mut at: usize, prefix: &[String]) -> usize {
        let mut names = prefix.to_vec();
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" => {
                    at += 1;
                    while tokens[at] != "}" {
                        at = self.import(tokens, at, &names);
                        if tokens[at] == "," {
                            at += 1;
                        }
                    }
                    return at + 1;
                }
                "as" => {
                    self.imports.push((tokens[at + 1].clone(), names));
                    return at + 2;
                }
                "," | "}" | ";" => break,
                "::" => {}
                "self" if !names.is_empty() => {}
                name => names.push(name.to_owned()),
            }
            at += 1;
        }
        if let Some(name) = names.last().cloned() {
            self.imports.push((name, names));
        }
        at
    }
}

// === impl Inner ===

impl Inner {
    fn enter_or_leave(&mut self, tokens: &[String], at: usize) {
        match tokens[at].as_str() {
            "{" => {
                if at >= 2 && tokens[at - 2] == "mod" {
                    self.modules.push(self.braces);
                }
                self.braces += 1;
            }
            "}" => {
                self.braces = self.braces.saturating_sub(1);
                if self.modules.last() == Some(&self.braces) {
                    self.modules.pop();
                }
            }
            _ => {}
        }
    }

    fn depth(&self) -> usize {
        self.modules.len()
    }

    /// A path as the file's own module would write it; `None` if it stays within.
    fn seen_from_file(&self, names: Vec<String>) -> Option<Vec<String>> {
        if self.depth() == 0 || names[0] == "crate" {
            return Some(names);
        }
        let supers = names.iter().take_while(|name| *name == "super").count();
        match supers.checked_sub(self.depth())? {
            0 => Some([vec!["self".to_owned()], names[supers..].to_vec()].concat()),
            _ => Some(names[self.depth()..].to_vec()),
        }
    }
}

/// The string literals of a text, as they are written.
pub(super) fn strings(text: &str) -> Vec<String> {
    tokens(text).iter().filter_map(|token| literal(token)).collect()
}

/// The text of a token that is a string literal.
fn literal(token: &str) -> Option<String> {
    token.strip_prefix('"').map(str::to_owned)
}

fn before(tokens: &[String], at: usize) -> &str {
    at.checked_sub(1).map_or("", |at| tokens[at].as_str())
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The tokens without what stands behind `#[cfg(test)]`, and the modules declared there.
fn without_tests(tokens: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let test = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !tokens[at..].iter().map(String::as_str).take(test.len()).eq(test) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += test.len();
        let start = at;
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" => depth -= 1,
                "}" => {
                    depth -= 1;
                    // The tree of a `use` ends with a semicolon.
                    if depth == 0 && tokens.get(at + 1).is_none_or(|next| next != ";") {
                        break;
                    }
                }
                ";" if depth == 0 => break,
                _ => {}
            }
            at += 1;
        }
        at += 1;
        let item = &tokens[start..at.min(tokens.len())];
        if let Some(place) = item.iter().position(|token| token == "mod") {
            modules.extend(item.get(place + 1).cloned());
        }
    }
    (kept, modules)
}

/// Names, `::`, single signs, and string literals behind a `"`; no comments, no characters.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some((text, length)) = string(rest) {
            tokens.push(format!("\"{text}"));
            length
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|sign: char| !(sign.is_alphanumeric() || sign == '_'));
            let length = end.unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The string literal that a text begins with, and its length.
fn string(text: &str) -> Option<(&str, usize)> {
    let body = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - body.len();
    if prefix > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let inner = raw.trim_start_matches('#');
        let signs = raw.len() - inner.len();
        let inner = inner.strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(signs));
        let length = inner.find(&end)?;
        return Some((&inner[..length], prefix + 1 + signs + 1 + length + end.len()));
    }
    let inner = body.strip_prefix('"')?;
    let mut escaped = false;
    for (at, sign) in inner.char_indices() {
        match sign {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((&inner[..at], prefix + 1 + at + 1)),
            _ => {}
        }
    }
    None
}

/// The length of the character, or of a lifetime's quote, that a text begins with.
fn character(text: &str) -> usize {
    let mut signs = text.char_indices().skip(1);
    match signs.next() {
        Some((_, '\\')) => {
            let behind = &text[3..];
            behind.find('\'').map_or(1, |end| 3 + end + 1)
        }
        Some((at, sign)) => {
            let end = at + sign.len_utf8();
            if text[end..].starts_with('\'') { end + 1 } else { 1 }
        }
        None => 1,
    }
}
