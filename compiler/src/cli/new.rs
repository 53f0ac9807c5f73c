//! `mlc new`: a spec to start from.

use super::Failure;
use super::files::write;
use clap::Args;
use std::path::PathBuf;

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
];

/// Lists, or copies one.
pub fn run(args: &NewArgs) -> Result<(), Failure> {
    if args.list {
        TEMPLATES.iter().for_each(|t| println!("{:<12} {}", t.name, t.about));
        return Ok(());
    }
    let template = TEMPLATES.iter().find(|t| t.name == args.from).ok_or_else(|| {
        let names: Vec<&str> = TEMPLATES.iter().map(|t| t.name).collect();
        Failure::Input(format!("no template is called `{}`; there is {}", args.from, names.join(", ")))
    })?;
    let Some(dir) = &args.dir else {
        return Err(Failure::Input("give a folder, as in `mlc new my-model`, or `--list`".into()));
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_an_unknown_template_before_a_missing_folder() {
        let args = NewArgs { dir: None, from: "bogus".into(), list: false };
        let Err(Failure::Input(text)) = run(&args) else { panic!("expected bad input") };
        assert_eq!(text, "no template is called `bogus`; there is tiny, llama70b");
    }
}
