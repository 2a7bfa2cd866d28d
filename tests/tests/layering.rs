//! ARCHITECTURE.md's table of rooms → what `lb-agent` and `lb-common` may import. A room uses only rooms below it, also in
//! its tests, and within a room no two files need each other; so an arrow never points uphill.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

const CRATES: [&str; 2] = ["lb-agent/src", "lb-common/src"];

#[test]
fn rooms_import_only_rooms_below_them() -> Result<()> {
    let map = fs::read_to_string(top().join("ARCHITECTURE.md"))?;
    let mut faults = Vec::new();
    for name in CRATES {
        let files = Files::read(name)?;
        let order = order(&map, name)?;
        let missing = |room: &String| format!("{name}/{room} is not in ARCHITECTURE.md's table");
        let rooms = files.rooms();
        faults.extend(
            rooms
                .iter()
                .filter(|room| !order.contains_key(*room))
                .map(missing),
        );
        let gone = order.keys().filter(|room| !rooms.contains(*room));
        faults.extend(gone.map(|room| {
            format!("ARCHITECTURE.md's table names {name}/{room}, which does not exist")
        }));
        faults.extend(files.climbing(&order));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn no_files_import_each_other_in_a_circle() -> Result<()> {
    let mut faults = Vec::new();
    for name in CRATES {
        let files = Files::read(name)?;
        let circles = files.circles().into_iter();
        faults.extend(circles.map(|files| {
            format!(
                "{name}: {} import each other in a circle; what both need wants a file below them",
                files.join(" → ")
            )
        }));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn every_way_to_write_an_import_is_seen() -> Result<()> {
    let files = Files::parse(
        "x",
        [
            ("lib.rs", "mod low; mod high; pub use high::Top;"),
            (
                "high/mod.rs",
                "mod part; use part::Part; use crate::low::Low;",
            ),
            ("high/part.rs", "use super::Thing;"),
            (
                "low.rs",
                "use crate::{\n high::{Thing as T,\n part::*},\n low};\nfn f() { crate::high::g() }\n\
                 // crate::high\n/// [`crate::high`]\nmod inner { use super::super::high::H; const C: &str = \"crate::high\"; }\n\
                 #[cfg(test)] mod tests { fn t() { println!(\"{}\", crate::Top::new()) } }",
            ),
        ],
    )?;
    let order = BTreeMap::from([("low".to_owned(), 0), ("high".to_owned(), 1)]);
    let faults = files.climbing(&order);
    let lines: Vec<&str> = faults
        .iter()
        .filter_map(|fault| fault.split(": ").next())
        .collect();
    assert_eq!(
        lines,
        [2, 3, 5, 8, 9].map(|line| format!("x/low.rs:{line}")),
        "{faults:#?}"
    );
    assert_eq!(
        files.circles(),
        [
            ["high/mod.rs", "high/part.rs", "high/mod.rs"],
            ["high/mod.rs", "low.rs", "high/mod.rs"]
        ]
    );
    Ok(())
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rooms of a crate by their level in its table: those of one line share it, the ground is 0.
fn order(map: &str, name: &str) -> Result<BTreeMap<String, usize>> {
    let title = format!("The rooms of `{}`", name.trim_end_matches("/src"));
    let mut lines = map.lines().skip_while(|line| !line.starts_with(&title));
    lines
        .next()
        .with_context(|| format!("ARCHITECTURE.md has no table that begins with `{title}`"))?;
    let rows = lines
        .skip_while(|line| !line.starts_with("| `"))
        .take_while(|line| line.starts_with("| `"));
    Ok(rows
        .enumerate()
        .flat_map(|(level, row)| {
            let cell = row.trim_start_matches("| ").split(" |").next();
            let rooms = cell.unwrap_or_default().split(", ");
            rooms.map(move |room| (room.trim_matches(['`', '/']).to_owned(), level))
        })
        .collect())
}

type Module = Vec<String>;

struct Import {
    line: usize,
    /// From the top of the crate.
    path: Vec<String>,
    /// In code that only tests have.
    is_test: bool,
}

/// Every file of a crate with what it imports.
struct Files {
    name: String,
    imports: BTreeMap<Module, (String, Vec<Import>)>,
}

impl Files {
    fn read(name: &str) -> Result<Files> {
        let mut sources = Vec::new();
        collect(&top().join(name), "", &mut sources)?;
        Files::parse(
            name,
            sources
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str())),
        )
    }

    fn parse<'a>(
        name: &str,
        sources: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Files> {
        let sources: BTreeMap<Module, (&str, &str)> = sources
            .into_iter()
            .map(|(path, text)| (module(path), (path, text)))
            .collect();
        let modules: BTreeSet<Module> = sources.keys().cloned().collect();
        let mut imports = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for (module, (path, text)) in sources {
            let tokens = text.parse::<TokenStream>();
            let tokens = tokens.map_err(|error| anyhow::anyhow!("{name}/{path}: {error}"))?;
            let mut walk = Walk {
                modules: &modules,
                imports: Vec::new(),
                tests: BTreeSet::new(),
            };
            walk.tokens(tokens, &module, false);
            tests.extend(walk.tests);
            imports.insert(module, (path.to_owned(), walk.imports));
        }
        for (module, (_, imports)) in &mut imports {
            if tests.iter().any(|tests| module.starts_with(tests)) {
                imports.iter_mut().for_each(|import| import.is_test = true);
            }
        }
        Ok(Files {
            name: name.to_owned(),
            imports,
        })
    }

    fn rooms(&self) -> BTreeSet<String> {
        let rooms = self.imports.keys().filter_map(|module| module.first());
        rooms.filter(|room| *room != "main").cloned().collect()
    }

    /// Where an import leads: the file, by its module. What a file exports of another is looked up there.
    fn target(&self, path: &[String]) -> Option<&Module> {
        let lengths = (0..=path.len()).rev();
        let (module, (_, imports)) = lengths
            .filter_map(|length| self.imports.get_key_value(&path[..length]))
            .next()?;
        let name = path.get(module.len());
        let is_export = |import: &&Import| import.path.last() == name && import.path != path;
        match imports.iter().filter(|_| name.is_some()).find(is_export) {
            Some(export) => self.target(&export.path),
            None => (!module.is_empty()).then_some(module),
        }
    }

    fn climbing(&self, order: &BTreeMap<String, usize>) -> Vec<String> {
        let mut faults = Vec::new();
        for (module, (file, imports)) in &self.imports {
            let Some(own) = module.first() else { continue };
            for Import { line, path, .. } in imports {
                let target = self.target(path).and_then(|target| target.first());
                let Some(room) = target.filter(|room| *room != own) else {
                    continue;
                };
                let (Some(here), Some(there)) = (order.get(own), order.get(room)) else {
                    continue;
                };
                if there >= here {
                    faults.push(format!(
                        "{}/{file}:{line}: room `{own}` imports `crate::{}`, but `{room}` does not stand above `{own}` in ARCHITECTURE.md's table of rooms",
                        self.name,
                        path.join("::")
                    ));
                }
            }
        }
        faults
    }

    /// Circles among files, each once, tests apart: a file's tests may use helpers that use the file.
    fn circles(&self) -> Vec<Vec<&str>> {
        let mut circles = Vec::new();
        let mut done = BTreeSet::new();
        for module in self.imports.keys().filter(|module| !module.is_empty()) {
            self.follow(module, &mut Vec::new(), &mut done, &mut circles);
        }
        circles
    }

    fn follow<'a>(
        &'a self,
        module: &'a Module,
        way: &mut Vec<&'a Module>,
        done: &mut BTreeSet<&'a Module>,
        circles: &mut Vec<Vec<&'a str>>,
    ) {
        let file = |module: &Module| self.imports[module].0.as_str();
        if let Some(at) = way.iter().position(|passed| *passed == module) {
            let circle = way[at..].iter().chain([&module]);
            return circles.push(circle.map(|module| file(module)).collect());
        }
        if !done.insert(module) {
            return;
        }
        way.push(module);
        let imports = self.imports[module].1.iter();
        let targets: BTreeSet<&Module> = imports
            .filter(|import| !import.is_test)
            .filter_map(|import| self.target(&import.path))
            .filter(|target| *target != module)
            .collect();
        for target in targets {
            self.follow(target, way, done, circles);
        }
        way.pop();
    }
}

/// Reads `*.rs` below a directory, each with its path from there.
fn collect(dir: &Path, path: &str, sources: &mut Vec<(String, String)>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = format!("{path}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), sources)?;
        } else if name.ends_with(".rs") {
            sources.push((name, fs::read_to_string(entry.path())?));
        }
    }
    Ok(())
}

/// The module that a file holds: `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let mut names: Module = path.split('/').map(str::to_owned).collect();
    names.pop_if(|name| name == "mod" || name == "lib");
    names
}

