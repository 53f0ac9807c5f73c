//! `mlc new`: a spec to start from.

use super::Failure;
use super::files::write;
use clap::Args;
use mlc::spec::library::FILES;
use std::path::{Path, PathBuf};

/// Arguments of `mlc new`.
#[derive(Args)]
pub struct NewArgs {
    /// Folder to make; it must not exist or be empty.
    dir: Option<PathBuf>,
    /// What to start from; `--list` names them all.
    #[arg(long, default_value = "tiny", value_name = "NAME")]
    from: String,
    /// List what ships with mlc.
    #[arg(long)]
    list: bool,
}

/// A starting point: its files and one line about it.
struct Template {
    name: &'static str,
    about: &'static str,
    files: &'static [(&'static str, &'static str)],
}

const LLAMA: (&str, &str) = ("llama.spec", include_str!("../../../specs/llama.spec"));

const TEMPLATES: &[Template] = &[
    Template {
        name: "tiny",
        about: "byte-level Llama, 1 M parameters; trains on any text file on a laptop in minutes",
        files: &[("tiny.spec", include_str!("../../../specs/tiny.spec")), LLAMA],
    },
    Template {
        name: "llama70b",
        about: "Llama 3.1 70B, 70,553,706,496 parameters",
        files: &[("llama70b.spec", include_str!("../../../specs/llama70b.spec")), LLAMA],
    },
    Template { name: "llama", about: "the Llama family, a head of its own", files: &[LLAMA] },
    Template {
        name: "llama_tied",
        about: "the small models of Llama 3.2, whose head is the embedding",
        files: &[("llama_tied.spec", include_str!("../../../specs/llama_tied.spec"))],
    },
    Template {
        name: "gpt",
        about: "the GPT-2 and GPT-3 family",
        files: &[("gpt.spec", include_str!("../../../specs/gpt.spec"))],
    },
    Template {
        name: "fuji",
        about: "AXLearn's Fuji family",
        files: &[("fuji.spec", include_str!("../../../specs/fuji.spec"))],
    },
    Template {
        name: "fuji_untied",
        about: "AXLearn's Fuji family from 8B, with a head of its own",
        files: &[("fuji_untied.spec", include_str!("../../../specs/fuji_untied.spec"))],
    },
    Template {
        name: "latent",
        about: "dense decoder with latent attention, as DeepSeek has it in its first layers",
        files: &[("latent.spec", include_str!("../../../specs/latent.spec"))],
    },
];

/// A building block as a starting point: `std/attention` for `std/attention.spec`.
fn block(name: &str) -> Option<(&'static str, &'static str, &'static str)> {
    let wanted = name.strip_suffix(".spec").unwrap_or(name);
    FILES.iter().find(|(path, ..)| path.strip_suffix(".spec") == Some(wanted)).copied()
}

/// Every name `--from` takes, with one line about it.
fn names() -> Vec<(&'static str, &'static str)> {
    let blocks = FILES.iter().map(|(path, about, _)| (path.strip_suffix(".spec").unwrap_or(path), *about));
    TEMPLATES.iter().map(|t| (t.name, t.about)).chain(blocks).collect()
}

/// Lists, or copies one.
pub fn run(args: &NewArgs) -> Result<(), Failure> {
    if args.list {
        names().iter().for_each(|(name, about)| println!("{name:<18} {about}"));
        return Ok(());
    }
    let template = TEMPLATES.iter().find(|t| t.name == args.from);
    let block = block(&args.from);
    if template.is_none() && block.is_none() {
        let names: Vec<&str> = names().iter().map(|(name, _)| *name).collect();
        let title = format!("no template is called `{}`; there is {}", args.from, names.join(", "));
        return Err(Failure::Input(title));
    }
    let Some(dir) = &args.dir else {
        return Err(Failure::Input("give a folder, as in `mlc new my-model`, or `--list`".into()));
    };
    if let Some((path, about, text)) = block {
        return copy_block(&dir.join(path), path, about, text);
    }
    let Some(template) = template else { return Ok(()) };
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::Input(format!("{} is not empty", dir.display())));
    }
    for (name, text) in template.files {
        write(&dir.join(name), text.as_bytes())?;
    }
    let spec = template.files[0].0;
    println!("{}: {}", dir.display(), template.about);
    println!("next: cd {} && mlc check {spec} && mlc build {spec}", dir.display());
    Ok(())
}

/// A building block goes beside the specs that use it, into a folder that may hold other things.
fn copy_block(to: &Path, path: &str, about: &str, text: &str) -> Result<(), Failure> {
    if to.exists() {
        return Err(Failure::Input(format!("{} is there already", to.display())));
    }
    write(to, text.as_bytes())?;
    println!("{}: {about}", to.display());
    println!("next: `use \"{path}\"` in a spec beside `std/` takes this file instead of the shipped one");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_an_unknown_template_before_a_missing_folder() {
        let args = NewArgs { dir: None, from: "bogus".into(), list: false };
        let Err(Failure::Input(text)) = run(&args) else { panic!("expected bad input") };
        assert_eq!(
            text,
            "no template is called `bogus`; there is tiny, llama70b, llama, llama_tied, gpt, fuji, fuji_untied, latent, \
             std/attention, std/feed_forward, std/head, std/moe, std/norm, std/position, std/relative_bias"
        );
    }

    #[test]
    fn new_copies_a_building_block_beside_other_files_once() {
        let dir = std::env::temp_dir().join(format!("mlc-new-block-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary folder is writable");
        std::fs::write(dir.join("mine.spec"), "spec 1\n").expect("the temporary folder is writable");
        let args = |from: &str| NewArgs { dir: Some(dir.clone()), from: from.into(), list: false };
        assert!(run(&args("std/norm")).is_ok());
        let copied = std::fs::read_to_string(dir.join("std/norm.spec")).expect("the block was copied");
        assert!(copied.contains("block RmsNorm[a]"));
        let Err(Failure::Input(again)) = run(&args("std/norm.spec")) else { panic!("expected bad input") };
        assert!(again.ends_with("std/norm.spec is there already"), "{again}");
        let Err(Failure::Input(full)) = run(&args("gpt")) else { panic!("expected bad input") };
        assert!(full.ends_with("is not empty"), "{full}");
        std::fs::remove_dir_all(&dir).expect("the folder is ours");
    }
}
