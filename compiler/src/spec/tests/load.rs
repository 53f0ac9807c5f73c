//! Files that can't be read as they are.

use std::path::Path;

use crate::spec::load::{FileLoader, Loader};
use crate::spec::{MemoryLoader, SourceMap, check};

const SMALL: &str = "spec 1\nmodel M {\n    size n = 4\n    input x[n]\n    loss mean[n](x)\n}\n";

/// Every file is there, none is text.
struct NotText;

impl Loader for NotText {
    fn load(&self, _path: &Path) -> Result<String, String> {
        Err("it is not UTF-8 text".into())
    }

    fn known(&self, _near: &Path) -> Vec<String> {
        vec!["main.spec".into()]
    }
}

#[test]
fn load_strips_a_byte_order_mark() {
    let files = vec![("main.spec".to_string(), format!("\u{feff}{SMALL}"))];
    let mut sources = SourceMap::new();
    assert!(check(&mut sources, &MemoryLoader { files }, "main.spec", &[]).is_ok());
}

#[test]
fn load_does_not_suggest_the_file_it_could_not_read() {
    let found = check(&mut SourceMap::new(), &NotText, "main.spec", &[]).expect_err("not text");
    assert_eq!(found[0].title, "can't read `main.spec`: it is not UTF-8 text");
    assert!(found[0].help.is_empty(), "{:?}", found[0].help);
}

#[test]
fn load_says_what_is_wrong_with_a_path() {
    let reason = |path| FileLoader.load(Path::new(path)).expect_err("not a file");
    assert_eq!(reason("no/such/file.spec"), "no such file");
    assert_eq!(reason("."), "it is a folder");
}
