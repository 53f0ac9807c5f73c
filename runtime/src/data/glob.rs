//! File name patterns: `*` and `?` within one part of a path, `**` for any number of folders.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// All files `pattern` names, in byte order of their paths. A file of exactly that name wins over the pattern.
///
/// # Errors
/// Nothing matches, or a folder cannot be read.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>, Failure> {
    let exact = Path::new(pattern);
    if exact.is_file() || !pattern.contains(['*', '?']) {
        return Ok(vec![exact.to_owned()]);
    }
    let root = PathBuf::from(if pattern.starts_with('/') { "/" } else { "" });
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let mut found = Vec::new();
    walk(&root, &parts, &mut found)?;
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(Failure::failed(format!("error: no file matches {pattern}")));
    }
    Ok(found)
}

fn walk(folder: &Path, parts: &[&str], found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let Some((part, rest)) = parts.split_first() else { return Ok(()) };
    if !part.contains(['*', '?']) {
        return step(&folder.join(part), rest, found);
    }
    if *part == "**" {
        walk(folder, rest, found)?;
    }
    for name in entries(folder)? {
        let path = folder.join(&name);
        if *part == "**" {
            // Links to folders are not followed, so that the walk ends.
            if path.is_dir() && !path.is_symlink() {
                walk(&path, parts, found)?;
            }
        } else if matches(part, &name) {
            step(&path, rest, found)?;
        }
    }
    Ok(())
}

fn step(path: &Path, rest: &[&str], found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if rest.is_empty() {
        if path.is_file() {
            found.push(path.to_owned());
        }
        return Ok(());
    }
    if path.is_dir() { walk(path, rest, found) } else { Ok(()) }
}

/// Names in a folder, sorted. Names that are not UTF-8 or begin with a dot match no pattern.
fn entries(folder: &Path) -> Result<Vec<String>, Failure> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |e: std::io::Error| Failure::io("read folder", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether `name` has the form of `pattern`: on a mismatch, the last `*` takes one character more.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut retry = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            retry = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|&c| c == '?' || c == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after_star, taken)) = retry {
            (p, n) = (after_star, taken + 1);
            retry = Some((after_star, taken + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.rs", "lib.rs", true),
            ("*.rs", "lib.rsx", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("shard-??.bin", "shard-07.bin", true),
            ("shard-??.bin", "shard-7.bin", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn expand_walks_folders_in_order() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b/1.txt", "a/2.txt", "a/deep/er/3.txt", "a/4.bin", "top.txt"] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let found = expand(&format!("{}/{pattern}", root.path().display())).unwrap();
            found.iter().map(|p| p.strip_prefix(root.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("*/*.txt"), ["a/2.txt", "b/1.txt"]);
        assert_eq!(names("**/*.txt"), ["a/2.txt", "a/deep/er/3.txt", "b/1.txt", "top.txt"]);
        assert_eq!(names("a/**/?.*"), ["a/2.txt", "a/4.bin", "a/deep/er/3.txt"]);
    }
}
