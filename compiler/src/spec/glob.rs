//! Globs over logical paths.
//!
//! `*` stands for any characters within one segment, `**` as a whole segment for any number of segments, `(a|b)` for one
//! of several texts. A path of a repeated tensor has a segment such as `{i}` that stands for every iteration.

use super::checked::RepeatDim;
use super::diagnostic::edit_distance;

/// What a glob hits of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// Nothing.
    No,
    /// Some iterations of a repeat.
    Part,
    /// All of it.
    Whole,
}

/// Matches a glob with a path whose `{variable}` segments stand for the iterations of these repeats.
pub fn hit(glob: &str, path: &str, repeats: &[RepeatDim]) -> Hit {
    let globs: Vec<Vec<String>> =
        expand(glob).iter().map(|g| g.split('.').map(str::to_string).collect()).collect();
    let path: Vec<&str> = path.split('.').collect();
    let mut best = Hit::No;
    for glob in &globs {
        let mut glob: Vec<&str> = glob.iter().map(String::as_str).collect();
        // `**.**` says no more than `**` and would be tried in every combination.
        glob.dedup_by(|a, b| a == b && *a == "**");
        best = better(best, segments(&glob, &path, repeats));
    }
    best
}

/// Whether a glob hits a path, or one that this path is inside of. Segments such as `{i}` are hit by `*` and by themselves.
pub fn covers(glob: &str, path: &str) -> bool {
    let ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
    ends.into_iter().any(|end| hit(glob, &path[..end], &[]) == Hit::Whole)
}

/// The paths nearest to a glob that hit nothing, nearest first, at most three.
pub fn nearest_paths<'a>(glob: &str, paths: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted: Vec<&str> = glob.split('.').filter(|s| *s != "**").collect();
    let mut scored: Vec<(usize, &str)> = paths
        .into_iter()
        .map(|path| {
            let have: Vec<&str> = path.split('.').collect();
            let tail = &have[have.len().saturating_sub(wanted.len())..];
            (edit_distance(&wanted.join("."), &tail.join(".")), path)
        })
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, path)| path).collect()
}

fn better(a: Hit, b: Hit) -> Hit {
    match (a, b) {
        (Hit::Whole, _) | (_, Hit::Whole) => Hit::Whole,
        (Hit::Part, _) | (_, Hit::Part) => Hit::Part,
        (Hit::No, Hit::No) => Hit::No,
    }
}

/// Writes out every `(a|b)`; text in odd parentheses stands for itself.
fn expand(glob: &str) -> Vec<String> {
    let Some(open) = glob.find('(') else { return vec![glob.to_string()] };
    let Some(close) = glob[open..].find(')').map(|c| c + open) else { return vec![glob.to_string()] };
    let mut all = vec![];
    for choice in glob[open + 1..close].split('|') {
        for rest in expand(&glob[close + 1..]) {
            all.push(format!("{}{choice}{rest}", &glob[..open]));
            if all.len() > 1024 {
                return all;
            }
        }
    }
    all
}

fn segments(glob: &[&str], path: &[&str], repeats: &[RepeatDim]) -> Hit {
    match (glob.split_first(), path.split_first()) {
        (None, None) => Hit::Whole,
        (None, Some(_)) => Hit::No,
        (Some((&"**", rest)), _) => {
            let mut best = Hit::No;
            for skip in 0..=path.len() {
                best = better(best, segments(rest, &path[skip..], repeats));
            }
            best
        }
        (Some(_), None) => Hit::No,
        (Some((g, glob_rest)), Some((p, path_rest))) => match segment(g, p, repeats) {
            Hit::No => Hit::No,
            Hit::Whole => segments(glob_rest, path_rest, repeats),
            Hit::Part => match segments(glob_rest, path_rest, repeats) {
                Hit::No => Hit::No,
                Hit::Part | Hit::Whole => Hit::Part,
            },
        },
    }
}

/// One segment; `{i}` is tried with each iteration's number.
fn segment(glob: &str, path: &str, repeats: &[RepeatDim]) -> Hit {
    let variable = path.strip_prefix('{').and_then(|p| p.strip_suffix('}'));
    let Some(repeat) = variable.and_then(|v| repeats.iter().find(|r| r.variable == v)) else {
        return if wild(glob.as_bytes(), path.as_bytes()) { Hit::Whole } else { Hit::No };
    };
    if glob == "*" || glob == path {
        return Hit::Whole;
    }
    // Numbers of more than six digits are not worth trying one by one: only `*` can mean all of them.
    let count = repeat.axis.size.min(1_000_000);
    let hits = (0..count).filter(|n| wild(glob.as_bytes(), n.to_string().as_bytes())).count() as u64;
    match hits {
        0 => Hit::No,
        n if n == repeat.axis.size => Hit::Whole,
        _ => Hit::Part,
    }
}

/// `*` stands for any bytes. Walks once, going back to the last star on a mismatch.
fn wild(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if g < glob.len() && glob[g] == b'*' {
            star = Some((g, t));
            g += 1;
        } else if g < glob.len() && glob[g] == text[t] {
            g += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            g = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}
