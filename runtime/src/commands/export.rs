//! `export`: the trained weights for other programs.

use std::path::Path;

use crate::abi::{NameTable, TensorInfo};
use crate::args::{Args, did_you_mean, nearest};
use crate::checkpoint::export::export as write;
use crate::checkpoint::reader::{Checkpoint, Share};
use crate::checkpoint::store::Store;
use crate::console::Console;
use crate::device::pool::Pool;
use crate::failure::{Exit, Failure};
use crate::program::Program;
use crate::settings::{Resume, Settings};
use crate::shard::Part;

/// The subcommand. It needs none of the ranks that trained.
///
/// # Errors
/// See [`Exit`].
pub fn export(program: &Program, args: &Args, console: &mut Console) -> Result<Exit, Failure> {
    let settings = Settings::new(program, args)?;
    let Some(path) = args.text("to") else {
        return Err(Failure::usage("error: where to?\nName the file with --to FILE.safetensors."));
    };
    let table = table(program, args)?;
    let pool = Pool::new(settings.threads, settings.pin)?;
    let store = Store::read_only(&settings.checkpoints);
    let steps = match settings.resume {
        Resume::Step(step) => vec![step],
        Resume::Auto | Resume::Never => store.steps()?,
    };
    if steps.is_empty() {
        return Err(super::no_checkpoint(&settings.checkpoints));
    }
    let mut reasons = Vec::new();
    for step in steps {
        let folder = store.path(step);
        let whole = |tensor: &TensorInfo| Part::whole(&tensor.shape);
        match Checkpoint::open(&pool, program, &folder, step, Share::ALL, whole) {
            Ok(checkpoint) => {
                reasons.iter().for_each(|why| console.note(&format!("note: skipped {why}")));
                let count = write(&pool, program, &checkpoint, table, Path::new(path))?;
                let names = table.map_or("logical", |t| t.name.as_str());
                console
                    .line(&format!("{count} parameters of {} in {path} ({names} names)", folder.display()));
                return Ok(Exit::Done);
            }
            Err(why) => reasons.push(format!("{}: {why}", folder.display())),
        }
    }
    Err(Failure::failed(format!("error: no valid checkpoint\n  {}", reasons.join("\n  "))))
}

/// The table `--names` asks for, else the first of the spec; `None` for the logical names.
fn table<'p>(program: &'p Program, args: &Args) -> Result<Option<&'p NameTable>, Failure> {
    let tables = &program.info.names;
    match args.text("names") {
        None => Ok(tables.first()),
        Some("logical") => Ok(None),
        Some(name) => tables.iter().find(|t| t.name == name).map(Some).ok_or_else(|| {
            let known: Vec<&str> = tables.iter().map(|t| t.name.as_str()).chain(["logical"]).collect();
            Failure::usage(format!(
                "error: this binary has no names `{name}`; it has: {}{}",
                known.join(", "),
                did_you_mean(nearest(name, &known), "")
            ))
        }),
    }
}