/// Collects the imports of one file.
struct Walk<'a> {
    modules: &'a BTreeSet<Module>,
    imports: Vec<Import>,
    /// Files that only tests have.
    tests: BTreeSet<Module>,
}

impl Walk<'_> {
    fn tokens(&mut self, tokens: TokenStream, module: &[String], is_test: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut is_test_item = is_test;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match (token, tokens.get(at), tokens.get(at + 1)) {
                (TokenTree::Punct(hash), Some(TokenTree::Group(attribute)), _)
                    if hash.as_char() == '#' =>
                {
                    is_test_item |= attribute.stream().to_string().replace(' ', "") == "cfg(test)";
                    at += 1;
                }
                (
                    TokenTree::Ident(word),
                    Some(TokenTree::Ident(name)),
                    Some(TokenTree::Group(body)),
                ) if *word == "mod" => {
                    let inner = [module, &[name.to_string()]].concat();
                    self.tokens(body.stream(), &inner, is_test_item);
                    is_test_item = is_test;
                    at += 2;
                }
                (TokenTree::Ident(word), Some(TokenTree::Ident(name)), _)
                    if *word == "mod" && is_test_item =>
                {
                    self.tests.insert([module, &[name.to_string()]].concat());
                }
                (TokenTree::Ident(first), ..) if is_path(&tokens[at..]) => {
                    let is_inside = at >= 2 && is_colon(&tokens[at - 2]);
                    let first = first.to_string();
                    if let Some(start) = self.start(&first, module).filter(|_| !is_inside) {
                        at = self.tree(&tokens, at + 2, start, is_test_item);
                    }
                }
                (TokenTree::Group(group), ..) => {
                    self.tokens(group.stream(), module, is_test_item);
                    if group.delimiter() == Delimiter::Brace {
                        is_test_item = is_test;
                    }
                }
                (TokenTree::Punct(end), ..) if end.as_char() == ';' => is_test_item = is_test,
                _ => {}
            }
        }
    }

    /// Where a path begins whose first word this is; `None`: in another crate, or in this file.
    fn start(&self, first: &str, module: &[String]) -> Option<Vec<String>> {
        match first {
            "crate" => Some(Vec::new()),
            "self" => Some(module.to_vec()),
            "super" => module.split_last().map(|(_, above)| above.to_vec()),
            name => {
                let child = [module, &[name.to_owned()]].concat();
                self.modules.contains(&child).then_some(child)
            }
        }
    }

    /// Takes what follows the path so far, each branch of a group; returns where it ends.
    fn tree(
        &mut self,
        tokens: &[TokenTree],
        mut at: usize,
        mut path: Vec<String>,
        is_test: bool,
    ) -> usize {
        let mut line = tokens.get(at).map_or(0, |token| token.span().start().line);
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(name)) => {
                    line = name.span().start().line;
                    if *name == "super" {
                        path.pop();
                    } else if *name != "self" {
                        path.push(name.to_string());
                    }
                    at += 1;
                    if !is_path(&tokens[at..]) {
                        break;
                    }
                    at += 2;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
                    for branch in inner.split(comma).filter(|branch| !branch.is_empty()) {
                        self.tree(branch, 0, path.clone(), is_test);
                    }
                    return at + 1;
                }
                _ => break,
            }
        }
        self.imports.push(Import {
            line,
            path,
            is_test,
        });
        at
    }
}

/// Whether `::` comes next.
fn is_path(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [first, second, ..] if is_colon(first) && is_colon(second))
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':')
}
