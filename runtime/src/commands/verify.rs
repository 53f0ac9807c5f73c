//! `verify`: checks the checkpoints of a run without loading them.

use crate::abi::TensorInfo;
use crate::args::Args;
use crate::checkpoint::reader::{Checkpoint, Share};
use crate::checkpoint::store::Store;
use crate::console::Console;
use crate::device::pool::Pool;
use crate::failure::{Exit, Failure};
use crate::program::Program;
use crate::settings::Settings;
use crate::shard::Part;

/// The subcommand: one line per checkpoint, newest first.
///
/// # Errors
/// There is no checkpoint, or one is not valid.
pub fn verify(program: &Program, args: &Args, console: &mut Console) -> Result<Exit, Failure> {
    let settings = Settings::new(program, args)?;
    let store = Store::read_only(&settings.checkpoints);
    let pool = Pool::new(settings.threads, settings.pin)?;
    let steps = store.steps()?;
    if steps.is_empty() {
        return Err(super::no_checkpoint(&settings.checkpoints));
    }
    let mut wrong = 0;
    for &step in &steps {
        let path = store.path(step);
        let whole = |tensor: &TensorInfo| Part::whole(&tensor.shape);
        let opened = Checkpoint::open(&pool, program, &path, step, Share::ALL, whole);
        let verdict = match opened.map(|checkpoint| checkpoint.manifest) {
            Ok(manifest) if manifest.fingerprint == program.info.fingerprint => "valid".to_owned(),
            Ok(_) => "valid, written by another build of the program".to_owned(),
            Err(why) => {
                wrong += 1;
                format!("NOT valid: {why}")
            }
        };
        console.line(&format!("{}: {verdict}", path.display()));
    }
    if wrong > 0 {
        return Err(Failure::failed(format!("error: {wrong} of {} checkpoints are not valid", steps.len())));
    }
    Ok(Exit::Done)
}
