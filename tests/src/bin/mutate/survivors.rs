//! The mutants known to change nothing, `tests/mutation/survivors.txt`.

use std::collections::BTreeSet;
use std::path::Path;

use super::tables::Tables;

/// What the file lists.
pub struct Listed {
    /// Numbers of the mutants listed.
    pub numbers: BTreeSet<u32>,
    /// Lines that name no mutant.
    pub unknown: Vec<String>,
}

impl Listed {
    /// Reads the file: a mutant's name per line, under a `#` line with the reason.
    ///
    /// # Panics
    /// The file is not there, or a mutant stands under no reason.
    pub fn read(root: &Path, tables: &Tables) -> Listed {
        let path = root.join("tests/mutation/survivors.txt");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut listed = Listed { numbers: BTreeSet::new(), unknown: Vec::new() };
        let mut has_reason = false;
        for line in text.lines() {
            if line.is_empty() || line.starts_with('#') {
                has_reason = line.starts_with('#');
                continue;
            }
            assert!(has_reason, "survivors.txt: no reason above {line}");
            match tables.mutants.iter().find(|(_, m)| m.name() == line) {
                Some((number, _)) => _ = listed.numbers.insert(*number),
                None => listed.unknown.push(line.into()),
            }
        }
        listed
    }
}
